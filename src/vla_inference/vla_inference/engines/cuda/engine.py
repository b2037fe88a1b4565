"""The CUDA engine: fused weights, static buffers, CUDA graphs.

One observation at a time has graphs for its context length: a longer or shorter instruction is
captured when it first comes. Batches go by `batch`; those of OpenVLA-OFT by the plain path over
the same weights, past the vision encoders.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from vla_inference.engines.base import Engine, Vision
from vla_inference.engines.cuda.batch import (
    DECODE,
    VISION,
    BatchDecoder,
    BatchVision,
    round_up,
    rounded,
    sizes,
)
from vla_inference.engines.cuda.graphs import Graphs
from vla_inference.engines.cuda.head import CudaHead
from vla_inference.engines.cuda.llama import CudaLlama
from vla_inference.engines.cuda.text import BLOCK, TextDecoder
from vla_inference.engines.cuda.vision import CudaVision
from vla_inference.openvla.model import VLA

KEPT = 32  # captured context lengths
PROMPT = 256  # tokens of text that fit the buffers; longer ones take the plain path


class CudaEngine(Engine):
    """See the module. matmul_by: how the prefill multiplies quantised weights (`QuantWeight`)."""

    name = "torch"

    def __init__(self, model: VLA, vision: Vision | None = None, matmul_by: str | None = None):
        super().__init__(model, vision)
        c = model.config
        self.own_vision = vision is None
        extra = c.head.num_slots + 1 if c.head.decoding == "parallel" else c.head.num_tokens
        self.longest = c.head.num_images * c.num_patches + PROMPT + c.reasoning_tokens
        self.positions = self.longest + extra + (BLOCK if c.reasoning_tokens else 0)
        self.llama = CudaLlama(model, self.positions, matmul_by or usual_matmul_by())
        self.encoders = CudaVision(model) if self.own_vision else None
        size = c.encoders[0].image_size
        self._images = torch.zeros(
            c.head.num_images, size, size, 3, dtype=torch.uint8, device=self.device
        )
        self._staging = torch.zeros(self._images.shape, dtype=torch.uint8, pin_memory=True)
        state = torch.zeros(1, max(c.head.proprio_dim, 1), dtype=self.dtype, pin_memory=True)
        self._state, self._proprio = state, state.to(self.device)
        self._ids = torch.zeros(1, self.positions, dtype=torch.long, device=self.device)
        self._asked: Tensor | None = None  # what was copied there last
        wide = c.llm.hidden_size
        self._context = torch.zeros(1, self.positions, wide, dtype=self.dtype, device=self.device)
        self._tokens = torch.zeros(c.head.num_tokens, 1, dtype=torch.long, device=self.device)
        self._hidden = torch.zeros(c.head.num_tokens, wide, dtype=self.dtype, device=self.device)
        self._stop = torch.full((1, 1), c.stop_token_id, device=self.device)
        # Embeddings of the first token, and of the last one so far.
        self._first, self._word = torch.zeros(2, wide, dtype=self.dtype, device=self.device)
        self._graphs = Graphs(3 * KEPT)  # observe, prefill, decode
        self._chunk: tuple[Tensor, Tensor] | None = None
        self.head = CudaHead(model.action_head) if c.head.type == "l1" else None
        self.pads = c.head.decoding == "autoregressive"
        self.batches = sizes()
        self._batch_vision: BatchVision | None = None
        self._batch_decoder: BatchDecoder | None = None
        self._text = self._acts = None
        if c.reasoning_tokens:  # after text of any length, which no graph of a length would fit
            every = model.language_model.output
            self._text = TextDecoder(self.llama, self._graphs.replay, every)
            self._acts = TextDecoder(
                self.llama, self._graphs.replay, self.llama.head, self.llama.first
            )

    # -- from the host to the context ---------------------------------------------------------

    @torch.inference_mode()
    def observe(self, ids: Tensor, images: Tensor, proprio: Tensor | None = None) -> Tensor:
        if len(ids) > 1 and self.own_vision:
            return self._observe_batch(ids, images, proprio)
        if ids.shape[1] > PROMPT or not self.own_vision:
            return super().observe(ids, images, proprio)
        n = ids.shape[1]
        if ids is not self._asked:  # a sentence's ids are made once
            self._ids[:, :n].copy_(ids, non_blocking=True)
            self._asked = ids
        self._staging.copy_(images[0])  # the last step's transfer is over: its action is known
        if proprio is not None:
            self._state.copy_(proprio)
        return self._graphs.replay(("observe", n), lambda: self._observe(n))

    def _observe(self, n: int) -> Tensor:
        self._images.copy_(self._staging, non_blocking=True)
        pixels = self._preprocess.normalise(self._images).to(self.dtype)[None]
        text = self.model.embed_tokens(self._ids[:, :n])
        assert self.encoders is not None  # asked for where `own_vision` alone
        parts = [text[:, :1], self.encoders(pixels)]
        if self.config.head.proprio_dim:
            self._proprio.copy_(self._state, non_blocking=True)
            parts.append(self.model.embed_proprio(self._proprio))
        parts.append(text[:, 1:])
        length = sum(p.shape[1] for p in parts)
        return torch.cat(parts, dim=1, out=self._context[:, :length])

    def _observe_batch(self, ids: Tensor, images: Tensor, proprio: Tensor | None) -> Tensor:
        vision, size = self._batch_vision, rounded(len(ids))
        if vision is None or vision.size < size:
            self._graphs.drop(VISION)
            assert self.encoders is not None
            vision = BatchVision(self.config, self.encoders, self._graphs.replay, size)
            self._batch_vision = vision
        text = self.model.embed_tokens(ids)
        parts = [text[:, :1], vision(images)]
        if self.config.head.proprio_dim:
            assert proprio is not None  # a policy refuses observations without it
            parts.append(self.model.embed_proprio(proprio.to(self.device, self.dtype)))
        return torch.cat([*parts, text[:, 1:]], dim=1)

    # -- from the context to the action -------------------------------------------------------

    @torch.inference_mode()
    def generate(
        self, context: Tensor, lengths: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if len(context) > 1:
            yield from self._generate_batch(context, lengths)
            return
        if context.shape[1] > self.longest:
            yield from super().generate(context)
            return
        n = context.shape[1]
        if self._acts is not None:
            steps = self._acts.generate(self.llama.prefill(context[0].clone()), n)
            for token, hidden in islice(steps, self.config.head.num_tokens):
                yield token[None], hidden[None]
            return
        self._take(context)
        self._graphs.replay(("prefill", n), lambda: self._prefill(n))
        yield self._tokens[0], self._hidden[:1]
        # One graph for all that follow: the host cannot come too late between them.
        self._graphs.replay(("decode", n), lambda: self._decode(n))
        for i in range(1, self.config.head.num_tokens):
            yield self._tokens[i], self._hidden[i : i + 1]

    @torch.inference_mode()
    def generate_text(self, context: Tensor, limit: int) -> Iterator[int]:
        n = context.shape[1]
        if self._text is None or n + limit + BLOCK > self.positions:
            yield from super().generate_text(context, limit)
            return
        steps = self._text.generate(self.llama.prefill(context[0].clone()), n)
        for token, _ in islice(steps, limit):
            yield int(token)
            if int(token) in (-1, self.config.stop_token_id):
                return

    def _generate_batch(
        self, context: Tensor, lengths: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        (b, n, _), steps = context.shape, self.config.head.num_tokens
        decoder, size, positions = self._batch_decoder, rounded(b), round_up(n + steps)
        if decoder is None or decoder.size < size or decoder.positions < positions:
            if decoder is not None:
                size, positions = max(size, decoder.size), max(positions, decoder.positions)
            self._graphs.drop(DECODE)
            self._batch_decoder = decoder = None  # before another cache is made
            decoder = BatchDecoder(self.llama, self._graphs.replay, size, positions, steps)
            self._batch_decoder = decoder
        if lengths is None:
            lengths = torch.full((b,), n, device=self.device)
        yield from decoder.generate(context, lengths)

    def _prefill(self, n: int) -> None:
        self._read(self.llama.prefill(self._context[0, :n].clone()), 0, self._first)

    def _decode(self, n: int) -> None:
        # What is read is not written: a graph is run once before it is captured.
        word = self._first
        for i in range(1, self.config.head.num_tokens):
            self._read(self.llama.decode(word, n + i - 1), i, self._word)
            word = self._word

    def _read(self, state: Tensor, i: int, word: Tensor) -> None:
        self.llama.read_token(state, self._tokens[i], self._hidden[i], word)

    @torch.inference_mode()
    def action_hidden(self, context: Tensor, lengths: Tensor | None = None) -> Tensor:
        several = len(context) > 1 or lengths is not None
        if several or context.shape[1] > self.longest or self._text is not None:
            return super().action_hidden(context, lengths)
        n = context.shape[1]
        self._take(context)
        hidden, chunk = self._graphs.replay(("slots", n), lambda: self._slots(n))
        self._chunk = hidden, chunk
        return hidden

    def _slots(self, n: int) -> tuple[Tensor, Tensor | None]:
        head, context = self.config.head, self._context[:, :n]
        stop = self.model.embed_tokens(self._stop)
        sequence = torch.cat([context, self.model.embed_slots(head.num_slots), stop], dim=1)
        kept = slice(n - 1, n - 1 + head.num_slots)  # each is read one position early
        hidden = self.llama.encode(sequence[0], kept)[None]
        chunk = self.head(hidden[0])[None] if self.head else None
        return hidden, chunk

    def read_chunk(self, hidden: Tensor) -> Tensor:
        """Returns the stored result if `hidden` is what `action_hidden` returned last."""
        if self._chunk is not None and hidden is self._chunk[0]:
            return self._chunk[1]
        return super().read_chunk(hidden)

    def _take(self, context: Tensor) -> None:
        mine = self._context[:, : context.shape[1]]
        if mine.data_ptr() != context.data_ptr():
            mine.copy_(context)


make = CudaEngine  # by this name the registry finds the engine of any device


def usual_matmul_by() -> str:
    """FP8 if the tensor cores support it (sm_89 on), int8 otherwise."""
    return "fp8" if torch.cuda.get_device_capability() >= (8, 9) else "int8"
