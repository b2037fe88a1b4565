"""Bags written for the tests of several files."""

from __future__ import annotations

import numpy as np

from vla_inference.types import Episode, Observation, Step, eef_delta_spec
from vla_training.datasets.bag.writer import BagWriter
from vla_training.datasets.writers import DataForm

SPEC = eef_delta_spec("rotvec", "base", 0.05)


def write_bags(path, lengths=(6, 4), size=64, **options):
    """Step t of episode i has an image all of grey 20 i + t."""
    rng = np.random.default_rng(0)
    with BagWriter(path, DataForm("mine", SPEC, {"front": (size, size)}), **options) as writer:
        for i, length in enumerate(lengths):
            steps = [
                Step(
                    Observation({"front": np.full((size, size, 3), 20 * i + t, np.uint8)}, "go"),
                    np.append(rng.uniform(-0.01, 0.01, 6), t % 2).astype(np.float32),
                )
                for t in range(length)
            ]
            writer.write(Episode(steps, SPEC, {"outcome": "success"}))
    return path
