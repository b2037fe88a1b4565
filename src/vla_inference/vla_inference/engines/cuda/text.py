"""Text of any length on CUDA: one graph for each few tokens, the position in device memory.

A graph of a whole answer, as actions have, would be one for each length of prompt and of answer.
Here the kernels read from `length` where the cache is filled to, and the graph advances it, so
that one graph serves all prompts, and the host looks for the end after each block of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vla_inference.engines.cuda.llama import CudaLlama, FusedLayer
from vla_inference.kernels.attention import attend_batch
from vla_inference.kernels.layers import Product, rms_norm, split_heads

BLOCK = 8  # tokens a graph; what follows the end within a block is thrown away
TEXT = "text"  # in the keys of graphs
Graph = Callable[[tuple, Callable[[], Any]], Any]


class TextDecoder:
    """Greedy tokens after a prefill of `CudaLlama`, whose cache it extends.

    head: rows of the output matrix to choose from [V, H]; first: the id of its first row.
    block: tokens a graph. The cache needs room for a block beyond the last that is asked for.
    """

    def __init__(
        self, llama: CudaLlama, graph: Graph, head: Tensor, first: int = 0, block: int = BLOCK
    ):
        self.llama, self.head, self.first, self.block = llama, head, first, block
        self._graph, self._key = graph, (TEXT, first)
        device, wide = llama.device, llama.c.hidden_size
        self._length = torch.zeros(1, dtype=torch.int32, device=device)
        # Embeddings: of the token before a block, and of its last. What a graph reads it does not
        # write, because it is run once before it is captured.
        self._word, self._next = torch.zeros(2, wide, dtype=llama.dtype, device=device)
        self._tokens = torch.zeros(block, dtype=torch.long, device=device)
        self._hidden = torch.zeros(block, wide, dtype=llama.dtype, device=device)

    def generate(self, state: Tensor, position: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens [] and the normed states [H] they were read from, without an end.

        state: of the last position so far, before the norm [H]; position: how many there are.
        """
        token, hidden, word = self._read(state)
        self._word.copy_(word)
        yield token, hidden
        self._length.fill_(position)
        while True:
            self._graph(self._key, self._block)
            yield from zip(self._tokens.clone(), self._hidden.clone(), strict=True)
            self._word.copy_(self._next)
            self._length += self.block

    def _block(self) -> None:
        word = self._word
        for i in range(self.block):
            token, hidden, word = self._read(self._decode(word, i))
            self._tokens[i], self._hidden[i] = token, hidden
        self._next.copy_(word)

    def _decode(self, x: Tensor, step: int) -> Tensor:
        """Embedding [H] of the position after `_length` + step -> its state before the norm."""
        for i, layer in enumerate(self.llama.layers):
            x = self._layer(i, layer, x, step)
        return x

    def _layer(self, i: int, layer: FusedLayer, x: Tensor, step: int) -> Tensor:
        llama, c = self.llama, self.llama.c
        qkv = llama._new((c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim)
        layer.qkv.matvec(x, qkv, norm=layer.norm1, eps=llama.eps, residual=layer.bias)
        keys, values = llama.cache[i][:, None]
        where = keys, values, llama.heads, self._length, step
        q = split_heads(Product(qkv[None]), llama.rotary, *where)
        y = attend_batch(q.contiguous(), keys, values, self._length, step)[0]
        x = layer.o.matvec(y, llama._new(c.hidden_size), residual=x)
        y = llama._new(layer.inner)
        layer.gate_up.matvec(x, y, norm=layer.norm2, eps=llama.eps, pair=True)
        return layer.down.matvec(y, llama._new(c.hidden_size), residual=x)

    def _read(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A state before the norm [H] -> token [], normed state [H], the token's embedding [H]."""
        llama = self.llama
        hidden = rms_norm(state[None], None, llama.norm, llama.eps)[0][0]
        logits = llama._dense_one(self.head, hidden)
        best = logits.argmax() + self.first
        token = torch.where(logits.isfinite().all(), best, -1)
        return token, hidden, llama.words[best]
