"""The result of an offline evaluation, per frame and summarised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from vla_inference.types import ActionSpec
from vla_training.evaluation.accuracy import (
    Range,
    accuracy,
    clipped_accuracy,
    dimension_errors,
    gripper_flips,
    nrmse,
    token_agreement,
)


@dataclass(frozen=True, kw_only=True)
class FrameResult:
    """The result of one frame. Actions in the units of the evaluation's spec, latency in
    seconds."""

    number: int
    total: int
    episode: int
    step: int
    instruction: str
    truth: np.ndarray
    predicted: np.ndarray
    accuracy: float
    accuracy_clipped: float
    mean_accuracy: float
    mean_accuracy_clipped: float
    latency: float
    tokens: np.ndarray | None = None
    reference: np.ndarray | None = None
    reference_latency: float | None = None
    reference_tokens: np.ndarray | None = None


@dataclass
class Evaluation:
    """All frames and their summary."""

    model: str
    dataset: str
    action_space: str
    spec: ActionSpec
    bounds: Range
    reference: str | None = None
    notes: list[str] = field(default_factory=list)
    frames: list[FrameResult] = field(default_factory=list)
    complete: bool = True
    _sums: np.ndarray = field(default_factory=lambda: np.zeros(2), repr=False)

    def add(self, truth: np.ndarray, predicted: np.ndarray, **about: Any) -> FrameResult:
        """Adds a frame; about: the fields of `FrameResult` that do not follow from these two."""
        measures = (accuracy, clipped_accuracy)
        values = np.array([f(truth, predicted, self.bounds) for f in measures], float)
        self._sums += values
        number = len(self.frames) + 1
        mean = self._sums / number
        frame = FrameResult(
            number=number,
            truth=truth,
            predicted=predicted,
            accuracy=float(values[0]),
            accuracy_clipped=float(values[1]),
            mean_accuracy=float(mean[0]),
            mean_accuracy_clipped=float(mean[1]),
            **about,
        )
        self.frames.append(frame)
        return frame

    @property
    def truth(self) -> np.ndarray:
        return np.stack([f.truth for f in self.frames])

    @property
    def predicted(self) -> np.ndarray:
        return np.stack([f.predicted for f in self.frames])

    def statistics(self) -> dict[str, Any]:
        """Metrics of every frame and their means, as `--save-stats` stores them.

        latency, eval_latency in seconds; error, eval_error: NRMSE of model and of reference model
        against the truth; quant_error: of the model against the reference model; *_clipped: with
        the truth clipped to q01/q99.
        """
        truth, predicted, bounds = self.truth, self.predicted, self.bounds
        clipped = bounds.clip(truth)
        lists = {
            "latency": np.array([f.latency for f in self.frames]),
            "error": nrmse(truth, predicted, bounds),
            "error_clipped": nrmse(clipped, predicted, bounds),
        }
        if self.reference is not None:
            reference = np.stack([f.reference for f in self.frames if f.reference is not None])
            lists |= {
                "eval_latency": np.array([f.reference_latency for f in self.frames]),
                "eval_error": nrmse(truth, reference, bounds),
                "eval_error_clipped": nrmse(clipped, reference, bounds),
                "quant_error": nrmse(reference, predicted, bounds),
            }
        empty: dict[str, list] = {"eval_latency": [], "eval_error": [], "quant_error": []}
        return {
            "model": self.model,
            "reference_model": self.reference,
            "dataset": self.dataset,
            "action_space": self.action_space,
            "complete": self.complete,
            "notes": self.notes,
            "mean": self._means(lists),
            "dimensions": [asdict(e) for e in dimension_errors(truth, predicted, self.spec)],
            "gripper": self._gripper(),
            "tokens": self._tokens(),
            **empty,
            **{k: v.tolist() for k, v in lists.items()},
        }

    def _means(self, lists: Mapping[str, np.ndarray]) -> dict[str, float]:
        mean = {k: float(v.mean()) for k, v in lists.items()}
        mean |= {
            "timesteps": len(self.frames),
            "episodes": len({f.episode for f in self.frames}),
            "fps": 1 / mean["latency"],
            "accuracy": 1 - mean["error"],
            "accuracy_clipped": 1 - mean["error_clipped"],
        }
        if self.reference is not None:
            mean |= {
                "eval_fps": 1 / mean["eval_latency"],
                "eval_accuracy": 1 - mean["eval_error"],
                "eval_accuracy_clipped": 1 - mean["eval_error_clipped"],
            }
        return mean

    def _gripper(self) -> dict[str, int] | None:
        found = gripper_flips(self.truth, self.predicted, self.spec)
        return None if found is None else {**asdict(found), "flips": found.flips}

    def _tokens(self) -> dict[str, Any] | None:
        ours = [f.tokens for f in self.frames if f.tokens is not None]
        theirs = [f.reference_tokens for f in self.frames if f.reference_tokens is not None]
        if not len(ours) == len(theirs) == len(self.frames):
            return None
        return asdict(token_agreement(ours, theirs))
