"""Trains the head on episodes whose rewards say when they succeeded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vla_inference.errors import DataError, VlaError
from vla_inference.options import check_options, option
from vla_inference.types import Episode, Observation
from vla_training.datasets import EpisodeSet
from vla_training.estimate.estimator import SUCCESS, Estimate, Estimator, Eyes, Head, suggested

HELD_OUT = 5  # every fifth episode


@dataclass(frozen=True, kw_only=True)
class EstimateConfig:
    """How the head is trained."""

    every: int = option(2, "Look at every n-th step of an episode.", low=1)
    steps: int = option(1000, "Optimiser steps, each on all looks at once.", low=1)
    learning_rate: float = option(2e-3, "Peak of the cosine schedule.", above=0.0)
    seed: int = option(0, "Seed of the head's first weights.", low=0)

    def check(self) -> None:
        check_options(self)


def labels(rewards: np.ndarray) -> np.ndarray:
    """float32 [T, 2]: progress, and 1 where the task is done.

    Progress is the share of the way to the first success. Of an episode without one it is not
    known (NaN), but that it is never done.
    """
    done = np.asarray(rewards) > 0
    progress = np.full(len(done), np.nan)
    if done.any():
        first = int(done.argmax())
        progress = np.minimum(np.arange(len(done)) / max(1, first), 1.0)
    return np.stack([progress, done], axis=1).astype(np.float32)


def observed(episode: Episode, cameras: Sequence[str], step: int) -> Observation:
    """A step as the model sees it."""
    seen = episode.steps[step].observation
    return Observation({c: seen.images[c] for c in cameras}, seen.instruction, seen.state)


def train(
    data: EpisodeSet,
    eyes: Eyes,
    config: EstimateConfig,
    report: Callable[[str], None] = lambda _: None,
) -> Estimator:
    """A head for all episodes but every fifth, and its figures on these."""
    config.check()
    cameras = data.cameras()[: eyes.policy.needs.images]
    if len(data) < HELD_OUT or not cameras:
        raise DataError(f"{data.path} has {len(data)} episodes", f"give at least {HELD_OUT}")
    hidden, known = [], []
    for number, episode in enumerate(data):
        steps = range(len(episode) - 1, -1, -config.every)[::-1]  # the last one is among them
        hidden.append(torch.stack([eyes(observed(episode, cameras, t)) for t in steps]))
        known.append(torch.from_numpy(labels(episode.rewards)[list(steps)]))
        report(f"{number + 1} of {len(data)} episodes looked at")
    apart = [i % HELD_OUT == HELD_OUT - 1 for i in range(len(data))]
    kept = [i for i, held in enumerate(apart) if not held]
    head = fit(torch.cat([hidden[i] for i in kept]), torch.cat([known[i] for i in kept]), config)
    held = [(hidden[i], known[i]) for i, out in enumerate(apart) if out]
    return Estimator(eyes, head, {**figures(head, held), "episodes": len(data)})


def fit(hidden: Tensor, known: Tensor, config: EstimateConfig) -> Head:
    """hidden [N, H], known [N, 2] of `labels`. Looks that are done weigh as much as all others."""
    if not known[:, 1].any():
        raise VlaError("no episode has a reward: none succeeded", "give some that did")
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        head = Head(hidden.shape[1])
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    told = ~known[:, 0].isnan()
    done = known[:, 1]
    weight = (1 - done).sum() / done.sum()
    for _ in range(config.steps):
        progress, logit = head(hidden).unbind(1)
        loss = F.binary_cross_entropy_with_logits(logit, done, pos_weight=weight)
        if told.any():
            loss = loss + F.binary_cross_entropy_with_logits(progress[told], known[told, 0])
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return head


@torch.no_grad()
def figures(head: Head, held: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Of held-out episodes: mean error of progress, share of looks and of verdicts that are
    right."""
    errors: list[float] = []
    looks: list[bool] = []
    verdicts: list[bool] = []
    for hidden, known in held:
        found = head.eval()(hidden).sigmoid()
        errors += (found[:, 0] - known[:, 0]).abs()[~known[:, 0].isnan()].tolist()
        looks += ((found[:, 1] > 0.5) == (known[:, 1] > 0.5)).tolist()
        estimates = [Estimate(p, d) for p, d in found.tolist()]
        verdicts.append((suggested(estimates) == SUCCESS) == bool(known[-1, 1]))
    return {
        "progress_error": float(np.mean(errors)) if errors else None,
        "looks_right": float(np.mean(looks)),
        "verdicts_right": float(np.mean(verdicts)),
        "held_out_episodes": len(held),
    }
