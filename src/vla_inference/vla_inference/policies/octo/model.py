"""A vision transformer reads the instruction, the images and the state; a head denoises actions.

Instruction and observation are one sequence of tokens. Readout tokens at its end see all of it and
are seen by none of it: what they become is all that the head knows. The head is a small residual
network, so that each of its steps costs little beside the transformer, which runs once.

What differs from the published models: the instruction's tokens are learned with the rest, and not
by a frozen T5; one moment is seen, without history.

Shapes: B observations, n tokens, T steps of a chunk, D numbers of an action, W width.

Source: arXiv:2405.12213, section III and appendix D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_inference.policies.lerobot.flow import Inputs, time_embedding
from vla_inference.policies.lerobot.network.attention import attend, join_heads, split_heads
from vla_inference.policies.octo.config import OctoConfig

CHANNELS = (32, 96, 192, 384)  # of the stem's convolutions, each of which halves the resolution
GROUPS = 32
TIME = 32  # numbers that say which step of denoising it is


class Stem(nn.Sequential):
    """Images [B, 3, H, W] in -1 to 1 -> features [B, W, H / 16, W / 16]"""

    def __init__(self, width: int):
        layers: list[nn.Module] = []
        for before, after in zip((3, *CHANNELS), CHANNELS, strict=False):
            conv = nn.Conv2d(before, after, 3, stride=2, padding=1)
            layers += [conv, nn.GroupNorm(GROUPS, after), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(CHANNELS[-1], width, 1))


class Layer(nn.Module):
    def __init__(self, c: OctoConfig):
        super().__init__()
        self.heads = c.heads
        self.norm1, self.norm2 = nn.LayerNorm(c.width), nn.LayerNorm(c.width)
        self.qkv, self.out = nn.Linear(c.width, 3 * c.width), nn.Linear(c.width, c.width)
        self.fc1, self.fc2 = nn.Linear(c.width, c.mlp), nn.Linear(c.mlp, c.width)

    def forward(self, x: Tensor, sees: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(join_heads(attend(q, k, v, sees)))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))


class HeadBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.silu(self.fc1(self.norm(x))))


class DiffusionHead(nn.Module):
    """Finds the noise in actions [B, T, D] at steps [B], by what was read [B, W]."""

    def __init__(self, c: OctoConfig):
        super().__init__()
        self.config, numbers = c, c.chunk * c.action_dim
        self.time1, self.time2 = nn.Linear(TIME, 2 * TIME), nn.Linear(2 * TIME, TIME)
        self.begin = nn.Linear(c.width + TIME + numbers, c.head_width)
        blocks = nn.ModuleList(HeadBlock(c.head_width) for _ in range(c.head_blocks))
        self.blocks = cast("Sequence[HeadBlock]", blocks)
        self.end = nn.Linear(c.head_width, numbers)

    def forward(self, read: Tensor, noisy: Tensor, step: Tensor) -> Tensor:
        periods = 2.0, 2.0 * self.config.steps
        time = time_embedding(step, TIME, *periods).to(read.dtype)
        time = self.time2(F.silu(self.time1(time)))
        x = self.begin(torch.cat([read, time, noisy.flatten(1)], -1))
        for block in self.blocks:
            x = block(x)
        return self.end(F.silu(x)).view(noisy.shape)


class Octo(nn.Module):
    def __init__(self, config: OctoConfig):
        super().__init__()
        self.config = c = config
        self.stem = Stem(c.width)
        self.patch_position = nn.Embedding(c.cameras * c.patches, c.width)
        self.words = nn.Embedding(c.vocabulary, c.width)
        self.word_position = nn.Embedding(c.words, c.width)
        if c.state_dim:
            self.state_proj = nn.Linear(c.state_dim, c.width)
        self.readouts = nn.Embedding(c.readouts, c.width)
        layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.layers = cast("Sequence[Layer]", layers)
        self.norm = nn.LayerNorm(c.width)
        self.head = DiffusionHead(c)

    def embed(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Tokens [B, n, W] of instruction, images, state and readouts; bool [B, 1, n, n], which
        of them see which."""
        images, words, mask, state = inputs
        b = len(images)
        told = self.words(words) + self.word_position.weight[: words.shape[1]]
        seen = self.stem(images.flatten(0, 1)).flatten(2).transpose(1, 2)
        seen = seen.reshape(b, -1, self.config.width)
        parts = [told, seen + self.patch_position.weight[: seen.shape[1]]]
        if self.config.state_dim:
            parts.append(self.state_proj(state)[:, None])
        parts.append(self.readouts.weight.expand(b, -1, -1))
        x = torch.cat(parts, 1)
        n, count = x.shape[1], words.shape[1]
        sees = torch.ones(b, 1, n, n, dtype=torch.bool, device=x.device)
        sees[:, 0, :, :count] = mask[:, None]
        sees[:, :, :count, count:] = False  # the instruction sees itself alone
        sees[:, :, : -self.config.readouts, -self.config.readouts :] = False
        return x, sees

    def read(self, inputs: Inputs) -> Tensor:
        """What the head knows of observations: [B, W]"""
        x, sees = self.embed(inputs)
        for layer in self.layers:
            x = layer(x, sees)
        return self.norm(x[:, -self.config.readouts :]).mean(1)
