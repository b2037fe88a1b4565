"""Several observations at once on CUDA, with the weights of the engine for one.

Contexts of several lengths are padded on the right: a position sees the past alone, so padding
changes nothing. The matrix products take the rows of all contexts together, in decode passes as
well: sixteen rows read the weights as often as one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vla_inference.engines.cuda.llama import CudaLlama
from vla_inference.engines.cuda.vision import CudaVision
from vla_inference.kernels.attention import attend_batch, attention
from vla_inference.kernels.layers import Product, rms_norm, split_heads
from vla_inference.openvla.config import ModelConfig
from vla_inference.openvla.llama import rotary
from vla_inference.openvla.preprocessing import ImagePreprocessor

LARGEST = 16  # contexts in a pass: more would save little, and take a cache each
ROUND = 16  # contexts are padded to a multiple of it: kernels are compiled for such lengths
VISION, DECODE = "vision of a batch", "decode of a batch"  # in the keys of graphs
# Captures work under a key, where it is not yet, and replays it: its result.
Graph = Callable[[tuple[str, int], Callable[[], Any]], Any]


class BatchLlama:
    """The decoder for up to `size` contexts of up to `positions` positions."""

    def __init__(self, llama: CudaLlama, size: int, positions: int):
        c = llama.c
        self.llama, self.size, self.positions = llama, size, positions
        half = c.head_dim // 2
        every = torch.arange(positions, device=llama.device)
        self.rotary = tuple(t[:, :half].contiguous() for t in rotary(every, c))
        shape = (len(llama.layers), 2, size, c.num_key_value_heads, positions, c.head_dim)
        self.cache = torch.zeros(shape, dtype=llama.dtype, device=llama.device)
        self.lengths = torch.zeros(size, dtype=torch.int32, device=llama.device)
        self.head = llama.head.float()  # 16-bit logits would tie

    def prefill(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Embeddings [B, n, H], lengths [B] -> normed states of the last positions [B, H]."""
        b, n, _ = x.shape
        self.lengths[:b].copy_(lengths)
        last = torch.arange(b, device=x.device) * n + lengths - 1
        x, add = x.flatten(0, 1), None
        for i, layer in enumerate(self.llama.layers):
            q, keys, values = self._heads(i, x, add, b)
            y = attention(q, keys[:, :, :n], values[:, :, :n], True)
            if i == len(self.llama.layers) - 1:  # only these go on beyond keys and values
                x, y = x[last], y[last]
            add = layer.after_attention(x, y, self.llama.eps)
        return rms_norm(x, add, self.llama.norm, self.llama.eps)[0]

    def decode(self, x: Tensor, step: int) -> Tensor:
        """Embeddings of one more position each [B, H] -> their normed states [B, H].

        step: how many have been decoded before.
        """
        b, add, lengths = len(x), None, self.lengths[: len(x)]
        x = x.clone()  # the residual is added to
        for i, layer in enumerate(self.llama.layers):
            q, keys, values = self._heads(i, x, add, b, lengths, step)
            y = attend_batch(q, keys, values, lengths, step)
            add = layer.after_attention(x, y, self.llama.eps)
        return rms_norm(x, add, self.llama.norm, self.llama.eps)[0]

    def choose(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Normed states [B, H] -> tokens [B], -1 where logits are not finite, and their
        embeddings [B, H]."""
        logits = hidden.float() @ self.head.T
        best = logits.argmax(-1) + self.llama.first
        token = torch.where(logits.isfinite().all(-1), best, -1)
        return token, self.llama.words[best]

    def _heads(
        self,
        i: int,
        x: Tensor,
        add: Product | None,
        b: int,
        lengths: Tensor | None = None,
        step: int = 0,
    ) -> tuple:
        """Queries [B, heads, n, d], and layer i's cache, to which keys and values are added."""
        layer, llama = self.llama.layers[i], self.llama
        normed, scales = rms_norm(x, add, layer.norm1, llama.eps, layer.qkv.activations)
        keys, values = self.cache[i, :, :b]
        qkv = layer.qkv.matmul(normed, scales)
        q = split_heads(qkv, self.rotary, keys, values, llama.heads, lengths, step, layer.bias)
        return q, keys, values


class BatchVision:
    """The vision encoders for up to `size` observations, in a graph for each size rounded up."""

    def __init__(self, config: ModelConfig, encoders: CudaVision, graph: Graph, size: int):
        self.size, self._encoders, self._graph = size, encoders, graph
        self._preprocess = ImagePreprocessor(config)
        side = config.encoders[0].image_size
        shape = (size, config.head.num_images, side, side, 3)
        self._staging = torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
        self._images = torch.zeros(shape, dtype=torch.uint8, device=encoders.device)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, images, S, S, 3] on the host -> [B, P, H]"""
        b, rows = len(images), rounded(len(images))
        self._staging[:b].copy_(images)  # the last pass's transfer is over: its actions are known
        return self._graph((VISION, rows), lambda: self._embed(rows))[:b]

    def _embed(self, rows: int) -> Tensor:
        self._images[:rows].copy_(self._staging[:rows], non_blocking=True)
        pixels = [self._preprocess.normalise(p) for p in self._images[:rows]]
        return self._encoders(torch.stack(pixels).to(self._encoders.dtype))


class BatchDecoder:
    """Action tokens for up to `size` contexts. The prefill is not captured, so that a new length
    needs no new graph: of more than a few contexts it takes longer than to launch its kernels."""

    def __init__(self, llama: CudaLlama, graph: Graph, size: int, positions: int, steps: int):
        """positions: of the cache, decoded ones included. steps: tokens of an action."""
        self.llama, self._graph = BatchLlama(llama, size, positions), graph
        self.size, self.positions, self.steps = size, positions, steps
        self._tokens = torch.zeros(steps, size, dtype=torch.long, device=llama.device)
        wide = (steps, size, llama.c.hidden_size)
        self._hidden = torch.zeros(wide, dtype=llama.dtype, device=llama.device)
        self._first = torch.zeros(wide[1:], dtype=llama.dtype, device=llama.device)

    def generate(self, context: Tensor, lengths: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """As the engine's, of contexts [B, n, H] with these lengths [B]."""
        (b, n, h), rows = context.shape, rounded(len(context))
        padded = context.new_zeros(rows, round_up(n), h)
        padded[:b, :n] = context
        real = lengths.new_full((rows,), n)
        real[:b] = lengths
        self._first[:rows] = self._read(0, self.llama.prefill(padded, real))
        yield self._tokens[0, :b], self._hidden[0, :b]
        self._graph((DECODE, rows), lambda: self._decode(rows))
        for i in range(1, self.steps):
            yield self._tokens[i, :b], self._hidden[i, :b]

    def _decode(self, rows: int) -> None:
        word = self._first[:rows]
        for i in range(1, self.steps):
            word = self._read(i, self.llama.decode(word, i - 1))

    def _read(self, i: int, hidden: Tensor) -> Tensor:
        """Keeps step i's states and tokens; returns the tokens' embeddings."""
        rows = len(hidden)
        token, word = self.llama.choose(hidden)
        self._tokens[i, :rows] = token
        self._hidden[i, :rows] = hidden
        return word


def rounded(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length()


def round_up(positions: int) -> int:
    return -(-positions // ROUND) * ROUND


def sizes() -> list[int]:
    """Sizes of batches that have graphs of their own, largest first."""
    return [1 << i for i in range(LARGEST.bit_length() - 1, 0, -1)]
