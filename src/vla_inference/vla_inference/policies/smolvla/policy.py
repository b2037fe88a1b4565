"""`SmolVLAPolicy`: SmolVLA as a `Policy`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vla_inference.policies.base import LoadOptions
from vla_inference.policies.lerobot.checkpoint import LeRobotCheckpoint
from vla_inference.policies.lerobot.flow import FlowSizes, Inputs
from vla_inference.policies.lerobot.images import resize_with_pad, to_tensor
from vla_inference.policies.lerobot.loading import build
from vla_inference.policies.lerobot.policy import FlowPolicy
from vla_inference.policies.lerobot.tokenizer import find_tokenizer
from vla_inference.policies.smolvla.config import SmolVLAConfig, read_config
from vla_inference.policies.smolvla.model import SmolVLA
from vla_inference.policies.smolvla.weights import our_name

if TYPE_CHECKING:
    from vla_inference.policies.lerobot.cuda.network import CudaNetwork


class SmolVLAPolicy(FlowPolicy):
    model: SmolVLA

    def __init__(
        self, model: SmolVLA, checkpoint: LeRobotCheckpoint, tokenizer: Any, options: LoadOptions
    ):
        super().__init__(checkpoint, tokenizer, options, sizes_of(model.config))
        self.model = model

    @classmethod
    def load(cls, checkpoint: LeRobotCheckpoint, options: LoadOptions) -> SmolVLAPolicy:
        """options: device and dtype are named."""
        config = read_config(checkpoint)
        source = checkpoint.config.get("vlm_model_name", "the vision-language model")
        tokenizer = find_tokenizer(checkpoint, source, config.text.vocabulary)
        model = build(lambda: SmolVLA(config), checkpoint, our_name, options)
        policy = cls(model, checkpoint, tokenizer, options)
        policy.prepare(options)
        return policy

    def prompt(self, instruction: str, state: np.ndarray) -> str:
        return instruction if instruction.endswith("\n") else f"{instruction}\n"

    def image(self, image: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        return (
            resize_with_pad(to_tensor(image, device), *self.sizes.image_size, "left_top") * 2 - 1
        )

    def begin(self, inputs: Inputs) -> Callable[[Tensor, Tensor], Tensor]:
        prefix = self.model.prefix(*self.model.embed(*inputs))
        cross = self.model.cross_keys(prefix)
        return lambda x, time: self.model.velocity(x, time, prefix, cross)

    def network(self, images: int, words: int, matmul_by: str) -> CudaNetwork:
        from vla_inference.policies.smolvla.cuda import CudaSmolVLA

        return CudaSmolVLA(self.model, images, words, matmul_by)


def sizes_of(config: SmolVLAConfig) -> FlowSizes:
    return FlowSizes(
        config.chunk,
        config.steps,
        config.state_dim,
        config.action_dim,
        config.image_size,
        config.words,
    )
