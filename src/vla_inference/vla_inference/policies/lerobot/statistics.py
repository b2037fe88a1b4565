"""Normalisation as LeRobot's processors do it, with the statistics they keep.

Source: behaviour of huggingface/lerobot 0.6.1, `processor/normalize_processor.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vla_inference.errors import CheckpointError

EPS = 1e-8
# Mode -> the two statistics it needs.
MODES = {
    "IDENTITY": (),
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}


@dataclass(frozen=True)
class Normaliser:
    """One feature's. a, b: the mode's two statistics, of the feature's shape or one that
    broadcasts to it."""

    mode: str
    a: np.ndarray
    b: np.ndarray

    @classmethod
    def find(cls, mode: str, statistics: Mapping[str, np.ndarray], feature: str) -> Normaliser:
        """From a feature's statistics by name; refuses a mode whose statistics are missing."""
        if mode not in MODES:
            raise CheckpointError(
                f"{feature} is normalised by {mode!r}", f"known: {', '.join(MODES)}"
            )
        names = MODES[mode]
        if lacking := [n for n in names if n not in statistics]:
            raise CheckpointError(
                f"the checkpoint has no {' and '.join(lacking)} of {feature}",
                "it is a base model: fine-tune it first, or copy the statistics of the dataset "
                "into its processors' files",
            )
        a, b = (np.asarray(statistics[n], np.float32) for n in names) if names else (_NONE, _NONE)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise CheckpointError(
                f"the statistics of {feature} are not all finite", "compute them again"
            )
        return cls(mode, a, b)

    @property
    def _range(self) -> np.ndarray:
        span = self.b - self.a
        return np.where(span == 0, np.float32(EPS), span)

    def normalise(self, x: np.ndarray) -> np.ndarray:
        if self.mode == "IDENTITY":
            return x
        if self.mode == "MEAN_STD":
            return (x - self.a) / (self.b + np.float32(EPS))
        return 2 * (x - self.a) / self._range - 1

    def denormalise(self, x: np.ndarray) -> np.ndarray:
        if self.mode == "IDENTITY":
            return x
        if self.mode == "MEAN_STD":
            return x * self.b + self.a
        return (x + 1) / 2 * self._range + self.a


_NONE = np.zeros(0, np.float32)
