"""pi0 and pi0.5: a vision-language model, and an action expert that reads its cache.

PaliGemma (SigLIP and Gemma) reads images and words once per answer and leaves the keys and values
of each layer. The expert, a narrower Gemma, then runs once per Euler step of flow matching: it
moves a chunk of noise to a chunk of actions, attending to those keys and values and to itself.

The two models differ in what surrounds the expert:

    pi0    the state is a token between prefix and actions; the time is mixed into each action
    pi0.5  the state is part of the prompt; the time scales, shifts and gates each layer (adaRMS)

Shapes: B observations, n tokens, T steps of a chunk, W the language model's width, E the expert's.

Source: arXiv:2410.24164, arXiv:2504.16054; behaviour of huggingface/lerobot 0.6.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_inference.policies.lerobot.flow import time_embedding
from vla_inference.policies.lerobot.network.attention import (
    Prefix,
    attend,
    join_heads,
    rotate,
    rotation,
    split_heads,
)
from vla_inference.policies.lerobot.network.siglip import VisionEncoder
from vla_inference.policies.pi05.config import GemmaDims, PiConfig

EPS = 1e-6


class Norm(nn.Module):
    """Root mean square norm whose weight is added to 1; or, adaptive, one whose scale, shift and
    gate follow from a condition."""

    def __init__(self, width: int, condition: int):
        super().__init__()
        if condition:
            self.dense = nn.Linear(condition, 3 * width)
        else:
            self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x [B, n, width], condition [B, 1 or n, condition] -> the same, and the gate
        [B, 1 or n, width] of the branch that follows."""
        y = F.rms_norm(x.float(), x.shape[-1:], eps=EPS)
        if condition is None:
            return (y * (1 + self.weight.float())).to(x.dtype), None
        scale, shift, gate = self.dense(condition).chunk(3, -1)
        return (y * (1 + scale) + shift).to(x.dtype), gate


def add(x: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    return x + branch if gate is None else x + gate * branch


class Layer(nn.Module):
    """A block of Gemma, without its attention's arithmetic."""

    def __init__(self, c: GemmaDims):
        super().__init__()
        self.norm1, self.norm2 = Norm(c.width, c.condition), Norm(c.width, c.condition)
        self.q = nn.Linear(c.width, c.heads * c.head, bias=False)
        self.k = nn.Linear(c.width, c.kv_heads * c.head, bias=False)
        self.v = nn.Linear(c.width, c.kv_heads * c.head, bias=False)
        self.out = nn.Linear(c.heads * c.head, c.width, bias=False)
        self.gate = nn.Linear(c.width, c.mlp, bias=False)
        self.up = nn.Linear(c.width, c.mlp, bias=False)
        self.down = nn.Linear(c.mlp, c.width, bias=False)

    def finish(
        self, x: Tensor, attended: Tensor, gate: Tensor | None, condition: Tensor | None
    ) -> Tensor:
        """Adds what was attended to [B, heads, n, head], then the MLP."""
        x = add(x, self.out(join_heads(attended)), gate)
        y, gate = self.norm2(x, condition)
        mlp = self.down(F.gelu(self.gate(y), approximate="tanh") * self.up(y))
        return add(x, mlp, gate)


class Gemma(nn.Module):
    def __init__(self, c: GemmaDims):
        super().__init__()
        self.dims = c
        layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.layers = cast("Sequence[Layer]", layers)
        self.norm = Norm(c.width, c.condition)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        past: Prefix | None = None,
        condition: Tensor | None = None,
        hidden: bool = True,
    ) -> Prefix:
        """Reads tokens x [B, n, width], which see one another and the whole of `past`.

        mask: bool [B, n]; masked tokens are unseen and take no position. Positions go on from
        those of `past`. Returns what to read next: `past` and these tokens. hidden: whether the
        output [B, n, width] of the last norm is wanted.
        """
        c = self.dims
        begin = 0 if past is None else past.mask.sum(1, keepdim=True)
        seen = mask if past is None else torch.cat([past.mask, mask], 1)
        turn = rotation(begin + mask.cumsum(1) - 1, c.head)
        sees = seen[:, None, None].expand(-1, 1, x.shape[1], -1)
        keys, values = [], []
        for i, layer in enumerate(self.layers):
            y, gate = layer.norm1(x, condition)
            k = rotate(split_heads(layer.k(y), c.kv_heads), turn)
            v = split_heads(layer.v(y), c.kv_heads)
            keys.append(k if past is None else torch.cat([past.keys[i], k], 2))
            values.append(v if past is None else torch.cat([past.values[i], v], 2))
            if hidden or i + 1 < c.layers:  # else nothing reads the last layer's output
                q = rotate(split_heads(layer.q(y), c.heads), turn)
                x = layer.finish(x, attend(q, keys[-1], values[-1], sees), gate, condition)
        return Prefix(keys, values, seen, self.norm(x, condition)[0] if hidden else None)


class Pi(nn.Module):
    def __init__(self, config: PiConfig):
        super().__init__()
        self.config = c = config
        self.vision = VisionEncoder(c.vision)
        self.projector = nn.Linear(c.vision.width, c.text.width)
        self.embedding = nn.Embedding(c.vocabulary, c.text.width)
        self.language, self.expert = Gemma(c.text), Gemma(c.expert)
        width = c.expert.width
        self.action_in_proj = nn.Linear(c.action_dim, width)
        self.action_out_proj = nn.Linear(width, c.action_dim)
        self.time_mlp_in = nn.Linear(2 * width if c.state_dim else width, width)
        self.time_mlp_out = nn.Linear(width, width)
        if c.state_dim:
            self.state_proj = nn.Linear(c.state_dim, width)

    # -- the prefix: images and words, all of which see one another ---------------------------

    def embed_images(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] in -1 to 1 -> [B, tokens, W]"""
        return self.projector(self.vision(images))

    def embed(self, images: Tensor, words: Tensor, word_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The prefix's embeddings [B, n, W] and mask [B, n].

        images: of each camera that is there [B, cameras, 3, S, S]. words: ids [B, L], with
        word_mask bool [B, L].
        """
        b, width = len(images), self.config.text.width
        seen = self.embed_images(images.flatten(0, 1)).view(b, -1, width)
        told = self.embedding(words) * width**0.5
        mask = torch.ones(b, seen.shape[1], dtype=torch.bool, device=seen.device)
        return torch.cat([seen, told], 1), torch.cat([mask, word_mask], 1)

    def prefix(self, x: Tensor, mask: Tensor, hidden: bool = False) -> Prefix:
        """Keys and values of each layer for a prefix."""
        return self.language(x, mask, hidden=hidden)

    def read_state(self, state: Tensor, prefix: Prefix) -> Prefix:
        """The prefix and, after it, the token of a state [B, state_dim], normalised and padded.

        Nothing in that token depends on the noisy actions, so it is read once. pi0.5 has none.
        """
        if not self.config.state_dim:
            return prefix
        x = self.state_proj(state)[:, None]
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return self.expert(x, mask, prefix)

    # -- the expert ---------------------------------------------------------------------------

    def embed_actions(self, actions: Tensor, time: Tensor) -> tuple[Tensor, Tensor | None]:
        """Noisy actions [B, T, action_dim] at times [B] or [B, T] -> their tokens [B, T, E], and
        the condition [B, 1 or T, E] of pi0.5's norms."""
        c = self.config
        x = self.action_in_proj(actions)
        time = time if time.ndim == 2 else time[:, None]
        t = time_embedding(time, c.expert.width, c.min_period, c.max_period).to(x.dtype)
        if c.expert.condition:
            return x, F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(t))))
        x = torch.cat([x, t.expand_as(x)], -1)
        return self.time_mlp_out(F.silu(self.time_mlp_in(x))), None

    def velocity(
        self, actions: Tensor, time: Tensor, prefix: Prefix, hidden: bool = False
    ) -> Tensor:
        """How noisy actions [B, T, action_dim] move at times [B] or [B, T] (1 noise, 0 actions).

        prefix: as `read_state` returns it. hidden: the output of the expert's last norm [B, T, E]
        instead.
        """
        x, condition = self.embed_actions(actions, time)
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        found = self.expert(x, mask, prefix, condition).hidden
        assert found is not None
        return found if hidden else self.action_out_proj(found)
