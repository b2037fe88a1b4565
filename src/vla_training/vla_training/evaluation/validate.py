"""Replays recorded bags through a model and compares its predictions: `vla validate`.

The same metrics come from reading a bag (`validate`) and from a running graph
(`vla_training/ros/validation_node.py`): both fill a `Validation` frame by frame.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

from vla_inference.errors import DataError
from vla_inference.policies.base import Policy
from vla_inference.types import ActionSpec
from vla_training.datasets.action_form import is_eef_delta
from vla_training.datasets.bag.reader import BagSet
from vla_training.evaluation.compatibility import RecordedPast, agree, choose_space
from vla_training.evaluation.config import ValidateConfig
from vla_training.evaluation.result import FrameResult
from vla_training.evaluation.validation import Validation


def check_form(spec: ActionSpec, where: str) -> None:
    if not is_eef_delta(spec):
        raise DataError(
            f"{where} has actions {'; '.join(map(str, spec.parts))}",
            "bags are validated against end-effector deltas with a gripper",
        )


def prepare(policy: Policy, bags: BagSet, config: ValidateConfig) -> tuple[Validation, Policy]:
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


def count(bags: BagSet, config: ValidateConfig) -> tuple[int, int]:
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
        "an idle one, so --max-latency-ms says little"
    )


def validate(
    policy: Policy,
    bags: BagSet,
    config: ValidateConfig = ValidateConfig(),
    report: Callable[[FrameResult], None] = lambda _: None,
) -> Validation:
    """Runs the policy on every recorded image; `report` receives each.

    A Ctrl-C after the first frame ends it early. Raises VlaError or DataError where model and
    bags don't go together.
    """
    result, policy = prepare(policy, bags, config)
    look = RecordedPast(policy, bags, config.cameras)
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
                seen = look(index, replace(seen, instruction=text))
                begun = time.perf_counter()
                chunk = policy.act(seen)
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
