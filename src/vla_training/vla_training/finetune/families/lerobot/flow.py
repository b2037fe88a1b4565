"""The flow-matching families in fine-tuning: samples, loss, what is trained.

The network sees actions on the straight line from themselves (time 0) to noise (time 1), and
learns the velocity along it, noise - actions.

Source: arXiv:2410.24164; behaviour of huggingface/lerobot 0.6.1.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_inference.openvla.config import TRAINED_CROP
from vla_inference.openvla.preprocessing import unit_scaled
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.lerobot.base import LeRobotPolicy
from vla_inference.policies.lerobot.checkpoint import ACTION
from vla_inference.policies.lerobot.flow import Inputs
from vla_inference.policies.lerobot.policy import FlowPolicy
from vla_inference.types import check_instruction
from vla_training.finetune.families.lerobot.trainable import LeRobotTrainable
from vla_training.loader.augment import OPENVLA, augment
from vla_training.loader.batch import Batch
from vla_training.loader.mixture import Mixture
from vla_training.loader.sample_format import SampleFormat
from vla_training.loop.objective import Objective, masked_error

# Times are EARLIEST to 1, those near 1 (noise) more often: a Beta distribution of (ALPHA, 1).
EARLIEST, ALPHA = 0.001, 1.5


def draw_time(random: np.random.Generator) -> np.float32:
    """u^(1/a) is of Beta(a, 1) where u is even in [0, 1)."""
    return np.float32(EARLIEST + (1 - EARLIEST) * random.random() ** (1 / ALPHA))


class FlowFormat(SampleFormat):
    """Samples as the policy would see them, but for images, which are rounded to bytes where they
    are resized. policy: one whose weights are on "meta"; it goes to the workers."""

    def __init__(self, policy: FlowPolicy):
        self.policy = copy.copy(policy)
        vars(self.policy)["random"] = None  # a generator stays where it is
        self.cameras, self.chunk = len(policy.needs.cameras), policy.chunk
        self.takes_state = policy.needs.state > 0

    def image(self, image: np.ndarray) -> np.ndarray:
        pixels = (self.policy.image(image) + 1) * 127.5
        return pixels.round().to(torch.uint8).permute(1, 2, 0).numpy()

    def prompt(self, instruction: str, state: np.ndarray | None) -> list[int]:
        policy = self.policy
        known = np.zeros(0, np.float32) if state is None else state
        text = policy.prompt(check_instruction(instruction), known)
        return policy.tokens(text)[: policy.sizes.words]

    def actions(self, values: np.ndarray, space: str) -> np.ndarray:
        return self.policy.checkpoint.normalisers[ACTION].normalise(values)

    def state(self, values: np.ndarray, space: str) -> np.ndarray:
        return self.policy.state(values)

    def draw(self, random: np.random.Generator) -> dict[str, Any]:
        shape = (self.chunk, self.policy.sizes.action_dim)
        return {
            "noise": random.standard_normal(shape, np.float32),
            "time": draw_time(random),
        }


class FlowObjective(Objective):
    """Mean squared error of the velocity, over the numbers of the action and the steps inside.

    Its "error" is that of the actions that the velocity points at.
    """

    def __init__(self, policy: FlowPolicy, model: nn.Module):
        super().__init__()
        self.policy, self.model = policy, model

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.noise is not None and batch.time is not None  # as `FlowFormat` draws them
        with self.low_precision():
            return self.loss(
                self.inputs(batch), batch.targets, batch.inside, batch.noise, batch.time
            )

    @torch.no_grad()
    def inputs(self, batch: Batch) -> Inputs:
        """What the network reads of a batch."""
        cameras, dtype = batch.images.shape[1], next(self.model.parameters()).dtype
        x = unit_scaled(batch.images.flatten(0, 1))
        if batch.numbers is not None:
            x = augment(x, batch.numbers.repeat_interleave(cameras, 0), OPENVLA, TRAINED_CROP)
        ids, lengths = batch.ids, batch.lengths
        mask = torch.ones_like(ids, dtype=torch.bool)
        if lengths is not None:
            mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        state = batch.targets.new_zeros(len(ids), 0) if batch.proprio is None else batch.proprio
        room = self.policy.sizes.state_dim - state.shape[1]
        images = (2 * x - 1).unflatten(0, (-1, cameras))
        return Inputs(images.to(dtype), ids, mask, F.pad(state, (0, room)).to(dtype))

    def loss(
        self, inputs: Inputs, targets: Tensor, inside: Tensor, noise: Tensor, time: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """targets: normalised [B, T, D]. inside: bool [B, T]. noise: [B, T, action_dim], at times
        [B]."""
        size = targets.shape[-1]
        actions = F.pad(targets, (0, noise.shape[-1] - size))
        t = time[:, None, None]
        x = t * noise + (1 - t) * actions
        velocity = self.policy.begin(inputs)(x.to(inputs.state.dtype), time).float()
        missed = (velocity - (noise - actions))[..., :size]
        count = (inside.sum() * size).clamp(min=1)
        loss = (missed.square() * inside[..., None]).sum() / count
        with torch.no_grad():
            error = masked_error(targets - t * missed, targets, inside)
        return loss, {"error": error}


class FlowTrainable(LeRobotTrainable):
    """A vision-language model, whose keys and values an action expert reads.

    vlm: how the names of the former's weights begin. projections: those of the layers between
    numbers and the two, which are small.
    """

    vlm: tuple[str, ...] = ("vision.", "language.")
    projections: tuple[str, ...] = ("state_proj.", "action_")

    @property
    @abstractmethod
    def layers(self) -> int:
        """Of the language model."""

    def trained(self, name: str) -> bool:
        says = self.start.settings
        if name.startswith("state_proj."):
            return says.flag("train_state_proj", True)
        if not name.startswith(self.vlm):
            return True
        frozen = self.config.freeze_vision or says.flag("freeze_vision_encoder", False)
        if name.startswith("vision.") and frozen:
            return False
        return self.config.train == "all" and not name.startswith(self._unread)

    @property
    def _unread(self) -> tuple[str, ...]:
        """Of the language model, what nothing depends on: the expert reads the last layer's keys
        and values alone."""
        last = f"language.layers.{self.layers - 1}"
        parts = ("q", "out", "gate", "up", "down", "norm2")
        return ("language.norm.", *(f"{last}.{part}." for part in parts))

    def whole(self, name: str) -> bool:
        return name.startswith(self.projections)

    def form(self, mixture: Mixture) -> FlowFormat:
        options = LoadOptions(device="cpu", dtype="float32")
        return FlowFormat(cast("FlowPolicy", self.make_policy(self.empty(), options)))

    def loss(self, policy: LeRobotPolicy) -> FlowObjective:
        return FlowObjective(cast("FlowPolicy", policy), self.model)
