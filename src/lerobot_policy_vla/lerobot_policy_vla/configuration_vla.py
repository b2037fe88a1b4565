"""`VLAConfig`: which checkpoint is run, and how."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig
from lerobot.optim import AdamWConfig


@PreTrainedConfig.register_subclass("vla")
@dataclass
class VLAConfig(PreTrainedConfig):
    """checkpoint: folder or Hub id of any family, or NAME:ADDRESS of a server, such as
        openpi:ws://localhost:8000.
    n_action_steps: of each chunk, how many are executed before the next one is predicted; None:
        all of them.
    engine, dtype, quantization, action_space: as the parameters of the inference node.
    """

    checkpoint: str = ""
    n_action_steps: int | None = None
    engine: str = ""
    dtype: str = ""
    quantization: str = ""
    action_space: str = ""

    def validate_features(self) -> None:
        if self.action_feature is None:
            raise ValueError("a policy of type vla needs 'action' among its output_features")

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> None:
        return None

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig()

    def get_scheduler_preset(self) -> None:
        return None
