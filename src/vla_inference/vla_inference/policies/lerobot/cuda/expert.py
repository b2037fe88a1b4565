"""The action expert on CUDA: five kernels a layer, for a chunk of actions at a fixed time.

Euler's steps come at the same times in every answer. So whatever follows from the time alone is
computed once, at load: the time's part of the actions' tokens, and what pi0.5's norms adapt to.
A norm that scales and shifts is one that scales, whose shift went through the weights that follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vla_inference.kernels.cached_attention import attend_cached
from vla_inference.kernels.few_rows import (
    Normed,
    Parts,
    few_rows,
    few_rows_normed,
    neighbours,
)
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
        self._stride = torch.full((len(head),), -1 / self.steps, device=head.device)

    def step(self, i: int, x: Tensor, readings: Sequence[Reading], span: Span) -> Tensor:
        """One of Euler's steps: actions float32 [T, action_dim] -> less noisy ones"""
        return self._exit(i, self._tokens(i, x, readings, span), self._stride, x)

    def velocity(self, i: int, x: Tensor, readings: Sequence[Reading], span: Span) -> Tensor:
        """How actions float32 [T, action_dim] move at step i."""
        return self._exit(i, self._tokens(i, x, readings, span))

    def enter(self, x: Tensor, entries: Sequence[Entry], i: int) -> Normed:
        """Rows of any width as the first layer reads them at step i."""
        for weight, bias, after in entries[:-1]:
            x = few_rows(x, weight, self.parts, bias=bias, after=after)
        weight, bias, after = entries[-1]
        return few_rows_normed(x, weight, self.parts, self._norm(0, i), bias=bias, after=after)

    def layer(
        self, number: int, i: int, x: Normed, qkv: Tensor, read: Reading, span: Span
    ) -> Normed:
        """Tokens [T, W] through a layer at step i, whose queries (and keys, values) are known."""
        layer = self.layers[number]
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
        x = few_rows_normed(
            attended, layer.out, self.parts, second.norm, gain=first.gain, residual=x.rows
        )
        inner = few_rows(
            x,
            layer.gate_up,
            self.parts,
            eps=self.eps,
            bias=second.bias,
            after=self.by,
            pair=True,
        )
        norm = self._norm(number + 1, i)
        return few_rows_normed(
            inner, layer.down, self.parts, norm, gain=second.gain, residual=x.rows
        )

    def heads_of(self, number: int, i: int, x: Normed, rotary: Rotary | None) -> Tensor:
        """Queries, and keys and values where the layer makes them, of tokens [T, W] at step i."""
        layer = self.layers[number]
        bias, turned = layer.norms[i][0].bias, layer.turned(self.heads)
        return few_rows(
            x, layer.reads, self.parts, eps=self.eps, bias=bias, rotary=rotary, turned=turned
        )

    def _norm(self, number: int, i: int) -> Tensor:
        """The weights of the norm that a layer begins with at step i, or the exit."""
        ended = number == len(self.layers)
        return (self.exits[i] if ended else self.layers[number].norms[i][0]).norm

    def _tokens(self, i: int, x: Tensor, readings: Sequence[Reading], span: Span) -> Normed:
        tokens = self.enter(x, self.entries[i], i)
        for number, read in enumerate(readings):
            qkv = self.heads_of(number, i, tokens, read.rotary)
            tokens = self.layer(number, i, tokens, qkv, read, span)
        return tokens

    def _exit(
        self, i: int, x: Normed, gain: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        return few_rows(
            x,
            self.head,
            self.parts,
            eps=self.eps,
            bias=self.exits[i].bias,
            gain=gain,
            residual=residual,
            dtype=torch.float32,
        )


def joined(heads: Heads, *weights: Tensor) -> Tensor:
    """The rows of queries, keys and values, as `few_rows.neighbours` puts them."""
    return neighbours(torch.cat(weights), heads.size)
