"""The interface that every engine implements, part by part of a model.

An engine is an `ActionDecoder`. This one runs the plain modules and lets parts be replaced:
`vision` (ONNX Runtime, TensorRT) and `language` (TVM, MLC). What passes between parts is
embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from vla_inference.openvla.decoding import ActionDecoder
from vla_inference.openvla.model import VLA
from vla_inference.openvla.preprocessing import ImagePreprocessor


class Vision(Protocol):
    """Both vision encoders and the projector."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalised images [B, images * vision encoders * 3, S, S] -> [B, P, H]"""


class Language(Protocol):
    """The Llama decoder from embeddings to normed hidden states; shapes as in `ActionDecoder`."""

    def prefill(self, embeddings: Tensor) -> tuple[Tensor, Any]: ...
    def decode(self, embedding: Tensor, cache: Any) -> tuple[Tensor, Any]: ...
    def encode(self, embeddings: Tensor, padding: Tensor | None = None) -> Tensor: ...


class Engine(ActionDecoder):
    """Runs the model's own modules, or replacements for them.

    pads: whether `generate` takes contexts of several lengths, padded on the right.
    batches: the sizes of batches that it prepares for, largest first; none: it takes any.
    """

    name = "plain"
    pads = False
    batches: Sequence[int] = ()

    def __init__(self, model: VLA, vision: Vision | None = None, language: Language | None = None):
        self.model, self.config = model, model.config
        self.vision: Vision = vision or model.embed_images
        self.language: Language = language or model
        self._preprocess = ImagePreprocessor(model.config)
        some = model.language_model.model.embed_tokens.weight
        self.device, self.dtype = some.device, some.dtype

    def observe(self, ids: Tensor, images: Tensor, proprio: Tensor | None = None) -> Tensor:
        """From inputs on the host to the context's embeddings [B, n, H].

        ids: [B, n] on the device; images: uint8 [B, images, S, S, 3] on the host;
        proprio: normalised float [B, S] on the host, or None.
        """
        pixels = torch.stack([self._preprocess.normalise(p) for p in images.to(self.device)])
        if proprio is not None:
            proprio = proprio.to(self.device, self.dtype)
        return self.context(ids, pixels.to(self.dtype), proprio)

    def embed_images(self, pixels: Tensor) -> Tensor:
        return self.vision(pixels)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return self.model.embed_tokens(ids)

    def embed_proprio(self, proprio: Tensor) -> Tensor:
        return self.model.embed_proprio(proprio)

    def embed_slots(self, count: int) -> Tensor:
        return self.model.embed_slots(count)

    def prefill(self, embeddings: Tensor) -> tuple[Tensor, Any]:
        return self.language.prefill(embeddings)

    def decode(self, embedding: Tensor, cache: Any) -> tuple[Tensor, Any]:
        return self.language.decode(embedding, cache)

    def encode(self, embeddings: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.language.encode(embeddings, padding)

    def action_logits(self, hidden: Tensor) -> Tensor:
        return self.model.action_logits(hidden)

    def all_logits(self, hidden: Tensor) -> Tensor:
        return self.model.all_logits(hidden)

    def read_chunk(self, hidden: Tensor) -> Tensor:
        return self.model.read_chunk(hidden)
