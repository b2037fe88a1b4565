"""`VLAPolicy`: a checkpoint of any family of vla_inference as a policy of LeRobot."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from lerobot_policy_vla.configuration_vla import VLAConfig
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.registry import load_policy
from vla_inference.types import Observation

CAMERA = "observation.images."


class VLAPolicy(PreTrainedPolicy):
    """Runs a checkpoint; `vla finetune` trains it.

    Images arrive as float [B, 3, H, W] in 0 to 1, the state as float [B, S] and the instruction as
    `task`, as LeRobot's datasets and robots give them, with no normalisation. Actions are in the
    units of the checkpoint's `ActionSpec`.
    """

    config_class = VLAConfig
    name = "vla"

    def __init__(self, config: VLAConfig, **_: Any):
        """Raises VlaError if the checkpoint cannot be loaded, ValueError if its actions are not
        as many numbers as LeRobot's."""
        super().__init__(config)
        config.validate_features()
        served = "://" in config.checkpoint  # where the model runs is the server's to say
        options = LoadOptions(
            engine=config.engine,
            device="" if served else config.device or "",
            dtype=config.dtype,
            quantization=config.quantization,
            action_space=config.action_space,
        )
        self.policy = load_policy(config.checkpoint, options)
        names = self.policy.action_spec().names
        if tuple(config.action_feature.shape) != (len(names),):
            raise ValueError(
                f"{config.checkpoint} gives actions of {len(names)} numbers ({', '.join(names)}), "
                f"LeRobot expects {list(config.action_feature.shape)}"
            )
        self.steps = config.n_action_steps or self.policy.chunk
        if not 0 < self.steps <= self.policy.chunk:
            raise ValueError(
                f"n_action_steps is {self.steps}, {config.checkpoint} answers with "
                f"{self.policy.chunk} steps"
            )
        self.reset()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        **options: Any,
    ) -> VLAPolicy:
        """Of a folder or Hub id with a config.json of type `vla`, which names the checkpoint."""
        options.pop("strict", None)
        if config is None:
            config = PreTrainedConfig.from_pretrained(pretrained_name_or_path, **options)
        return cls(config).eval()

    def _save_pretrained(self, save_directory: Path, **_: Any) -> None:
        """The configuration alone: the weights stay where they are."""
        self.config._save_pretrained(save_directory)

    def reset(self) -> None:
        """Forgets what is left of the last chunk, as at the start of an episode."""
        self._queue: deque[Tensor] = deque()

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The next action, float32 [B, D]."""
        if not self._queue:
            chunk = self.predict_action_chunk(batch)
            self._queue.extend(chunk[:, : self.steps].unbind(1))
        return self._queue.popleft()

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """Float32 [B, T, D]"""
        chunks = self.policy.predict(observations_of(batch))
        return torch.from_numpy(np.stack([chunk.actions for chunk in chunks]))

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        raise NotImplementedError("a policy of type vla is trained by `vla finetune`")

    def get_optim_params(self) -> dict[str, Any]:
        raise NotImplementedError("a policy of type vla is trained by `vla finetune`")


def observations_of(batch: dict[str, Any]) -> list[Observation]:
    """LeRobot's batch -> one observation of each of its rows."""
    images = {
        key.removeprefix(CAMERA).removeprefix("observation."): to_uint8(value)
        for key, value in batch.items()
        if key == "observation.image" or key.startswith(CAMERA)
    }
    states = batch.get(OBS_STATE)
    count = len(next(iter(images.values()))) if images else len(states)
    tasks = batch.get("task") or ""
    tasks = [tasks] * count if isinstance(tasks, str) else list(tasks)
    return [
        Observation(
            {camera: seen[i] for camera, seen in images.items()},
            tasks[i],
            None if states is None else states[i].float().cpu().numpy(),
        )
        for i in range(count)
    ]


def to_uint8(images: Tensor) -> np.ndarray:
    """Float [B, 3, H, W] in 0 to 1 -> uint8 [B, H, W, 3]"""
    return (images.permute(0, 2, 3, 1) * 255).round().clamp(0, 255).byte().cpu().numpy()
