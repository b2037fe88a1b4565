"""pi0 and pi0.5 on CUDA."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vla_inference.engines.cuda.llama import FusedLayer
from vla_inference.engines.cuda.weights import join
from vla_inference.policies.lerobot.cuda.expert import (
    CudaExpert,
    Entry,
    ExpertLayer,
    Modulation,
    Reading,
    joined,
)
from vla_inference.policies.lerobot.cuda.language import CudaLanguage, Heads, Span
from vla_inference.policies.lerobot.cuda.network import CudaNetwork
from vla_inference.policies.lerobot.cuda.times import embedded_times, mixed_entries
from vla_inference.policies.pi05.model import EPS, Layer, Norm, Pi

GATE = "gelu_tanh"


class CudaPi(CudaNetwork):
    """images: most of an observation. words: room for them. matmul_by: as of the OpenVLA engine's
    quantised weights."""

    def __init__(self, model: Pi, images: int, words: int, matmul_by: str):
        c, t = model.config, model.config.text
        self.model = model
        heads, tokens = Heads(t.heads, t.kv_heads, t.head), (c.vision.image // c.vision.patch) ** 2
        state = int(c.state_dim > 0)
        super().__init__(model.vision, heads, images, tokens, words, state, c.chunk)
        layers = [fused(layer, matmul_by, self.dtype) for layer in model.language.layers]
        like = model.vision.position.weight
        self.language = CudaLanguage(layers, heads, EPS, self.slots, like, self.parts)
        if state:
            self._state_bias = model.state_proj.bias.float()
        times = embedded_times(c, self.device)
        inward, out = model.action_in_proj, model.action_out_proj
        conditions: Sequence[Tensor | None] = [None] * c.steps
        if c.expert.condition:
            by = model.time_mlp_in, model.time_mlp_out
            for part in by:
                times = F.silu(F.linear(times, part.weight.float(), part.bias.float()))
            conditions = list(times)
            entries = [[Entry(inward.weight, inward.bias.float())]] * c.steps
        else:
            entries = mixed_entries(times, inward, model.time_mlp_in, model.time_mlp_out)
        exits = [
            Modulation(norm, out.bias.float() + (0 if bias is None else bias))
            for norm, bias, _ in modulations(model.expert.norm, conditions, out.weight)
        ]
        self.expert = CudaExpert(
            [expert_layer(layer, heads, conditions) for layer in model.expert.layers],
            entries,
            exits,
            out.weight,
            heads,
            EPS,
            GATE,
            self.parts,
        )

    def embed(self, images: Tensor, words: Tensor, state: Tensor) -> Tensor:
        model, width = self.model, self.model.config.text.width
        seen = model.projector(self.vision(images)).flatten(0, 1)
        return torch.cat([seen, F.embedding(words, model.embedding.weight) * width**0.5])

    def finish(self, state: Tensor, span: Span) -> None:
        """Reads pi0's token of the state, whose keys and values join the cache."""
        if not self.extra:
            return
        expert, heads, by = self.expert, self.heads, self.model.state_proj
        place, turn = span.resumes, self.turns(span.resumes, 1)
        before = Span(span.length, place, place)
        x = expert.enter(state, [Entry(by.weight, self._state_bias)], 0)
        for number, (keys, values) in enumerate(self.language.cache):
            read = Reading(keys[:, :place], values[:, :place], turn)
            qkv = expert.heads_of(number, 0, x, turn)
            _, k, v = qkv.view(-1, heads.size).split([heads.heads, heads.kv_heads, heads.kv_heads])
            keys[:, place], values[:, place] = k, v
            x = expert.layer(number, 0, x, qkv, read, before)

    def readings(self, span: Span) -> Sequence[Reading]:
        turn = self.turns(span.slots, self.chunk)
        cache = self.language.cache[:, :, :, : span.slots]
        return [Reading(keys, values, turn) for keys, values in cache]


def fused(layer: Layer, matmul_by: str, dtype: torch.dtype) -> FusedLayer:
    return FusedLayer(
        [layer.q, layer.k, layer.v],
        layer.out,
        [layer.gate, layer.up],
        layer.down,
        (1 + layer.norm1.weight.float(), 1 + layer.norm2.weight.float()),
        matmul_by,
        dtype,
        GATE,
    )


def expert_layer(layer: Layer, heads: Heads, conditions: Sequence[Tensor | None]) -> ExpertLayer:
    reads = joined(heads, layer.q.weight, layer.k.weight, layer.v.weight)
    gate_up = join([layer.gate, layer.up], "weight")
    first = modulations(layer.norm1, conditions, reads)
    second = modulations(layer.norm2, conditions, gate_up)
    norms = list(zip(first, second, strict=True))
    return ExpertLayer(reads, layer.out.weight, gate_up, layer.down.weight, norms, "all")


def modulations(
    norm: Norm, conditions: Sequence[Tensor | None], following: Tensor
) -> list[Modulation]:
    """A norm at each step. following: the weight [N, W] of the product that reads it."""
    if conditions[0] is None:
        return [Modulation(1 + norm.weight.float())] * len(conditions)
    every = torch.stack([c for c in conditions if c is not None])
    dense, weight = norm.dense, following.float()
    scale, shift, gate = F.linear(every, dense.weight.float(), dense.bias.float()).chunk(3, -1)
    biases = F.linear(shift, weight)
    return [
        Modulation(1 + s, b, g.contiguous()) for s, b, g in zip(scale, biases, gate, strict=True)
    ]
