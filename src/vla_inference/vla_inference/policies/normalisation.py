"""Dataset statistics by name, and scaling between units and [-1, 1].

Source: openvla/openvla modeling_prismatic.py (behaviour).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vla_inference.errors import VlaError


@dataclass(frozen=True)
class Normalisation:
    """Bounds (q01/q99) that map a dataset's values to [-1, 1], and the dimensions they apply
    to.

    Dimensions whose mask is False pass through unchanged (the gripper, as a rule).
    """

    low: np.ndarray
    high: np.ndarray
    mask: np.ndarray

    @classmethod
    def from_statistics(
        cls, statistics: Mapping, name: str = "statistics", bounds: str = "q01_q99"
    ) -> Normalisation:
        """From a `{"q01": [...], "q99": [...], "mask": [...]}` entry of dataset statistics.

        bounds: the two entries that -1 and 1 stand for, "q01_q99" or "min_max".
        """
        lower, upper = bounds.split("_")
        for key in (lower, upper):
            if key not in statistics:
                raise VlaError(
                    f"{name} have no {key!r}", f"give {lower} and {upper}, one number per axis"
                )
        try:
            low = np.asarray(statistics[lower], np.float64)
            high = np.asarray(statistics[upper], np.float64)
        except (TypeError, ValueError) as error:
            raise VlaError(
                f"{name} hold {lower} or {upper} that are not numbers", str(error)
            ) from None
        mask = np.asarray(statistics.get("mask", np.ones(low.shape, bool)), bool)
        if not low.shape == high.shape == mask.shape or low.ndim != 1:
            raise VlaError(
                f"{name} have {lower}, {upper} and mask of lengths {low.size}, {high.size}, "
                f"{mask.size}",
                "all three must have one entry per action dimension",
            )
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise VlaError(f"{name} hold numbers that are not finite", "compute them again")
        return cls(low, high, mask)

    def __len__(self) -> int:
        return len(self.low)

    def denormalise(self, x: np.ndarray, epsilon: float = 0.0) -> np.ndarray:
        """[-1, 1] -> the dataset's units. OpenVLA-OFT adds an epsilon of 1e-8 to the range."""
        span = self.high - self.low + epsilon
        return np.where(self.mask, 0.5 * (x + 1.0) * span + self.low, x)

    def normalise(self, x: np.ndarray) -> np.ndarray:
        """The dataset's units -> [-1, 1], clipped; constant dimensions become 0."""
        scaled = np.clip(2 * (x - self.low) / (self.high - self.low + 1e-8) - 1, -1, 1)
        return np.where(self.mask, np.where(self.low == self.high, 0.0, scaled), x)


def unit_statistics(action_dim: int) -> dict[str, list[float]]:
    """Statistics of the action space "normalized", which leave [-1, 1] unchanged."""
    low, high = [-1.0] * action_dim, [1.0] * action_dim
    return {"q01": low, "q99": high, "min": low, "max": high}


def find_statistics(
    spaces: Mapping[str, Mapping], key: str | Mapping | None
) -> tuple[str, Mapping]:
    """Looks up an action space by name or by its statistics; the only one by default."""
    if isinstance(key, Mapping):
        return "custom", key.get("action", key)
    if key is None:
        named = [k for k in spaces if k != "normalized"]
        if not named:
            raise VlaError(
                "the checkpoint has no action statistics (dataset_statistics.json, or "
                "norm_stats in config.json)",
                "copy dataset_statistics.json from the run's folder, or take action_space "
                "'normalized' (-1 to 1)",
            )
        if len(named) > 1:
            raise VlaError(
                "the model was trained on several datasets and no unnorm_key was given",
                f"choose one of: {', '.join(named)}",
            )
        key = named[0]
    if key not in spaces and f"{key}_no_noops" in spaces:
        key = f"{key}_no_noops"  # LIBERO's suites, as the fine-tuned checkpoints call them
    if key not in spaces:
        raise VlaError(f"unknown unnorm_key {key!r}", f"known: {', '.join(spaces)}")
    return key, spaces[key].get("action", spaces[key])
