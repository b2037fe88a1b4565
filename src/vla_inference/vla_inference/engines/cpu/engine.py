"""The CPU engine: linear layers packed and fused by oneDNN, outputs computed only where used.

It needs no compiler. It keeps a second copy of the weights, so models above `COPIED` take the
plain path.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import torch
from torch import Tensor

from vla_inference.engines.base import Engine, Vision
from vla_inference.engines.cpu.linear import packs
from vla_inference.engines.cpu.llama import CpuLlama
from vla_inference.engines.cpu.vision import CpuVision
from vla_inference.openvla.model import VLA

COPIED = 2 << 30  # bytes of weights
PROMPT = 32  # tokens of text that products are laid out for; others work as well


class CpuEngine(Engine):
    """The CPU engine; see the module. packed: as for `PackedLinear`; None: if oneDNN can."""

    name = "torch"

    def __init__(self, model: VLA, vision: Vision | None = None, packed: bool | None = None):
        super().__init__(model, vision)
        keep_memory()
        c = model.config
        tail = c.head.num_slots + 1 if c.head.decoding == "parallel" else 0
        rows = c.head.num_images * c.num_patches + PROMPT + tail
        with torch.inference_mode():
            self.llama = CpuLlama(model, rows, packed)
            self.own = CpuVision(model, packed) if vision is None else None
            self.vision = self.own or self.vision
            stop = self.embed_tokens(torch.tensor([[c.stop_token_id]]))
            self._tail = stop
            if tail:
                self._tail = torch.cat([self.embed_slots(tail - 1).to(stop), stop], dim=1)

    @torch.inference_mode()
    def observe(self, ids: Tensor, images: Tensor, proprio: Tensor | None = None) -> Tensor:
        if self.own is None:
            return super().observe(ids, images, proprio)
        text = self.embed_tokens(ids)
        parts = [text[:, :1], self.own.from_bytes(images)]
        if self.config.head.proprio_dim:
            assert proprio is not None  # a policy refuses observations without it
            parts.append(self.embed_proprio(proprio.to(self.dtype)))
        return torch.cat([*parts, text[:, 1:]], dim=1)

    @torch.inference_mode()
    def action_hidden(self, context: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is not None:
            return super().action_hidden(context, lengths)
        b, n, _ = context.shape
        sequence = torch.cat([context, self._tail.expand(b, -1, -1)], dim=1)
        read = slice(n - 1, n - 1 + self.config.head.num_slots)
        return self.llama.encode(sequence, wanted=read)

    @torch.inference_mode()
    def encode(self, embeddings: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.llama.encode(embeddings, padding)

    @torch.inference_mode()
    def prefill(self, embeddings: Tensor) -> tuple[Tensor, Any]:
        room = self.config.head.num_tokens + self.config.reasoning_tokens
        return self.llama.prefill(embeddings, room)

    @torch.inference_mode()
    def decode(self, embedding: Tensor, cache: Any) -> tuple[Tensor, Any]:
        return self.llama.decode(embedding, cache)


def keep_memory() -> None:
    """Lets glibc keep up to 128 MiB of freed memory, for the whole process.

    It returns larger pieces to the system at once, and every pass then pays for fresh pages: a
    quarter of its time. Other C libraries stay as they are.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(-1, 128 << 20)  # M_TRIM_THRESHOLD
            mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, the largest there may be


def make(model: VLA, **options: Any) -> Engine:
    """The CPU engine, or the plain one for models that are too large or of another dtype."""
    weights = [*model.parameters(), *model.buffers()]
    size = sum(w.numel() * w.element_size() for w in weights)
    dtype = model.language_model.model.embed_tokens.weight.dtype
    if size > COPIED or not (dtype == torch.float32 or packs(dtype)):
        return Engine(model, **options)
    return CpuEngine(model, **options)
