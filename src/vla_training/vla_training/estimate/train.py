"""Trains the head on episodes whose rewards say when they succeeded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vla_inference.errors import DataError, VlaError
from vla_inference.estimate.estimator import (
    INTERVAL,
    PAST,
    Estimator,
    Eyes,
    Head,
    Heads,
    Seen,
)
from vla_inference.inputs.history import ImageHistory
from vla_inference.options import check_options, option
from vla_inference.types import Episode, Observation
from vla_training.datasets import EpisodeSet

HELD_OUT = 5  # every fifth episode is
FOLDS = 3  # heads; each is trained without a third of the episodes
SLACK = 1e-3  # s by which stamps may be off
SMOOTH = 0.02  # labels are this far from 0 and 1, so that no head is too sure of itself
BATCH = 16  # observations that the model looks at together


@dataclass(frozen=True, kw_only=True)
class EstimateConfig:
    """How the head is trained."""

    every: int = option(2, "Look at every n-th step of an episode.", low=1)
    settle: float = option(
        0.45, "Seconds that success must have lasted to count as done.", low=0.0, unit="s"
    )
    false_done: float = option(
        0.01, "Share of the looks at what is not done that may be called done.", low=0.0, high=1.0
    )
    steps: int = option(450, "Optimiser steps.", low=1)
    batch_size: int = option(128, "Looks of a step.", low=1)
    learning_rate: float = option(1e-3, "Peak of the schedule.", above=0.0)
    seed: int = option(0, "Seed of the head's first weights and of the batches.", low=0)

    def check(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class Looks:
    """What an episode looked like. seen: slots [N, 1 + PAST, S], patches [N, P, H], float16;
    known: [N, 2] of `labels`."""

    seen: Seen
    known: Tensor


def times_of(episode: Episode) -> np.ndarray:
    """float64 [T], s: the stamps, where the data have some that increase; else steps of dt."""
    stamps = np.array([step.observation.stamp for step in episode.steps])
    return stamps if (np.diff(stamps) > 0).all() else np.arange(len(stamps)) * episode.spec.dt


def labels(rewards: np.ndarray, times: np.ndarray, settle: float = 0.0) -> np.ndarray:
    """float32 [T, 2]: progress, and 1 where the task is done; NaN where it is not known.

    A step's image is of before its action, so it shows what the reward of the step before says.
    Done is a success that has lasted for `settle` s of times [T]; a younger one may still be lost,
    so it is neither. Nor is the last image, where the reward after it says otherwise. Progress is
    the share of the way to the first success that is done.
    """
    success = np.append(False, np.asarray(rewards)[:-1] > 0)
    before = np.maximum.accumulate(np.where(success, 0, np.arange(len(success))))
    lasted = times - times[before]
    done = np.where(success, np.nan, 0.0)
    done[success & (lasted >= settle - SLACK)] = 1.0
    progress = np.full(len(success), np.nan)
    if (done == 1).any():
        begun = int((done == 1).argmax())
        first = int(before[begun]) + 1
        progress[: first + 1] = np.arange(first + 1) / max(1, first)
        progress[done == 1] = 1.0
    if done[-1] != (rewards[-1] > 0):
        done[-1] = np.nan
    return np.stack([progress, done], axis=1).astype(np.float32)


def observed(episode: Episode, cameras: Sequence[str], step: int) -> Observation:
    """A step as the model sees it."""
    seen = episode.steps[step].observation
    if missing := [c for c in cameras if c not in seen.images]:
        raise DataError(
            f"an episode ({seen.instruction!r}) has no image of camera {missing[0]!r}",
            "leave it out, or name a camera that all have",
        )
    return Observation({c: seen.images[c] for c in cameras}, seen.instruction, seen.state)


def look_at(eyes: Eyes, episode: Episode, cameras: Sequence[str], steps: Sequence[int]) -> Seen:
    """These steps, and those before them, each looked at once; float16, as there are many."""
    history: ImageHistory[int] = ImageHistory(PAST, INTERVAL)
    past = [history.put(time, t) for t, time in enumerate(times_of(episode))]
    wanted = [[t, *past[t]] for t in steps]
    once = sorted({t for row in wanted for t in row})
    parts = [
        eyes([observed(episode, cameras, t) for t in once[at : at + BATCH]])
        for at in range(0, len(once), BATCH)
    ]
    index = torch.searchsorted(torch.tensor(once), torch.tensor(wanted))
    seen = Seen.join(parts)
    return Seen(seen.slots[index].half(), seen.patches[index[:, 0]].half())


def cameras_of(data: EpisodeSet, eyes: Eyes, named: Sequence[str] = ()) -> list[str]:
    """Cameras to look through, the first ones if none are named; raises DataError.

    Refuses a set that lacks one or has an episode without a step, before long work begins.
    """
    known, count = data.cameras(), eyes.policy.needs.images
    cameras = list(named) or known[:count]
    for camera in cameras:
        if camera not in known:
            raise data.lacks(camera)
    if len(cameras) != count:
        raise DataError(
            f"the model takes {count} images, {data.path} gives {len(cameras)} "
            f"({', '.join(cameras) or 'none'})",
            "name that many cameras",
        )
    for number in range(len(data)):
        if not len(data.actions(number)):
            raise DataError(f"{data.where(number)} has no step", "leave it out")
    return cameras


def looks_of(
    eyes: Eyes, episode: Episode, cameras: Sequence[str], config: EstimateConfig
) -> Looks:
    steps = list(range(len(episode) - 1, -1, -config.every))[::-1]  # the last one is among them
    known = labels(episode.rewards, times_of(episode), config.settle)[steps]
    return Looks(look_at(eyes, episode, cameras, steps), torch.from_numpy(known))


def train(
    data: EpisodeSet,
    eyes: Eyes,
    config: EstimateConfig,
    report: Callable[[str], None] = lambda _: None,
) -> Estimator:
    """An estimator from four in five episodes, with its figures on the others."""
    config.check()
    if len(data) < HELD_OUT:
        raise DataError(f"{data.path} has {len(data)} episodes", f"give at least {HELD_OUT}")
    cameras = cameras_of(data, eyes)
    looks = []
    for number, episode in enumerate(data):
        looks.append(looks_of(eyes, episode, cameras, config))
        report(f"{number + 1} of {len(data)} episodes looked at")
    return train_on(eyes, looks, config)


def train_on(eyes: Eyes, looks: Sequence[Looks], config: EstimateConfig) -> Estimator:
    kept = [look for i, look in enumerate(looks) if i % HELD_OUT != HELD_OUT - 1]
    found = cross_fit(eyes, kept, config)
    found.figures = {**figures(found, looks[HELD_OUT - 1 :: HELD_OUT]), "episodes": len(looks)}
    return found


def cross_fit(
    eyes: Eyes,
    looks: Sequence[Looks],
    config: EstimateConfig,
    more: Sequence[Sequence[Looks]] = (),
    run: Callable[..., Iterable[Head]] = map,
) -> Estimator:
    """Heads that each leave out a third of the episodes, on which the threshold is chosen.

    more: further looks of each episode, to train on alone. run: a `map`, perhaps in parallel.
    """
    parts = [
        [
            one
            for i, look in enumerate(looks)
            if i % FOLDS != fold
            for one in (look, *(more[i] if more else ()))
        ]
        for fold in range(FOLDS)
    ]
    heads = list(run(partial(fit, config=config), parts))
    done: list[float] = []
    known: list[Tensor] = []
    for fold, head in enumerate(heads):
        alone = Estimator(eyes, Heads([head]), 0.5, {})
        for look in looks[fold::FOLDS]:
            done += [e.done for e in alone(look.seen)]
            known.append(look.known[:, 1])
    chosen = threshold(np.array(done), torch.cat(known).numpy(), config.false_done)
    return Estimator(eyes, Heads(heads), chosen, {})


def fit(looks: Sequence[Looks], config: EstimateConfig) -> Head:
    """Looks that are done weigh as much as all others."""
    seen, known = Seen.join([x.seen for x in looks]), torch.cat([x.known for x in looks])
    told = ~known.isnan()
    if not (known[:, 1] == 1).any():
        raise VlaError(
            f"no episode has a reward that lasts for {config.settle:g} s: none succeeded",
            "give some that did, or another --settle",
        )
    drawn = torch.Generator().manual_seed(config.seed)
    weight = (known[:, 1] == 0).sum() / (known[:, 1] == 1).sum()
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        head = Head(seen.slots.shape[2], *seen.patches.shape[1:]).train()
        optimizer = torch.optim.AdamW(head.parameters(), config.learning_rate, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.learning_rate, total_steps=config.steps
        )
        for _ in range(config.steps):
            some = torch.randint(len(seen), (min(config.batch_size, len(seen)),), generator=drawn)
            drawn_looks = seen[some]
            logits = head(drawn_looks.slots.float(), drawn_looks.patches.float())
            loss = _loss(logits, known[some], told[some], weight)
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return head.eval()


def _loss(logits: Tensor, known: Tensor, told: Tensor, weight: Tensor) -> Tensor:
    """Of what is known; a batch may have nothing."""
    progress, done = (
        F.binary_cross_entropy_with_logits(
            logits[:, i][told[:, i]],
            SMOOTH + (1 - 2 * SMOOTH) * known[:, i][told[:, i]],
            pos_weight=weight if i else None,
            reduction="sum",
        )
        / told[:, i].sum().clamp(min=1)
        for i in range(2)
    )
    return progress + done


def threshold(done: np.ndarray, known: np.ndarray, false_done: float) -> float:
    """The least one, 0.5 or more, at which at most this share of what is not done is called so.

    done: [N], how likely. known: [N], 1 where it is, NaN where nobody knows.
    """
    wrong = np.sort(done[known == 0])[::-1]
    if not len(wrong):
        return 0.5
    most = wrong[min(int(false_done * len(wrong)), len(wrong) - 1)]
    return float(max(0.5, np.nextafter(most, 2.0)))


def figures(found: Estimator, held: Sequence[Looks]) -> dict[str, Any]:
    """Of held-out episodes: mean error of progress, counts of looks and of verdicts."""
    errors: list[float] = []
    looks = {"looks": 0, "looks_right": 0, "looks_not_done": 0, "looks_falsely_done": 0}
    ends = {"episodes": 0, "verdicts_right": 0, "failures": 0, "falsely_done": 0}
    for episode in held:
        estimates, known = found(episode.seen), episode.known.numpy()
        told = ~np.isnan(known)
        progress = np.array([e.progress for e in estimates])
        errors += np.abs(progress - known[:, 0])[told[:, 0]].tolist()
        says = np.array([e.suggested == "success" for e in estimates])
        is_done, sure = known[:, 1] == 1, told[:, 1]
        looks["looks"] += int(sure.sum())
        looks["looks_right"] += int((says == is_done)[sure].sum())
        looks["looks_not_done"] += int((sure & ~is_done).sum())
        looks["looks_falsely_done"] += int((says & sure & ~is_done).sum())
        if np.isnan(known[-1, 1]):
            continue  # how it ended is not known
        ends["episodes"] += 1
        ends["verdicts_right"] += bool(says[-1] == is_done[-1])
        ends["failures"] += bool(not is_done[-1])
        ends["falsely_done"] += bool(says[-1] and not is_done[-1])
    error = float(np.mean(errors)) if errors else None
    return {"progress_error": error, **looks, "held_out": ends}
