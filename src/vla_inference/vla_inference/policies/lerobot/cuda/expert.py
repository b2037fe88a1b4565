"""The action expert on CUDA: five kernels a layer, for a chunk of actions at a fixed time.

Euler's steps come at the same times in every answer. So whatever follows from the time alone is
computed once, at load: the time's part of the actions' tokens, and what pi0.5's norms adapt to.
A norm that scales and shifts is one that scales, whose shift went through the weights that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vla_inference.kernels.cached_attention import attend_cached
from vla_inference.kernels.few_rows import Parts, few_rows, neighbours
from vla_inference.policies.lerobot.cuda.language import Heads, Rotary, Span


class Modulation(NamedTuple):
    """A norm at one time, all float32.

    norm: its weights [W]. bias: added to the product that reads it, one number an output. gain: of
    the branch that begins with it [W].
    """

    norm: Tensor
    bias: Tensor | None = None
    gain: Tensor | None = None


class Entry(NamedTuple):
    """A product on the way from noisy actions to tokens. after: see `layers.activated`."""

    weight: Tensor
    bias: Tensor
    after: str = ""


@dataclass(frozen=True)
class ExpertLayer:
    """A layer's weights and its two norms at each step.

    reads: queries, keys and values, or queries alone of a layer that attends to the prefix only;
    rows as `few_rows.neighbours` puts them. own: see `cached_attention.OWN`.
    """

    reads: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor
    norms: Sequence[tuple[Modulation, Modulation]]
    own: str

    def turned(self, heads: Heads) -> int:
        return heads.turned if self.own else heads.heads * heads.size


class Reading(NamedTuple):
    """What a layer reads of the prefix: keys and values [kv heads, slots, head], and the rotary
    embedding of the actions' positions to go with them."""

    keys: Tensor
    values: Tensor
    rotary: Rotary


class CudaExpert:
    """entries, exits: from actions to tokens and back, at each step. head: [action_dim, W]. by:
    the gate's activation."""

    def __init__(
        self,
        layers: Sequence[ExpertLayer],
        entries: Sequence[Sequence[Entry]],
        exits: Sequence[Modulation],
        head: Tensor,
        heads: Heads,
        eps: float,
        by: str,
        parts: Parts,
    ):
        self.layers, self.entries, self.exits, self.head = layers, entries, exits, head
        self.heads, self.eps, self.by, self.parts = heads, eps, by, parts
        self.steps = len(exits)
        self._product: Callable[..., Tensor] = partial(few_rows, parts=parts, eps=eps)
        self._stride = torch.full((len(head),), -1 / self.steps, device=head.device)

    def step(self, i: int, x: Tensor, readings: Sequence[Reading], span: Span) -> Tensor:
        """One of Euler's steps: actions float32 [T, action_dim] -> less noisy ones"""
        return self._exit(i, self._tokens(i, x, readings, span), self._stride, x)

    def velocity(self, i: int, x: Tensor, readings: Sequence[Reading], span: Span) -> Tensor:
        """How actions float32 [T, action_dim] move at step i."""
        return self._exit(i, self._tokens(i, x, readings, span))

    def layer(
        self, layer: ExpertLayer, i: int, x: Tensor, qkv: Tensor, read: Reading, span: Span
    ) -> Tensor:
        """Tokens [T, W] through a layer at step i, whose queries (and keys, values) are known."""
        first, second = layer.norms[i]
        attended = attend_cached(
            qkv,
            read.keys,
            read.values,
            span.length,
            self.parts,
            heads=self.heads.heads,
            resumes=span.resumes,
            own=layer.own,
        )
        x = self._product(attended, layer.out, gain=first.gain, residual=x)
        inner = self._product(
            x, layer.gate_up, norm=second.norm, bias=second.bias, after=self.by, pair=True
        )
        return self._product(inner, layer.down, gain=second.gain, residual=x)

    def heads_of(self, layer: ExpertLayer, i: int, x: Tensor, rotary: Rotary | None) -> Tensor:
        """Queries, and keys and values where the layer makes them, of tokens [T, W] at step i."""
        norm, bias, _ = layer.norms[i][0]
        turned = layer.turned(self.heads)
        return self._product(x, layer.reads, norm=norm, bias=bias, rotary=rotary, turned=turned)

    def _tokens(self, i: int, x: Tensor, readings: Sequence[Reading], span: Span) -> Tensor:
        for weight, bias, after in self.entries[i]:
            x = self._product(x, weight, bias=bias, after=after)
        for layer, read in zip(self.layers, readings, strict=True):
            x = self.layer(layer, i, x, self.heads_of(layer, i, x, read.rotary), read, span)
        return x

    def _exit(
        self, i: int, x: Tensor, gain: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        norm, bias, _ = self.exits[i]
        return self._product(
            x,
            self.head,
            norm=norm,
            bias=bias,
            gain=gain,
            residual=residual,
            dtype=torch.float32,
        )


def joined(heads: Heads, *weights: Tensor) -> Tensor:
    """The rows of queries, keys and values, as `few_rows.neighbours` puts them."""
    return neighbours(torch.cat(weights), heads.size)
