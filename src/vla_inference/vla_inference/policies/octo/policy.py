"""`OctoPolicy`: a model of Octo's kind as a `Policy`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_inference.policies.base import LoadOptions
from vla_inference.policies.lerobot.checkpoint import LeRobotCheckpoint
from vla_inference.policies.lerobot.flow import FlowSizes, Inputs, Solve
from vla_inference.policies.lerobot.images import resize_with_pad, to_tensor
from vla_inference.policies.lerobot.loading import build
from vla_inference.policies.lerobot.policy import FlowPolicy
from vla_inference.policies.lerobot.tokenizer import find_tokenizer
from vla_inference.policies.octo.config import OctoConfig, read_config
from vla_inference.policies.octo.diffusion import Schedule, denoise
from vla_inference.policies.octo.model import Octo


class OctoPolicy(FlowPolicy):
    """Its steps from noise to actions are those of diffusion, each of which adds noise again: no
    old chunk can be continued."""

    model: Octo
    chunking = ()

    def __init__(
        self, model: Octo, checkpoint: LeRobotCheckpoint, tokenizer: Any, options: LoadOptions
    ):
        super().__init__(checkpoint, tokenizer, options, sizes_of(model.config))
        self.model, self.schedule = model, Schedule.cosine(model.config.steps)

    @classmethod
    def load(cls, checkpoint: LeRobotCheckpoint, options: LoadOptions) -> OctoPolicy:
        """options: device and dtype are named."""
        config = read_config(checkpoint)
        tokenizer = find_tokenizer(checkpoint, "the model", config.vocabulary)
        model = build(lambda: Octo(config), checkpoint, str, options)
        return cls(model, checkpoint, tokenizer, options)

    def prompt(self, instruction: str, state: np.ndarray) -> str:
        return instruction

    def image(self, image: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        sized = resize_with_pad(to_tensor(image, device), *self.sizes.image_size, "left_top")
        return sized * 2 - 1

    def begin(self, inputs: Inputs) -> Callable[[Tensor, Tensor], Tensor]:
        """Reads the observations; returns the noise in actions [B, T, D] at steps [B]."""
        return partial(self.model.head, self.model.read(inputs))

    def solver(self, inputs: Inputs) -> Solve:
        find_noise = self.exact(self.begin(inputs))
        return lambda noise, guide, held: denoise(find_noise, noise, self.schedule, self.random)


def sizes_of(c: OctoConfig) -> FlowSizes:
    return FlowSizes(c.chunk, c.steps, c.state_dim, c.action_dim, c.image_size, c.words)
