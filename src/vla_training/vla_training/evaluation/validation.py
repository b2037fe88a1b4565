"""Predictions against the actions recorded in bags, and their metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from vla_inference.control.limits import SafetyLimits
from vla_inference.errors import DataError
from vla_inference.types import ActionSpec
from vla_training.datasets.bag.reader import BagSet
from vla_training.evaluation.accuracy import Range, accuracy, clipped_accuracy, gripper_flips
from vla_training.evaluation.result import Evaluation, FrameResult

STILL = 0.02  # a motion shorter than this share of the data's range has no direction
SIDES = (("translation", slice(0, 3)), ("rotation", slice(3, 6)))


class Validation:
    """Predictions beside recorded actions, and their summary.

    bounds: q01 and q99 [D]. unanswered: images that got no prediction.
    """

    def __init__(
        self,
        model: str,
        bags: BagSet,
        space: str,
        spec: ActionSpec,
        bounds: Range,
        notes: Sequence[str] = (),
        execute_steps: int | None = None,
    ):
        self.bags, self.execute_steps = bags, execute_steps
        self.evaluation = Evaluation(
            model=model,
            dataset=bags.name,
            action_space=space,
            spec=spec,
            bounds=bounds,
            notes=[*bags.notes, *notes],
        )
        self.chunks: list[np.ndarray] = []  # float64 [T, D] by frame
        self.ages: list[float] = []  # of the image when its answer was there, s; NaN: not known
        self.unanswered = 0

    def add(
        self, truth: np.ndarray, chunk: np.ndarray, *, age: float = math.nan, **about: Any
    ) -> FrameResult:
        """truth: [D]; chunk: [T, D] as predicted; age in s; about: as in `Evaluation.add`."""
        chunk = np.asarray(chunk, np.float64)
        frame = self.evaluation.add(np.asarray(truth, np.float64), chunk[0], **about)
        self.chunks.append(chunk)
        self.ages.append(age)
        return frame

    # -- metrics ------------------------------------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """An evaluation's statistics, and under "validation" those of motion over time."""
        if not self.evaluation.frames:
            raise DataError(
                f"no image of {self.bags.path} got an answer", "; ".join(self.evaluation.notes)
            )
        found = self.evaluation.statistics()
        truth, predicted = self.evaluation.truth, self.evaluation.predicted
        answered = len(self.evaluation.frames)
        found["validation"] = {
            "bags": str(self.bags.path),
            "tolerance_s": self.bags.options.tolerance,
            "coverage": answered / (answered + self.unanswered),
            "unanswered": self.unanswered,
            "direction": {
                name: self._direction(truth[:, side], predicted[:, side], side)
                for name, side in SIDES
            },
            "gripper_flips": self._flip_rate(),
            "gripper_changes": self._changes(),
            "latency_ms": _spread([1e3 * f.latency for f in self.evaluation.frames]),
            "input_age_ms": _spread([1e3 * a for a in self.ages]),
            "recorded": self._recorded(),
            **self._clips(),
            "beyond_statistics": self._beyond(),
            "joins": self._joins(),
            "chunk_accuracy": self._chunk_accuracy(),
            "episodes": self._episodes(),
        }
        return found

    def _direction(self, truth, predicted, side: slice) -> dict[str, Any]:
        """Cosine of the angle between the motions, over frames whose true motion has a
        direction."""
        span = np.nan_to_num(self.evaluation.bounds.span[side])
        length = np.linalg.norm(truth, axis=1)
        moving = length > max(STILL * float(np.linalg.norm(span)), 1e-9)
        if not moving.any():
            return {"cosine": None, "frames": 0}
        product = (truth[moving] * predicted[moving]).sum(1)
        scale = length[moving] * np.linalg.norm(predicted[moving], axis=1)
        cosine = np.divide(product, scale, out=np.zeros_like(product), where=scale > 0)
        return {
            "cosine": float(cosine.mean()),
            "frames": int(moving.sum()),
            "opposite": float((cosine < 0).mean()),
        }

    def _flip_rate(self) -> float | None:
        e = self.evaluation
        found = gripper_flips(e.truth, e.predicted, e.spec)
        return None if found is None else found.flips / found.frames

    def _changes(self) -> dict[str, int]:
        """How often the gripper opens or closes from one image to the next."""
        counts = {"predicted": 0, "recorded": 0}
        frames = self.evaluation.frames
        for a, b in pairwise(frames):
            if a.episode == b.episode:
                counts["predicted"] += (a.predicted[-1] > 0.5) != (b.predicted[-1] > 0.5)
                counts["recorded"] += (a.truth[-1] > 0.5) != (b.truth[-1] > 0.5)
        return {k: int(v) for k, v in counts.items()}

    def _recorded(self) -> dict[str, Any]:
        """Latency and age of the images at recording time, if chunks were recorded."""
        latency, age = [], []
        for f in self.evaluation.frames:
            chunks = self.bags.chunks(f.episode)
            if chunks is not None and chunks[f.step].model:
                chunk = chunks[f.step]
                latency.append(chunk.latency)
                stamp = int(self.bags.episode(f.episode).stamps[f.step])
                age.append((chunk.produced - stamp) / 1e6 if chunk.produced else math.nan)
        return {"latency_ms": _spread(latency), "input_age_ms": _spread(age)}

    def _clips(self) -> dict[str, Any]:
        """Share of predicted steps that the command node's usual limits would clip, and by each
        limit that does: its share, the limit and the largest value (m, rad, m/s, rad/s)."""
        usual, dt = SafetyLimits(), self.evaluation.spec.dt
        steps = np.concatenate(self.chunks)
        way = np.linalg.norm(steps[:, :3], axis=1)
        turn = np.linalg.norm(steps[:, 3:6], axis=1)
        values = {
            "translation_per_step": way,
            "rotation_per_step": turn,
            "linear_velocity": way / dt,
            "angular_velocity": turn / dt,
        }
        beyond = {name: v > getattr(usual, name) for name, v in values.items()}
        return {
            "clip_rate": float(np.any(list(beyond.values()), axis=0).mean()),
            "clips": {
                name: {
                    "share": float(over.mean()),
                    "limit": getattr(usual, name),
                    "largest": float(values[name].max()),
                }
                for name, over in beyond.items()
                if over.any()
            },
        }

    def _beyond(self) -> float:
        """Share of predicted steps with a number outside q01 to q99 by 1 % of that range."""
        b, steps = self.evaluation.bounds, np.concatenate(self.chunks)
        margin = 0.01 * (b.high - b.low) + 1e-9
        return float(((steps < b.low - margin) | (steps > b.high + margin)).any(1).mean())

    def _executed(self, frame: FrameResult, following: FrameResult) -> int:
        """Steps of a chunk that were executed when the next one took over."""
        if self.execute_steps:
            return self.execute_steps
        episode = self.bags.episode(frame.episode)
        if episode.executed is not None and episode.executed[frame.step] > 0:
            return int(episode.executed[frame.step])
        seconds = (episode.stamps[following.step] - episode.stamps[frame.step]) / 1e9
        return max(1, round(seconds / self.evaluation.spec.dt))

    def _joins(self) -> dict[str, Any]:
        """Change from the last step executed of a chunk to the first of the next, in mm and mrad,
        beside the change from step to step within chunks."""
        jumps, inner = [], []
        frames = self.evaluation.frames
        for number, (a, b) in enumerate(pairwise(frames)):
            chunk = self.chunks[number]
            if len(chunk) > 1:
                inner.append(np.diff(chunk[:, :6], axis=0))
            if a.episode == b.episode and b.step == a.step + 1:
                last = min(self._executed(a, b), len(chunk)) - 1
                jumps.append(b.predicted[:6] - chunk[last, :6])
        found: dict[str, Any] = {"count": len(jumps)}
        for name, rows in (("jump", jumps), ("within", inner)):
            for what, side in SIDES:
                values = []
                if rows:
                    changes = np.concatenate([np.atleast_2d(r) for r in rows])
                    values = 1e3 * np.linalg.norm(changes[:, side], axis=1)
                unit = "mm" if what == "translation" else "mrad"
                found[f"{name}_{what}_{unit}"] = _spread(values)
        return found

    def _chunk_accuracy(self) -> dict[str, float] | None:
        """Accuracy over all steps of the chunks, if the recorded ones are as long."""
        bounds, values = self.evaluation.bounds, []
        for frame, chunk in zip(self.evaluation.frames, self.chunks, strict=True):
            chunks = self.bags.chunks(frame.episode)
            if chunks is None or chunks[frame.step].actions.shape != chunk.shape:
                return None
            truth = chunks[frame.step].actions
            values.append((accuracy(truth, chunk, bounds), clipped_accuracy(truth, chunk, bounds)))
        raw, clipped = np.concatenate(values, axis=1)
        return {"raw": float(raw.mean()), "clipped": float(clipped.mean()), "steps": len(raw)}

    def _episodes(self) -> list[dict[str, Any]]:
        rows = []
        for number in sorted({f.episode for f in self.evaluation.frames}):
            frames = [f for f in self.evaluation.frames if f.episode == number]
            truth = np.stack([f.truth for f in frames])
            predicted = np.stack([f.predicted for f in frames])
            flips = gripper_flips(truth, predicted, self.evaluation.spec)
            about = self.bags.episode(number).metadata
            rows.append(
                {
                    "episode": number,
                    "bag": self.bags.bag_path(number).name,
                    "frames": len(frames),
                    "instruction": frames[0].instruction,
                    "outcome": str(about.get("outcome", "")),
                    "accuracy": float(np.mean([f.accuracy for f in frames])),
                    "accuracy_clipped": float(np.mean([f.accuracy_clipped for f in frames])),
                    "direction": self._direction(truth[:, :3], predicted[:, :3], slice(0, 3))[
                        "cosine"
                    ],
                    "flips": None if flips is None else flips.flips,
                    "latency_ms": 1e3 * float(np.median([f.latency for f in frames])),
                }
            )
        return rows


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median, 95th percentile and maximum of the known values; None if there are none."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    if not known.size:
        return None
    return {
        "median": float(np.median(known)),
        "p95": float(np.percentile(known, 95)),
        "max": float(known.max()),
    }
