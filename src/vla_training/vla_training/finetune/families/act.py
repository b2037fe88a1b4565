"""ACT as fine-tuning sees it: all weights, the backbone at a learning rate of its own.

An encoder reads the style of a demonstration off its actions, as a distribution; a latent drawn
from it tells the network which of the possible chunks is meant. The loss is the error of the
actions, and how far the distribution is from the one that a latent of zero stands for.

Source: arXiv:2304.13705; behaviour of huggingface/lerobot 0.6.1, `policies/act`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from vla_inference.errors import DataError
from vla_inference.openvla.config import TRAINED_CROP
from vla_inference.openvla.preprocessing import unit_scaled
from vla_inference.policies.act.config import ACTConfig, read_config
from vla_inference.policies.act.model import ACT, Latent
from vla_inference.policies.act.policy import ACTPolicy
from vla_inference.policies.act.weights import PREFIX
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.lerobot.base import LeRobotPolicy
from vla_inference.policies.lerobot.checkpoint import ACTION, STATE, LeRobotCheckpoint
from vla_inference.policies.lerobot.save import IMAGENET, Statistics
from vla_training.finetune.config import FinetuneConfig
from vla_training.finetune.families.lerobot.trainable import LeRobotTrainable
from vla_training.loader.augment import OPENVLA, augment
from vla_training.loader.batch import Batch
from vla_training.loader.frame_index import DatasetSource
from vla_training.loader.mixture import Mixture
from vla_training.loader.sample_format import SampleFormat
from vla_training.loop.objective import Objective, masked_error

KL_WEIGHT = 10.0  # where the checkpoint does not say


class ACTFormat(SampleFormat):
    """Samples as the policy sees them; images keep their size, which all have in common."""

    takes_instruction = False

    def __init__(self, checkpoint: LeRobotCheckpoint, sizes: ACTConfig):
        self.normalisers, self.latent = checkpoint.normalisers, sizes.latent
        self.cameras, self.chunk = len(checkpoint.cameras), sizes.chunk
        self.takes_state = sizes.state_dim > 0
        (self.size,) = set(checkpoint.image_shapes.values())

    def image(self, image: np.ndarray) -> np.ndarray:
        if image.shape[:2] != self.size:
            (height, width), (h, w) = self.size, image.shape[:2]
            raise DataError(
                f"an image is {w} x {h} pixels, the first one was {width} x {height}",
                f"convert the dataset with --width {width} --height {height}, or leave it out",
            )
        return image

    def prompt(self, instruction: str, state: np.ndarray | None) -> list[int]:
        return []

    def actions(self, values: np.ndarray, space: str) -> np.ndarray:
        return self.normalisers[ACTION].normalise(values).astype(np.float32)

    def state(self, values: np.ndarray, space: str) -> np.ndarray:
        return self.normalisers[STATE].normalise(values).astype(np.float32)

    def draw(self, random: np.random.Generator) -> dict[str, Any]:
        return {
            "noise": random.standard_normal(self.latent, np.float32),
            "seed": random.integers(1 << 31),
        }


class ACTObjective(Objective):
    """Mean absolute error of the actions inside an episode, and the latent's divergence.

    In evaluation the latent is zero, as the policy has it, and the loss is the error alone.

    kl_weight: of the divergence from a normal distribution.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, policy: ACTPolicy, model: ACT, kl_weight: float):
        super().__init__()
        self.model, self.kl_weight = model, kl_weight
        black, white = (
            np.stack([n.normalise(np.full((3, 1, 1), x)) for n in policy.normalisers.values()])
            for x in (0.0, 1.0)
        )
        for name, value in (("scale", white - black), ("shift", black)):
            tensor = torch.from_numpy(value.astype(np.float32)).to(policy.device)
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.noise is not None and batch.seed is not None  # as `ACTFormat` draws them
        if self.training:
            torch.manual_seed(int(batch.seed[0]))  # dropout goes on alike in a resumed run
        with self.low_precision():
            images = self.images(batch).unbind(1)
            return self.loss(images, batch.proprio, batch.targets, batch.inside, batch.noise)

    @torch.no_grad()
    def images(self, batch: Batch) -> Tensor:
        """Normalised [B, cameras, 3, H, W]"""
        cameras = batch.images.shape[1]
        x = unit_scaled(batch.images.flatten(0, 1))
        if batch.numbers is not None:
            x = augment(x, batch.numbers.repeat_interleave(cameras, 0), OPENVLA, TRAINED_CROP)
        return x.unflatten(0, (-1, cameras)) * self.scale + self.shift

    def loss(
        self,
        images: Sequence[Tensor],
        state: Tensor | None,
        targets: Tensor,
        inside: Tensor,
        noise: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """images, state: as `ACT.forward` takes them. targets: normalised [B, T, D]. inside: bool
        [B, T]. noise: [B, latent], by which the latent differs from its mean."""
        if not (self.training and self.model.config.vae_layers):
            error = masked_error(self.model(images, state).float(), targets, inside)
            return error.mean(), {"error": error.detach()}
        style = Latent(*(x.float() for x in self.model.infer_latent(state, targets, ~inside)))
        predicted = self.model(images, state, style.draw(noise))
        error = masked_error(predicted.float(), targets, inside)
        divergence = style.divergence().mean()
        measured = {"error": error.detach(), "kl": divergence.detach()}
        return error.mean() + self.kl_weight * divergence, measured


class ACTTrainable(LeRobotTrainable):
    family = "act"
    betas = (0.9, 0.999)
    sharded = False  # it is small
    room = (None, None)

    def __init__(self, config: FinetuneConfig, base: Path):
        if config.lora_rank:
            config.refuse(self.family, "lora_rank")
        if config.train == "expert":
            config.refuse(self.family, "train")
        super().__init__(config, base)

    @cached_property
    def sizes(self) -> ACTConfig:
        return read_config(self.start)

    def make(self) -> ACT:
        return ACT(self.sizes, vae=True)

    def our_name(self, published: str) -> str:
        return published.removeprefix(PREFIX)

    def make_policy(self, model: nn.Module, options: LoadOptions) -> ACTPolicy:
        plain = replace(options, engine="plain")  # others hold copies of the weights
        return ACTPolicy(cast("ACT", model), self.fitted, plain)

    def trained(self, name: str) -> bool:
        return not (self.config.freeze_vision and name.startswith("backbone."))

    def share(self, name: str) -> float:
        says = self.start.settings
        if says.values.get("optimizer_lr_backbone") is None or not name.startswith("backbone."):
            return 1.0
        return says.number("optimizer_lr_backbone") / says.number("optimizer_lr", low=1e-12)

    def image_statistics(self) -> Statistics:
        """The base's, which its backbone was trained with; else those of ImageNet."""
        features = self.start.image_features[: self.images]
        return {f: {**IMAGENET, **self.start.statistics(f)} for f in features}

    def image_size(self, source: DatasetSource) -> tuple[int, int]:
        image = source.open()[0].steps[0].observation.images[source.cameras[0]]
        return image.shape[0], image.shape[1]

    def form(self, mixture: Mixture) -> ACTFormat:
        return ACTFormat(self.fitted, self.sizes)

    def loss(self, policy: LeRobotPolicy) -> ACTObjective:
        weight = self.start.settings.number("kl_weight", KL_WEIGHT)
        return ACTObjective(cast("ACTPolicy", policy), cast("ACT", self.model), weight)
