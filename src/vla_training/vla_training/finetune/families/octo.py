"""A model of Octo's kind as fine-tuning sees it: the noise in actions is what it learns to find.

Source: arXiv:2006.11239; arXiv:2405.12213.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from vla_inference.policies.base import LoadOptions
from vla_inference.policies.lerobot.base import LeRobotPolicy
from vla_inference.policies.lerobot.flow import Inputs
from vla_inference.policies.lerobot.tokenizer import find_tokenizer
from vla_inference.policies.octo.config import OctoConfig, read_config
from vla_inference.policies.octo.model import Octo
from vla_inference.policies.octo.policy import OctoPolicy
from vla_training.finetune.families.lerobot.flow import FlowFormat, FlowObjective
from vla_training.finetune.families.lerobot.trainable import LeRobotTrainable
from vla_training.loader.mixture import Mixture
from vla_training.loop.objective import Objective, masked_error


class OctoFormat(FlowFormat):
    def draw(self, random: np.random.Generator) -> dict[str, Any]:
        """time: a step of denoising."""
        sizes = self.policy.sizes
        return {
            "noise": random.standard_normal((self.chunk, sizes.action_dim), np.float32),
            "time": np.float32(random.integers(sizes.steps)),
        }


class OctoObjective(FlowObjective):
    """Mean squared error of the noise, over the steps inside an episode.

    Its "error" is that of the actions that the noise leaves.
    """

    policy: OctoPolicy

    def loss(
        self, inputs: Inputs, targets: Tensor, inside: Tensor, noise: Tensor, time: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """targets, noise: normalised [B, T, D]. inside: bool [B, T]. time: steps [B]."""
        schedule, step = self.policy.schedule, time.long()
        noisy = schedule.add_noise(targets, noise, step)
        found = self.policy.begin(inputs)(noisy.to(inputs.images.dtype), step).float()
        count = (inside.sum() * targets.shape[-1]).clamp(min=1)
        loss = ((found - noise).square() * inside[..., None]).sum() / count
        with torch.no_grad():
            actions = schedule.actions(noisy, found, step)
            return loss, {"error": masked_error(actions, targets, inside)}


class OctoTrainable(LeRobotTrainable):
    """`--train expert`: the head alone."""

    family = "octo"
    betas = (0.9, 0.999)
    room = (None, None)

    @cached_property
    def sizes(self) -> OctoConfig:
        return read_config(self.start)

    def find_tokenizer(self) -> Any:
        return find_tokenizer(self.start, "the model", self.sizes.vocabulary)

    def make(self) -> Octo:
        return Octo(self.sizes)

    def our_name(self, published: str) -> str:
        return published

    def make_policy(self, model: nn.Module, options: LoadOptions) -> OctoPolicy:
        return OctoPolicy(cast("Octo", model), self.fitted, self.tokenizer, options)

    def trained(self, name: str) -> bool:
        if self.config.freeze_vision and name.startswith("stem."):
            return False
        return self.config.train == "all" or name.startswith("head.")

    def form(self, mixture: Mixture) -> OctoFormat:
        options = LoadOptions(device="cpu", dtype="float32")
        return OctoFormat(self.make_policy(self.empty(), options))

    def loss(self, policy: LeRobotPolicy) -> Objective:
        return OctoObjective(cast("OctoPolicy", policy), self.model)
