"""SmolVLA on CUDA."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vla_inference.engines.cuda.llama import FusedLayer
from vla_inference.engines.cuda.weights import join
from vla_inference.policies.lerobot.cuda.expert import (
    CudaExpert,
    ExpertLayer,
    Modulation,
    Reading,
    joined,
)
from vla_inference.policies.lerobot.cuda.language import CudaLanguage, Heads, Span
from vla_inference.policies.lerobot.cuda.network import CudaNetwork
from vla_inference.policies.lerobot.cuda.times import embedded_times, mixed_entries
from vla_inference.policies.smolvla.model import Layer, SmolVLA, pixel_shuffle


class CudaSmolVLA(CudaNetwork):
    """images: most of an observation. words: room for them. matmul_by: as of the OpenVLA engine's
    quantised weights."""

    def __init__(self, model: SmolVLA, images: int, words: int, matmul_by: str):
        c = model.config
        self.model = model
        heads = Heads(c.text.heads, c.text.kv_heads, c.text.head)
        side = c.vision.image // c.vision.patch // c.shuffle
        super().__init__(model.vision, heads, images, side * side, words, 1, c.chunk)
        layers = [fused(layer, matmul_by, self.dtype) for layer in model.language.layers]
        like = model.vision.position.weight
        self.language = CudaLanguage(
            layers, heads, c.text.eps, self.slots, like, self.parts, last_alone=True
        )
        self._schedule = list(c.expert.schedule(model.expert.layers))
        out, by = model.action_out_proj, (model.action_time_mlp_in, model.action_time_mlp_out)
        self.expert = CudaExpert(
            [expert_layer(layer, own, heads, c.steps) for _, layer, own in self._schedule],
            mixed_entries(embedded_times(c, self.device), model.action_in_proj, *by),
            [Modulation(model.expert.norm.weight.float(), out.bias.float())] * c.steps,
            out.weight,
            heads,
            c.text.eps,
            "silu",
            self.parts,
        )
        self._make_cross()

    def _make_cross(self) -> None:
        """For the layers that read the prefix alone: their weights, by which they make keys and
        values of its keys and values, and room for these."""
        kept = [(i, layer) for i, layer, own in self._schedule if not own]
        self._crossed = torch.tensor([i for i, _ in kept], device=self.device)
        every = [[layer.k.weight.T for _, layer in kept], [layer.v.weight.T for _, layer in kept]]
        self._by = [torch.stack(weights) for weights in every if weights]
        width = self.heads.kv_heads * self.heads.size
        shape = (2, len(kept), self.slots, width)
        self._cross = torch.zeros(shape, dtype=self.dtype, device=self.device)

    def embed(self, images: Tensor, words: Tensor, state: Tensor) -> Tensor:
        model, width = self.model, self.model.config.text.width
        seen = model.connector(pixel_shuffle(self.vision(images), model.config.shuffle))
        told = F.embedding(words, model.language.embedding.weight)
        both = torch.cat([seen.flatten(0, 1), told]) * width**0.5
        return torch.cat([both, model.state_proj(state)])

    def finish(self, state: Tensor, span: Span) -> None:
        """Keys and values of the layers that read the prefix alone."""
        for which, by in enumerate(self._by):
            every = self.language.cache[:, which, :, : span.slots]
            read = every.index_select(0, self._crossed).transpose(1, 2).flatten(2)
            self._cross[which, :, : span.slots] = torch.bmm(read, by)

    def readings(self, span: Span) -> Sequence[Reading]:
        after, alone = self.turns(span.slots, self.chunk), self.counted(self.chunk)
        cross = self._cross[:, :, : span.slots].unflatten(3, (-1, self.heads.size))
        crossed, found = iter(cross.transpose(2, 3).unbind(1)), []
        for i, _, own in self._schedule:
            keys, values = self.language.cache[i, :, :, : span.slots] if own else next(crossed)
            found.append(Reading(keys, values, after if own else alone))
        return found


def fused(layer: Layer, matmul_by: str, dtype: torch.dtype) -> FusedLayer:
    return FusedLayer(
        [layer.q, layer.k, layer.v],
        layer.out,
        [layer.gate, layer.up],
        layer.down,
        (layer.norm1.weight, layer.norm2.weight),
        matmul_by,
        dtype,
    )


def expert_layer(layer: Layer, own: bool, heads: Heads, steps: int) -> ExpertLayer:
    reads = [layer.q, layer.k, layer.v] if own else [layer.q]
    norms = Modulation(layer.norm1.weight.float()), Modulation(layer.norm2.weight.float())
    return ExpertLayer(
        joined(heads, *(part.weight for part in reads)),
        layer.out.weight,
        join([layer.gate, layer.up], "weight"),
        layer.down.weight,
        [norms] * steps,
        "causal" if own else "",
    )
