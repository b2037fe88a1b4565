"""Accuracy metrics of predicted actions. Arrays are [N, D]: N frames, D dimensions.

Accuracy is 1 - NRMSE as NanoLLM has it: per frame the root of the mean, over all dimensions, of
the squared error in units of the dataset's range q99 - q01. Outliers of the dataset lie outside
that range and no model can reach them, so it is given twice: raw, and with the truth clipped to
q01/q99. Source: dusty-nv/NanoLLM nano_llm/vision/vla.py (behaviour).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_inference.errors import VlaError
from vla_inference.types import ActionSpec

GRIPPER_THRESHOLD = 0.5


@dataclass(frozen=True)
class Range:
    """q01 and q99 of each dimension [D]. A dimension with q01 = q99 is left out of the NRMSE."""

    low: np.ndarray
    high: np.ndarray

    def __post_init__(self):
        for name in ("low", "high"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        if self.low.shape != self.high.shape or self.low.ndim != 1:
            raise VlaError(
                f"bounds have shapes {self.low.shape} and {self.high.shape}",
                "give one number per dimension in each",
            )

    @property
    def span(self) -> np.ndarray:
        """[D], NaN where it is zero, so that nanmean leaves it out."""
        span = self.high - self.low
        return np.where(span > 0, span, np.nan)

    def clip(self, actions: np.ndarray) -> np.ndarray:
        return np.clip(actions, self.low, self.high)


def nrmse(truth: np.ndarray, predicted: np.ndarray, bounds: Range) -> np.ndarray:
    """Per frame: [N, D] -> [N], or [D] -> a number."""
    truth, predicted = _same(truth, predicted, bounds)
    error = (truth - predicted) / bounds.span
    counted = np.isfinite(bounds.span)
    if not counted.any():
        raise VlaError("all dimensions have q01 = q99", "give the statistics of real data")
    return np.sqrt(np.mean(error[..., counted] ** 2, axis=-1))


def accuracy(truth: np.ndarray, predicted: np.ndarray, bounds: Range) -> np.ndarray:
    """1 - NRMSE per frame; negative if the error exceeds the range."""
    return 1.0 - nrmse(truth, predicted, bounds)


def clipped_accuracy(truth: np.ndarray, predicted: np.ndarray, bounds: Range) -> np.ndarray:
    """The same with the truth (not the prediction) clipped to q01/q99."""
    return accuracy(bounds.clip(truth), predicted, bounds)


def _same(truth, predicted, bounds: Range) -> tuple[np.ndarray, np.ndarray]:
    truth, predicted = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    if truth.shape != predicted.shape or truth.shape[-1] != len(bounds.low):
        raise VlaError(
            f"truth has shape {truth.shape}, the prediction {predicted.shape}, the bounds "
            f"{bounds.low.shape}",
            "all must have one number per action dimension",
        )
    return truth, predicted


@dataclass(frozen=True)
class DimensionError:
    """Absolute error of one dimension over all frames.

    unit: "mm" or "mrad" where the spec has m or rad, else the spec's own.
    """

    name: str
    unit: str
    mean: float
    median: float
    p95: float
    max: float


def dimension_errors(
    truth: np.ndarray, predicted: np.ndarray, spec: ActionSpec
) -> list[DimensionError]:
    """Errors of each dimension, in millimetres and milliradians."""
    error = np.abs(np.asarray(truth, np.float64) - np.asarray(predicted, np.float64))
    if error.ndim != 2 or error.shape[1] != len(spec) or not len(error):
        raise VlaError(f"errors have shape {error.shape}", f"give [N, {len(spec)}]")
    found = []
    for column, name, dim in zip(error.T, spec.names, spec.dims, strict=True):
        scale, unit = (1e3, "m" + dim.unit) if dim.unit in ("m", "rad") else (1.0, dim.unit)
        column = scale * column
        found.append(
            DimensionError(
                name,
                unit,
                float(column.mean()),
                float(np.median(column)),
                float(np.percentile(column, 95)),
                float(column.max()),
            )
        )
    return found


@dataclass(frozen=True)
class GripperFlips:
    """Frames whose predicted gripper is on the other side of half open.

    opened: predicted open, truly closed. closed: the other way round.
    """

    frames: int
    opened: int
    closed: int

    @property
    def flips(self) -> int:
        return self.opened + self.closed


def gripper_flips(
    truth: np.ndarray, predicted: np.ndarray, spec: ActionSpec
) -> GripperFlips | None:
    """None where the action has no part that is a gripper."""
    grippers = [spec.slice(p.name) for p in spec.parts if p.kind == "gripper"]
    columns = [i for s in grippers for i in range(s.start, s.stop)]
    if not columns:
        return None
    real = np.asarray(truth)[:, columns] > GRIPPER_THRESHOLD
    said = np.asarray(predicted)[:, columns] > GRIPPER_THRESHOLD
    return GripperFlips(real.size, int((said & ~real).sum()), int((real & ~said).sum()))


@dataclass(frozen=True)
class TokenAgreement:
    """How often two models give the same tokens.

    tokens, frames: shares of equal tokens, and of frames with all tokens equal.
    largest_step: largest distance of two tokens, in bins.
    """

    tokens: float
    frames: float
    largest_step: int
    per_dimension: tuple[float, ...]


def token_agreement(one: Sequence[np.ndarray], two: Sequence[np.ndarray]) -> TokenAgreement:
    """Of the tokens of N frames, each [T, D] or [D]."""
    a, b = np.asarray(one), np.asarray(two)
    if a.shape != b.shape or a.ndim < 2 or not a.size:
        raise VlaError(
            f"tokens have shapes {a.shape} and {b.shape}", "compare models of one action form"
        )
    same = a == b
    return TokenAgreement(
        float(same.mean()),
        float(same.reshape(len(same), -1).all(1).mean()),
        int(np.abs(a.astype(np.int64) - b).max()),
        tuple(float(v) for v in same.reshape(-1, same.shape[-1]).mean(0)),
    )
