"""Replays recorded bags through a model and compares its predictions: `vla validate`.

The same metrics come from reading a bag (`validate`) and from a running graph
(`vla_training/ros/validation_node.py`): both fill a `Validation` frame by frame.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vla_inference.errors import DataError
from vla_inference.policies.base import Policy
from vla_inference.types import ActionSpec, Observation
from vla_training.datasets.action_form import is_eef_delta
from vla_training.datasets.bag.reader import BagSet
from vla_training.evaluation.compatibility import agree, choose_cameras, choose_space
from vla_training.evaluation.result import Frame
from vla_training.evaluation.validation import Validation


@dataclass(frozen=True)
class ValidationConfig:
    """What to validate. None: no limit, or the default of model and bags.

    max_steps: images in all. action_space: name of the model's statistics. cameras: what the
    model sees, in its order. instruction: takes the place of the recorded ones. execute_steps: of
    each chunk, before the next one takes over; by the recording, if None.
    """

    max_episodes: int | None = None
    max_steps: int | None = None
    action_space: str | None = None
    cameras: tuple[str, ...] = ()
    instruction: str | None = None
    execute_steps: int | None = None


def check_form(spec: ActionSpec, where: str) -> None:
    if not is_eef_delta(spec):
        raise DataError(
            f"{where} has actions {'; '.join(map(str, spec.parts))}",
            "bags are validated against end-effector deltas with a gripper",
        )


def prepare(policy: Policy, bags: BagSet, config: ValidationConfig) -> tuple[Validation, Policy]:
    """An empty validation, and the policy in the action space of the comparison."""
    candidate = choose_space(policy, bags, config.action_space)
    policy = candidate.policy
    model = policy.action_spec()
    check_form(model, f"model {policy.name!r}")
    bags.read_as(model)
    bags.read_all()
    spec, bounds, notes = agree(candidate, bags)
    found = Validation(
        policy.name,
        bags,
        candidate.space,
        spec,
        bounds,
        notes,
        execute_steps=config.execute_steps,
    )
    return found, policy


def count(bags: BagSet, config: ValidationConfig) -> tuple[int, int]:
    """Number of episodes and images to process."""
    episodes = min(len(bags), config.max_episodes or len(bags))
    frames = sum(len(bags.episode(i)) for i in range(episodes))
    return episodes, min(frames, config.max_steps or frames)


def busy() -> str:
    """A note if other processes use the cores, since latencies are then not only the model's."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load < cores:
        return ""
    return (
        f"the machine was busy (load {load:.1f} on {cores} cores): latencies are longer than on "
        "one of its own, so --max-latency-ms says little"
    )


def validate(
    policy: Policy,
    bags: BagSet,
    config: ValidationConfig = ValidationConfig(),
    report: Callable[[Frame], None] = lambda _: None,
) -> Validation:
    """Runs the policy on every recorded image; `report` receives each.

    A Ctrl-C after the first frame ends it early. Raises VlaError or DataError where model and
    bags don't go together.
    """
    result, policy = prepare(policy, bags, config)
    cameras = choose_cameras(policy, bags, config.cameras)
    episodes, total = count(bags, config)
    result.evaluation.notes += [note] if (note := busy()) else []
    policy.warm_up()
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
                chunk = policy.act(Observation(images, text, seen.state))
                latency = time.perf_counter() - begun
                if (config.execute_steps or 0) > len(chunk.actions):
                    raise DataError(
                        f"--execute-steps is {config.execute_steps}, the model's chunks have "
                        f"{len(chunk.actions)} steps",
                        f"give at most {len(chunk.actions)}",
                    )
                truth = bags.actions(number)[index]
                frame = result.add(
                    truth,
                    chunk.actions,
                    episode=number,
                    step=index,
                    instruction=text,
                    latency=latency,
                    total=total,
                )
                report(frame)
    except KeyboardInterrupt:
        if not result.evaluation.frames:
            raise
        result.evaluation.complete = False
    return result


# -- thresholds -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thresholds:
    """Limits that a validation must keep; None: no check. Shares are 0 to 1."""

    min_accuracy: float | None = None
    min_raw_accuracy: float | None = None
    min_direction: float | None = None
    min_coverage: float | None = None
    max_gripper_flips: float | None = None
    max_clip_rate: float | None = None
    max_latency_ms: float | None = None
    max_jump_mm: float | None = None

    def failures(self, statistics: Mapping[str, Any]) -> list[str]:
        """Describes the thresholds that were missed; unknown values count as missed."""
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
                found.append(f"{words} is not known, {bound:g} is required")
            elif name.startswith("min") and value < bound:
                found.append(f"{words} {value:.4f} is below {bound:g}")
            elif name.startswith("max") and value > bound:
                found.append(f"{words} {value:.4f} is above {bound:g}")
        return found
