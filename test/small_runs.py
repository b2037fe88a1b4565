"""A tiny model of the small one's kind and frames to train it on, for several test files."""

from __future__ import annotations

import numpy as np
import torch
from tiny_model import tiny_model

from vla_training.small_model.auxiliary_targets import SIZE
from vla_training.small_model.config import TrainConfig
from vla_training.small_model.frames import TrainingFrames
from vla_training.small_model.trainer import Trainer

TINY = tiny_model()


def make_frames(episodes: int = 4, length: int = 6) -> TrainingFrames:
    rng = np.random.default_rng(0)
    n = episodes * length
    number = torch.arange(n) // length
    return TrainingFrames(
        torch.from_numpy(rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)),
        torch.from_numpy(rng.uniform(-0.05, 0.05, (n, 7)).astype(np.float32)),
        number % 2,
        (number + 1) * length,
        number,
        ["stack the red block", "put the little cube on the other one"],
        torch.from_numpy(rng.uniform(0, 1, (n, SIZE)).astype(np.float32)),
    )


def make_trainer(frames=None, shape=TINY, **options) -> Trainer:
    defaults = {"batch_size": 8, "steps": 6, "shift": 2, "validation": 0.0}
    return Trainer(frames or make_frames(), TrainConfig(**{**defaults, **options}), "cpu", shape)
