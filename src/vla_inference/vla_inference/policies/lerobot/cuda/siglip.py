"""SigLIP on CUDA: fused small kernels, one product for queries, keys and values."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vla_inference.engines.cuda.vision import embed_patches
from vla_inference.engines.cuda.weights import join
from vla_inference.kernels.attention import attention
from vla_inference.kernels.layers import gelu_, layer_norm
from vla_inference.policies.lerobot.network.siglip import VisionEncoder, VisionLayer


class CudaSiglip:
    """The encoder's own weights, on the rows [I * patches, width] of all images."""

    def __init__(self, encoder: VisionEncoder):
        self.encoder = encoder
        self.layers = [FusedVisionLayer(layer) for layer in encoder.layers]

    def __call__(self, images: Tensor) -> Tensor:
        """[I, 3, S, S] in -1 to 1 -> features of the patches [I, patches, width]"""
        x = embed_patches(images, self.encoder.patch) + self.encoder.position.weight
        count, n, _ = x.shape
        x, add = x.flatten(0, 1), None
        for layer in self.layers:
            add = layer(x, add, count)
        norm = self.encoder.norm
        return layer_norm(x, add, None, norm.weight, norm.bias, norm.eps).view(count, n, -1)


class FusedVisionLayer:
    def __init__(self, layer: VisionLayer):
        self.layer = layer
        qkv = [layer.q, layer.k, layer.v]
        self.weight, self.bias = join(qkv, "weight"), join(qkv, "bias")

    def __call__(self, x: Tensor, add: Tensor | None, count: int) -> Tensor:
        """What the layer adds to the residual x, which takes up `add` and the attention's."""
        own = self.layer
        y = layer_norm(x, add, None, own.norm1.weight, own.norm1.bias, own.norm1.eps)
        qkv = F.linear(y, self.weight, self.bias)
        heads = qkv.view(count, -1, 3, own.heads, own.q.out_features // own.heads)
        attended = own.out(attention(*heads.permute(2, 0, 3, 1, 4)))
        y = layer_norm(x, attended, None, own.norm2.weight, own.norm2.bias, own.norm2.eps)
        return own.fc2(gelu_(own.fc1(y), "gelu_tanh"))
