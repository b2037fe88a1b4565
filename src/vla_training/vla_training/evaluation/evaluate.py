"""Offline evaluation: compares a policy's predictions with a dataset's actions, frame by frame."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from vla_inference.errors import DataError
from vla_inference.policies.base import Policy
from vla_inference.policies.normalisation import Normalisation
from vla_inference.types import Observation
from vla_training.datasets import EpisodeSet
from vla_training.evaluation.compatibility import (
    NORMALISED,
    RecordedPast,
    agree,
    choose_space,
)
from vla_training.evaluation.config import EvalConfig
from vla_training.evaluation.result import Evaluation, FrameResult


def evaluate(
    policy: Policy,
    dataset: EpisodeSet,
    config: EvalConfig = EvalConfig(),
    reference: Policy | None = None,
    report: Callable[[FrameResult], None] = lambda _: None,
) -> Evaluation:
    """Predicts the action of every frame; `report` receives each.

    A Ctrl-C after the first frame ends it early: the result is then not `complete`.
    Raises VlaError or DataError where model and dataset don't go together.
    """
    candidate = choose_space(policy, dataset, config.action_space)
    policy, space = candidate.policy, candidate.space
    spec, bounds, notes = agree(candidate, dataset)
    if reference is not None:
        other = candidate.same_space(reference)
        reference = other.policy
        agree(other, dataset)
    result = Evaluation(
        model=policy.name,
        dataset=dataset.name,
        action_space=space,
        spec=spec,
        bounds=bounds,
        reference=None if reference is None else reference.name,
        notes=[*dataset.notes, *notes],
    )
    to_space = None
    if space == NORMALISED:
        to_space = Normalisation.from_statistics(dataset.statistics()["action"])
    policy.warm_up()
    if reference is not None:
        reference.warm_up()
    total = count_frames(dataset, config)
    looks = [RecordedPast(p, dataset, config.cameras) for p in (policy, reference) if p]
    try:
        for episode, step, seen, truth in _frames(dataset, config, total):
            if to_space is not None:
                truth = _normalise(truth, to_space)
            chunk, latency = _predict(policy, looks[0](step, seen))
            theirs, their_latency = None, None
            if reference is not None:
                theirs, their_latency = _predict(reference, looks[1](step, seen))
            frame = result.add(
                truth,
                chunk.actions[0].astype(np.float64),
                total=total,
                episode=episode,
                step=step,
                instruction=seen.instruction,
                latency=latency,
                tokens=chunk.tokens,
                reference=None if theirs is None else theirs.actions[0].astype(np.float64),
                reference_latency=their_latency,
                reference_tokens=None if theirs is None else theirs.tokens,
            )
            report(frame)
    except KeyboardInterrupt:
        if not result.frames:
            raise
        result.complete = False
    if not result.frames:
        raise DataError(f"{dataset.path} has no frame to evaluate", "raise the limits")
    return result


def _frames(dataset: EpisodeSet, config: EvalConfig, total: int):
    """(number of the episode, of the step, observation, true action [D] float64)"""
    left = total
    for index in range(len(dataset)):
        if left <= 0:
            return
        for number, step in enumerate(dataset[index].steps[:left]):
            seen = step.observation
            if config.instruction is not None:
                seen = replace(seen, instruction=config.instruction)
            if not seen.instruction.strip():
                raise DataError(
                    f"{dataset.path}: episode {index}, step {number} has no instruction",
                    "give one with --instruction",
                )
            yield index, number, seen, np.asarray(step.action, np.float64)
            left -= 1


def _normalise(actions: np.ndarray, by: Normalisation) -> np.ndarray:
    """Like `by.normalise`, but without clipping to [-1, 1], which the metric does."""
    span = np.where(by.high > by.low, by.high - by.low, np.inf)
    return np.where(by.mask, 2 * (actions - by.low) / span - (by.high > by.low), actions)


def count_frames(dataset: EpisodeSet, config: EvalConfig) -> int:
    """Number of frames to evaluate."""
    episodes = len(dataset)
    if config.max_episodes is not None:
        episodes = min(episodes, config.max_episodes)
    total = 0
    for index in range(episodes):
        total += len(dataset.actions(index))
        if config.max_steps is not None and total >= config.max_steps:
            return config.max_steps
    return total


def _predict(policy: Policy, seen: Observation):
    begun = time.perf_counter()
    chunk = policy.act(seen)
    return chunk, time.perf_counter() - begun
