"""Sets up model modules for training: no cache, compilation, activation checkpointing.

`prepare` changes classes, not parameters: names and weights stay, and in `eval()` everything runs
as in inference.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vla_inference.openvla.llama import Layer, LlamaModel, rotary
from vla_inference.openvla.model import VLA
from vla_inference.openvla.vision import Block


def _layer(layer: Layer, x, cos, sin, mask, causal) -> Tensor:
    y, _ = layer.self_attn(layer.input_layernorm(x), cos, sin, mask, causal, None)
    x = x + y
    return x + layer.mlp(layer.post_attention_layernorm(x))


def _block(block: Block, x: Tensor) -> Tensor:
    x = x + block.ls1(block.attn(block.norm1(x)))
    return x + block.ls2(block.mlp(block.norm2(x)))


class LayerRunner:
    """How layers of one kind are run: compiled or not."""

    def __init__(self, function, compiled: bool, backend: str):
        self.function = function
        if compiled:
            self.function = torch.compile(function, dynamic=False, backend=backend)

    def __call__(self, module: nn.Module, *inputs) -> Tensor:
        if module.recompute and torch.is_grad_enabled():
            return checkpoint(
                self.function, module, *inputs, use_reentrant=False, preserve_rng_state=False
            )
        return self.function(module, *inputs)


class TrainedLayer(Layer):
    recompute = False

    def forward(self, x, cos, sin, mask, causal, past=None):
        if not self.training or past is not None:
            return super().forward(x, cos, sin, mask, causal, past)
        return self.runner(self, x, cos, sin, mask, causal), None


class TrainedBlock(Block):
    recompute = False
    runner: Callable[..., Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return self.runner(self, x) if self.training else super().forward(x)


class TrainedLlama(LlamaModel):
    def forward(self, x, cache=None, *, bidirectional=False, padding=None):
        if not self.training or cache is not None:
            return super().forward(x, cache, bidirectional=bidirectional, padding=padding)
        n = x.shape[1]
        positions = torch.arange(n, device=x.device)
        cos, sin = (t.to(x.dtype) for t in rotary(positions, self.config))
        mask, causal = None, not bidirectional
        if padding is not None:
            mask = ~padding[:, None, None, :]
            if causal:
                mask = mask & (positions[None, :] <= positions[:, None])
            causal = False
        for layer in self.layers:
            x, _ = layer(x, cos, sin, mask, causal, None)
        return self.norm(x), []


def prepare(
    model: VLA, compiled: bool = False, recompute: float = 0.0, backend: str = "inductor"
) -> VLA:
    """Prepares the model's layers for training, in place; may be called again to change it.

    compiled: each kind of layer is compiled once and serves all layers of its kind.
    recompute: share of the layers whose activations are computed again on the way back instead of
        kept, evenly spread (activation checkpointing): 0 is fastest, 1 takes least memory.
    """
    if compiled:
        # One graph per kind of layer, times train/frozen and batch sizes.
        torch._dynamo.config.cache_size_limit = 64
    model.language_model.model.__class__ = TrainedLlama
    _convert(model.language_model.model.layers, TrainedLayer, _layer, compiled, recompute, backend)
    for key in model.vision_backbone.keys:
        blocks = getattr(model.vision_backbone, key).blocks
        _convert(blocks, TrainedBlock, _block, compiled, recompute, backend)
    return model


def _convert(layers, cls, function, compiled, recompute, backend) -> None:
    runner = LayerRunner(function, compiled, backend)
    for i, layer in enumerate(layers):
        if not isinstance(layer, cls):
            layer.__class__ = cls
        layer.runner = runner
        layer.recompute = int((i + 1) * recompute) > int(i * recompute)


def layers_of(model: VLA) -> list[nn.Module]:
    """Units of sharding: every block of the encoders and of the Llama."""
    encoders = [getattr(model.vision_backbone, k).blocks for k in model.vision_backbone.keys]
    return [*(b for blocks in encoders for b in blocks), *model.language_model.model.layers]
