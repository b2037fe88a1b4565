"""`CudaNetwork`: a flow-matching family's model as the CUDA engine runs it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from vla_inference.kernels.few_rows import Parts
from vla_inference.policies.lerobot.cuda.expert import CudaExpert, Reading
from vla_inference.policies.lerobot.cuda.language import CudaLanguage, Heads, Rotary, Span
from vla_inference.policies.lerobot.cuda.siglip import CudaSiglip
from vla_inference.policies.lerobot.network.attention import Prefix, rotation
from vla_inference.policies.lerobot.network.siglip import VisionEncoder


class CudaNetwork:
    """Reads one observation into static buffers, and moves actions at the steps' times.

    A prefix is images, words, padding, and perhaps a token of the state. What comes after the
    padding takes the positions that go on from the words'.

    images: most of an observation. tokens: of an image. words: room for them. extra: slots behind
    the words. chunk: steps of an answer.
    """

    vision: CudaSiglip
    language: CudaLanguage
    expert: CudaExpert

    def __init__(
        self,
        encoder: VisionEncoder,
        heads: Heads,
        images: int,
        tokens: int,
        words: int,
        extra: int,
        chunk: int,
    ):
        self.vision, self.heads = CudaSiglip(encoder), heads
        self.tokens, self.extra, self.chunk = tokens, extra, chunk
        self.slots = images * tokens + words + extra
        weight = encoder.position.weight
        self.dtype, self.device = weight.dtype, weight.device
        self.parts = Parts(self.device)
        every = torch.arange(self.slots + chunk, device=self.device)
        self._every = every
        cos, sin = rotation(every[None], heads.size)
        self._table = cos[0, 0].contiguous(), sin[0, 0].contiguous()
        self._turns = torch.empty_like(self._table[0]), torch.empty_like(self._table[1])
        self._length = torch.zeros(1, dtype=torch.int32, device=self.device)

    # -- what a family says -------------------------------------------------------------------

    @abstractmethod
    def embed(self, images: Tensor, words: Tensor, state: Tensor) -> Tensor:
        """The prefix that the language model reads [n, W]: images [I, 3, S, S], ids [L], state
        [1, S]."""

    def finish(self, state: Tensor, span: Span) -> None:
        """What is left to do once the language model has read."""
        return

    @abstractmethod
    def readings(self, span: Span) -> Sequence[Reading]:
        """What each of the expert's layers reads."""

    # -- an answer ----------------------------------------------------------------------------

    def read(self, images: Tensor, words: Tensor, count: Tensor, state: Tensor) -> None:
        """Fills the cache. count: int [1], words that are no padding; the others as in `embed`."""
        span = self.span(len(images), len(words))
        torch.add(count, len(images) * self.tokens, out=self._length)
        rows = span.slots + self.chunk
        slot = self._every[:rows]
        position = torch.where(slot < span.resumes, slot, slot - span.resumes + self._length)
        for table, turn in zip(self._table, self._turns, strict=True):
            torch.index_select(table, 0, position, out=turn[:rows])
        x = self.embed(images, words, state)
        self.language.read(x, self.turns(0, len(x)), span)
        self.finish(state, span)

    def sample(self, x: Tensor, images: int, words: int) -> Tensor:
        """From noise to actions, float32 [T, action_dim], for a prefix of that shape."""
        span = self.span(images, words)
        readings = self.readings(span)
        for i in range(self.expert.steps):
            x = self.expert.step(i, x, readings, span)
        return x

    def velocity(self, i: int, x: Tensor, images: int, words: int) -> Tensor:
        """How actions float32 [T, action_dim] move at step i."""
        span = self.span(images, words)
        return self.expert.velocity(i, x, self.readings(span), span)

    def prefix(self, images: int, words: int) -> Prefix:
        """What was read, as the plain model takes it."""
        span = self.span(images, words)
        slot = self._every[: span.slots]
        mask = (slot < span.length) | (slot >= span.resumes)
        cache = self.language.cache[:, :, None, :, : span.slots]
        return Prefix([c[0] for c in cache], [c[1] for c in cache], mask[None])

    def span(self, images: int, words: int) -> Span:
        resumes = images * self.tokens + words
        return Span(self._length, resumes, resumes + self.extra)

    def turns(self, first: int, count: int) -> Rotary:
        """Rotary embedding of these slots of the observation that was read."""
        return self._turns[0][first : first + count], self._turns[1][first : first + count]

    def counted(self, count: int) -> Rotary:
        """Rotary embedding of positions from 0 on."""
        return self._table[0][:count], self._table[1][:count]
