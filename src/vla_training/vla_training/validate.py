"""A model against recorded bags: what it says to the recorded pictures, beside what was done.

The same figures come from reading a bag (`validate`) and from a running graph
(`validation_node.py`): both fill a `Validation` frame by frame.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from vla_inference.control.limits import SafetyLimits
from vla_inference.errors import DataError
from vla_inference.policy import Policy
from vla_inference.types import ActionSpec, Observation
from vla_training.accuracy import Range, accuracy, clipped_accuracy, gripper_flips
from vla_training.datasets.bag import BagSet
from vla_training.evaluate import Evaluation, Frame, agree, choose_cameras, choose_space

STILL = 0.02  # a motion shorter than this share of the data's range has no direction
SIDES = (("translation", slice(0, 3)), ("rotation", slice(3, 6)))


@dataclass(frozen=True)
class ValidationConfig:
    """None: no limit, or what model and bags suggest.

    max_steps: pictures in all. action_space: name of the model's statistics. cameras: what the
    model sees, in its order. instruction: takes the place of the recorded ones. execute_steps: of
    each chunk, before the next one takes over; by the recording, if None.
    """

    max_episodes: int | None = None
    max_steps: int | None = None
    action_space: str | None = None
    cameras: tuple[str, ...] = ()
    instruction: str | None = None
    execute_steps: int | None = None


class Validation:
    """Predictions beside recorded actions, and what they amount to.

    bounds: q01 and q99 [D]. unanswered: pictures that got no prediction.
    """

    def __init__(
        self, model: str, bags: BagSet, space: str, spec: ActionSpec, bounds: Range,
        notes: Sequence[str] = (), execute_steps: int | None = None,
    ):  # fmt: skip
        self.bags, self.execute_steps = bags, execute_steps
        self.evaluation = Evaluation(
            model, bags.name, space, spec, bounds, None, [*bags.notes, *notes]
        )
        self.chunks: list[np.ndarray] = []  # float64 [T, D] by frame
        self.ages: list[float] = []  # of the picture when its answer was there, s; NaN: not known
        self.unanswered = 0
        self._sums = np.zeros(2)

    def add(
        self, episode: int, step: int, instruction: str, truth: np.ndarray, chunk: np.ndarray,
        latency: float, total: int, age: float = math.nan,
    ) -> Frame:  # fmt: skip
        """truth: [D]; chunk: [T, D] as predicted; latency, age in s."""
        e = self.evaluation
        truth, chunk = np.asarray(truth, np.float64), np.asarray(chunk, np.float64)
        values = np.array([f(truth, chunk[0], e.bounds) for f in (accuracy, clipped_accuracy)])
        self._sums += values
        number = len(e.frames) + 1
        frame = Frame(
            number, total, episode, step, instruction, truth, chunk[0], *values.tolist(),
            *(self._sums / number).tolist(), latency,
        )  # fmt: skip
        e.frames.append(frame)
        self.chunks.append(chunk)
        self.ages.append(age)
        return frame

    # -- figures ------------------------------------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """Those of an evaluation, and under "validation" what is asked of motion over time."""
        if not self.evaluation.frames:
            raise DataError(
                f"no picture of {self.bags.path} got an answer", "; ".join(self.evaluation.notes)
            )
        found = self.evaluation.statistics()
        truth, predicted = self.evaluation.truth, self.evaluation.predicted
        answered = len(self.evaluation.frames)
        found["validation"] = {
            "bags": str(self.bags.path),
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
            "clip_rate": self._clip_rate(self.chunks),
            "beyond_statistics": self._beyond(),
            "joins": self._joins(),
            "chunk_accuracy": self._chunk_accuracy(),
            "episodes": self._episodes(),
        }
        return found

    def _direction(self, truth, predicted, side: slice) -> dict[str, Any]:
        """Cosine of the angle between them, over frames whose true motion has a direction."""
        span = np.nan_to_num(self.evaluation.bounds.span[side])
        length = np.linalg.norm(truth, axis=1)
        moving = length > max(STILL * float(np.linalg.norm(span)), 1e-9)
        if not moving.any():
            return {"cosine": None, "frames": 0}
        product = (truth[moving] * predicted[moving]).sum(1)
        scale = length[moving] * np.linalg.norm(predicted[moving], axis=1)
        cosine = np.divide(product, scale, out=np.zeros_like(product), where=scale > 0)
        return {
            "cosine": float(cosine.mean()), "frames": int(moving.sum()),
            "opposite": float((cosine < 0).mean()),
        }  # fmt: skip

    def _flip_rate(self) -> float | None:
        e = self.evaluation
        found = gripper_flips(e.truth, e.predicted, e.spec)
        return None if found is None else found.flips / found.frames

    def _changes(self) -> dict[str, int]:
        """How often the gripper opens or closes from one picture to the next."""
        counts = {"predicted": 0, "recorded": 0}
        frames = self.evaluation.frames
        for a, b in pairwise(frames):
            if a.episode == b.episode:
                counts["predicted"] += (a.predicted[-1] > 0.5) != (b.predicted[-1] > 0.5)
                counts["recorded"] += (a.truth[-1] > 0.5) != (b.truth[-1] > 0.5)
        return {k: int(v) for k, v in counts.items()}

    def _recorded(self) -> dict[str, Any]:
        """Latency and age of the pictures when the bag was recorded, where chunks tell."""
        latency, age = [], []
        for f in self.evaluation.frames:
            chunks = self.bags.chunks(f.episode)
            if chunks is not None and chunks[f.step].model:
                chunk = chunks[f.step]
                latency.append(chunk.latency)
                stamp = int(self.bags.episode(f.episode).stamps[f.step])
                age.append((chunk.produced - stamp) / 1e6 if chunk.produced else math.nan)
        return {"latency_ms": _spread(latency), "input_age_ms": _spread(age)}

    def _clip_rate(self, chunks: Sequence[np.ndarray]) -> float:
        """Share of predicted steps that the command node's usual limits would clip."""
        limits, dt = SafetyLimits(), self.evaluation.spec.dt
        steps = np.concatenate(chunks)
        way = np.linalg.norm(steps[:, :3], axis=1)
        turn = np.linalg.norm(steps[:, 3:6], axis=1)
        beyond = way > min(limits.translation_per_step, limits.linear_velocity * dt)
        beyond |= turn > min(limits.rotation_per_step, limits.angular_velocity * dt)
        return float(beyond.mean())

    def _beyond(self) -> float:
        """Share of predicted steps with a number outside q01 to q99 by 1 % of that range."""
        b, steps = self.evaluation.bounds, np.concatenate(self.chunks)
        margin = 0.01 * (b.high - b.low) + 1e-9
        return float(((steps < b.low - margin) | (steps > b.high + margin)).any(1).mean())

    def _executed(self, frame: Frame, following: Frame) -> int:
        """Steps of a chunk that were executed when the following one took over."""
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
        """Over all steps of the chunks, where the recorded ones are as long."""
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
                    "episode": number, "bag": self.bags.bag_path(number).name,
                    "frames": len(frames), "instruction": frames[0].instruction,
                    "outcome": str(about.get("outcome", "")),
                    "accuracy": float(np.mean([f.accuracy for f in frames])),
                    "accuracy_clipped": float(np.mean([f.accuracy_clipped for f in frames])),
                    "direction": self._direction(truth[:, :3], predicted[:, :3],
                                                 slice(0, 3))["cosine"],
                    "flips": None if flips is None else flips.flips,
                    "latency_ms": 1e3 * float(np.median([f.latency for f in frames])),
                }
            )  # fmt: skip
        return rows


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median, 95th percentile and largest of what is known; None where nothing is."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    if not known.size:
        return None
    return {
        "median": float(np.median(known)), "p95": float(np.percentile(known, 95)),
        "max": float(known.max()),
    }  # fmt: skip


def check_form(spec: ActionSpec, where: str) -> None:
    if len(spec) != 7 or spec.names[-1] != "gripper":
        raise DataError(
            f"{where} has actions {', '.join(spec.names)}",
            "bags are validated against end-effector deltas with a gripper",
        )


def prepare(policy: Policy, bags: BagSet, config: ValidationConfig) -> tuple[Validation, Any]:
    """An empty validation, and what to ask the policy's actions in."""
    space, statistics = choose_space(policy, bags, config.action_space)
    model = policy.action_spec(space)
    check_form(model, f"model {policy.name!r}")
    bags.read_as(model)
    bags.read_all()
    spec, bounds, notes = agree(policy, bags, space, statistics)
    name = space if isinstance(space, str) else "custom"
    found = Validation(policy.name, bags, name, spec, bounds, notes, config.execute_steps)
    return found, space


def count(bags: BagSet, config: ValidationConfig) -> tuple[int, int]:
    """Episodes and pictures that will be asked for."""
    episodes = min(len(bags), config.max_episodes or len(bags))
    frames = sum(len(bags.episode(i)) for i in range(episodes))
    return episodes, min(frames, config.max_steps or frames)


def validate(
    policy: Policy, bags: BagSet, config: ValidationConfig = ValidationConfig(),
    report: Callable[[Frame], None] = lambda _: None,
) -> Validation:  # fmt: skip
    """Ask the policy for every recorded picture; `report` is told each.

    A Ctrl-C after the first frame ends it early. Raises VlaError or DataError where model and
    bags don't go together.
    """
    result, space = prepare(policy, bags, config)
    cameras = choose_cameras(policy, bags, config.cameras)
    episodes, total = count(bags, config)
    policy.warm_up(space)
    try:
        for number in range(episodes):
            for index, step in enumerate(bags[number].steps):
                if len(result.evaluation.frames) >= total:
                    return result
                seen = step.observation
                text = config.instruction or seen.instruction
                if not text.strip():
                    raise DataError(
                        f"{bags.bag_path(number)}: step {index} has no instruction",
                        "name its topic with --instruction-topic, or give --instruction",
                    )
                images = {c: seen.images[c] for c in cameras}
                begun = time.perf_counter()
                chunk = policy.predict_action(
                    Observation(images, text, seen.state), unnorm_key=space
                )
                latency = time.perf_counter() - begun
                truth = bags.actions(number)[index]
                report(result.add(number, index, text, truth, chunk.actions, latency, total))
    except KeyboardInterrupt:
        if not result.evaluation.frames:
            raise
        result.evaluation.complete = False
    return result


# -- thresholds -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thresholds:
    """None: not asked. Shares are 0 to 1."""

    min_accuracy: float | None = None
    min_raw_accuracy: float | None = None
    min_direction: float | None = None
    min_coverage: float | None = None
    max_gripper_flips: float | None = None
    max_clip_rate: float | None = None
    max_latency_ms: float | None = None
    max_jump_mm: float | None = None

    def failures(self, statistics: Mapping[str, Any]) -> list[str]:
        """What is not reached, in words; what cannot be told is not reached either."""
        v, mean = statistics["validation"], statistics["mean"]
        jump = v["joins"]["jump_translation_mm"]
        values = {
            "min_accuracy": mean["accuracy_clipped"],
            "min_raw_accuracy": mean["accuracy"],
            "min_direction": v["direction"]["translation"]["cosine"],
            "min_coverage": v["coverage"],
            "max_gripper_flips": v["gripper_flips"],
            "max_clip_rate": v["clip_rate"],
            "max_latency_ms": v["latency_ms"]["p95"],
            "max_jump_mm": jump and jump["p95"],
        }
        found = []
        for name, value in values.items():
            bound, words = getattr(self, name), name.split("_", 1)[1].replace("_", " ")
            if bound is None:
                continue
            if value is None or not math.isfinite(value):
                found.append(f"{words} is not known, {bound:g} is asked for")
            elif name.startswith("min") and value < bound:
                found.append(f"{words} {value:.4f} is below {bound:g}")
            elif name.startswith("max") and value > bound:
                found.append(f"{words} {value:.4f} is above {bound:g}")
        return found
