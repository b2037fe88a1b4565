"""SmolVLA: a small vision-language model, and an action expert that reads its cache.

The vision-language model (SmolVLM2: SigLIP and a Llama) runs once per answer and leaves the keys
and values of each layer. The expert then runs once per Euler step of flow matching: it moves a
chunk of noise to a chunk of actions, attending to those keys and values.

Shapes: B observations, n prefix tokens, T steps of a chunk, W the language model's width.

Source: arXiv:2506.01844; behaviour of huggingface/lerobot 0.6.1, `policies/smolvla`.
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
from vla_inference.policies.smolvla.config import ExpertDims, SmolVLAConfig, TextDims


def pixel_shuffle(x: Tensor, block: int) -> Tensor:
    """Features of a square of patches [B, p, d] -> of its blocks [B, p / block^2, block^2 d]"""
    b, patches, d = x.shape
    side = int(patches**0.5) // block
    x = x.view(b, side, block, side, block, d).transpose(2, 3)
    return x.reshape(b, side * side, block * block * d)


# -- the language model and the expert (Llama) ----------------------------------------------------


class Layer(nn.Module):
    """A block of the language model or of the expert, without its attention's arithmetic.

    kv_in: width of what its keys and values are made from.
    """

    def __init__(self, width: int, kv_in: int, text: TextDims, mlp: int):
        super().__init__()
        heads, kv = text.heads * text.head, text.kv_heads * text.head
        self.norm1 = nn.RMSNorm(width, text.eps)
        self.norm2 = nn.RMSNorm(width, text.eps)
        self.q = nn.Linear(width, heads, bias=False)
        self.k = nn.Linear(kv_in, kv, bias=False)
        self.v = nn.Linear(kv_in, kv, bias=False)
        self.out = nn.Linear(heads, width, bias=False)
        self.gate = nn.Linear(width, mlp, bias=False)
        self.up = nn.Linear(width, mlp, bias=False)
        self.down = nn.Linear(mlp, width, bias=False)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Adds what was attended to [B, heads, n, head], then the MLP."""
        x = x + self.out(join_heads(attended))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Language(nn.Module):
    def __init__(self, c: TextDims):
        super().__init__()
        self.embedding = nn.Embedding(c.vocabulary, c.width)
        layers = nn.ModuleList(Layer(c.width, c.width, c, c.mlp) for _ in range(c.layers))
        self.layers = cast("Sequence[Layer]", layers)
        self.norm = nn.RMSNorm(c.width, c.eps)


class Expert(nn.Module):
    def __init__(self, c: ExpertDims, text: TextDims):
        super().__init__()
        kv = text.kv_heads * text.head
        layers = nn.ModuleList(
            Layer(c.width, c.width if own else kv, text, c.mlp) for own in c.self_attention
        )
        self.layers = cast("Sequence[Layer]", layers)
        self.norm = nn.RMSNorm(c.width, text.eps)


# -- the whole model ------------------------------------------------------------------------------


class SmolVLA(nn.Module):
    def __init__(self, config: SmolVLAConfig):
        super().__init__()
        self.config = c = config
        self.vision = VisionEncoder(c.vision)
        self.connector = nn.Linear(c.shuffle**2 * c.vision.width, c.text.width, bias=False)
        self.language = Language(c.text)
        self.expert = Expert(c.expert, c.text)
        self.state_proj = nn.Linear(c.state_dim, c.text.width)
        self.action_in_proj = nn.Linear(c.action_dim, c.expert.width)
        self.action_out_proj = nn.Linear(c.expert.width, c.action_dim)
        self.action_time_mlp_in = nn.Linear(2 * c.expert.width, c.expert.width)
        self.action_time_mlp_out = nn.Linear(c.expert.width, c.expert.width)

    # -- the prefix: images, words, state -----------------------------------------------------

    def embed_images(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] in -1 to 1 -> [B, tokens, W]"""
        return self.connector(pixel_shuffle(self.vision(images), self.config.shuffle))

    def embed(
        self, images: Tensor, words: Tensor, word_mask: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The prefix's embeddings [B, n, W] and mask [B, n].

        images: of each camera that is there [B, cameras, 3, S, S]. words: ids [B, L], with
        word_mask bool [B, L]. state: [B, state_dim], normalised and padded.
        """
        b, width = len(images), self.config.text.width
        seen = self.embed_images(images.flatten(0, 1)).view(b, -1, width) * width**0.5
        told = self.language.embedding(words) * width**0.5
        x = torch.cat([seen, told, self.state_proj(state)[:, None]], 1)
        mask = torch.ones(b, x.shape[1], dtype=torch.bool, device=x.device)
        mask[:, seen.shape[1] : -1] = word_mask
        return x, mask

    def prefix(self, x: Tensor, mask: Tensor, hidden: bool = False) -> Prefix:
        """Keys and values of each layer for a prefix.

        Images and words see one another, but not the state, which comes last and sees all.
        """
        c = self.config.text
        sees = mask[:, None, None].repeat(1, 1, x.shape[1], 1)
        sees[:, :, :-1, -1] = False
        turn = rotation(mask.cumsum(1) - 1, c.head)
        keys, values = [], []
        for layer in self.language.layers:
            y = layer.norm1(x)
            keys.append(rotate(split_heads(layer.k(y), c.kv_heads), turn))
            values.append(split_heads(layer.v(y), c.kv_heads))
            if hidden or len(keys) < c.layers:  # nothing reads the last layer's output
                q = rotate(split_heads(layer.q(y), c.heads), turn)
                x = layer.finish(x, attend(q, keys[-1], values[-1], sees))
        return Prefix(keys, values, mask, self.language.norm(x) if hidden else None)

    # -- the expert ---------------------------------------------------------------------------

    def embed_actions(self, actions: Tensor, time: Tensor) -> Tensor:
        """Noisy actions [B, T, action_dim] at times [B] or [B, T] -> [B, T, expert width]"""
        c = self.config
        x = self.action_in_proj(actions)
        time = time if time.ndim == 2 else time[:, None]
        t = time_embedding(time, c.expert.width, c.min_period, c.max_period).to(x.dtype)
        x = torch.cat([x, t.expand_as(x)], -1)
        return self.action_time_mlp_out(F.silu(self.action_time_mlp_in(x)))

    def cross_keys(self, prefix: Prefix) -> list[tuple[Tensor, Tensor] | None]:
        """Of each expert layer that only looks at the prefix: its keys and values of it."""
        found: list[tuple[Tensor, Tensor] | None] = []
        heads = self.config.text.kv_heads
        for i, layer, own in self.config.expert.schedule(self.expert.layers):
            k, v = (join_heads(x[i]) for x in (prefix.keys, prefix.values))
            found.append(
                None if own else (split_heads(layer.k(k), heads), split_heads(layer.v(v), heads))
            )
        return found

    def velocity(
        self,
        actions: Tensor,
        time: Tensor,
        prefix: Prefix,
        cross: list[tuple[Tensor, Tensor] | None] | None = None,
        hidden: bool = False,
    ) -> Tensor:
        """How noisy actions [B, T, action_dim] move at times [B] or [B, T] (1 noise, 0 actions).

        cross: `cross_keys`, which are the same for every step. hidden: the output of the
        expert's last norm [B, T, width] instead.
        """
        c, steps = self.config.text, actions.shape[1]
        x = self.embed_actions(actions, time)
        steps_on = torch.arange(steps, device=x.device)[None]
        after = rotation(prefix.mask.sum(1, keepdim=True) + steps_on, c.head)
        alone = rotation(steps_on, c.head)
        sees = prefix.mask[:, None, None].expand(-1, 1, steps, -1)
        causal = torch.ones(steps, steps, dtype=torch.bool, device=x.device).tril()
        sees_own = torch.cat([sees, causal.expand(len(x), 1, -1, -1)], -1)
        cross = cross or self.cross_keys(prefix)
        for (i, layer, _), read in zip(
            self.config.expert.schedule(self.expert.layers), cross, strict=True
        ):
            y = layer.norm1(x)
            q = split_heads(layer.q(y), c.heads)
            if read:
                attended = attend(rotate(q, alone), *read, sees)
            else:
                k = rotate(split_heads(layer.k(y), c.kv_heads), after)
                v = split_heads(layer.v(y), c.kv_heads)
                k, v = torch.cat([prefix.keys[i], k], 2), torch.cat([prefix.values[i], v], 2)
                attended = attend(rotate(q, after), k, v, sees_own)
            x = layer.finish(x, attended)
        x = self.expert.norm(x)
        return x if hidden else self.action_out_proj(x)
