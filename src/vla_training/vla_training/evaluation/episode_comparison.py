"""A model's answers beside what was done in one episode of a dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from vla_inference.policies.base import Policy
from vla_inference.types import Episode
from vla_training.datasets.base import EpisodeSet
from vla_training.evaluation.dataset_view import get_episode
from vla_training.evaluation.evaluate import evaluate
from vla_training.evaluation.result import FrameResult


class OneEpisode(EpisodeSet):
    """One episode of a dataset, with the whole dataset's name and statistics."""

    def __init__(self, whole: EpisodeSet, index: int):
        self._whole, self._episode = whole, get_episode(whole, index)
        self.name, self.path, self.spec = whole.name, whole.path, whole.spec
        self.notes = list(whole.notes)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Episode:
        self.check_index(index)
        return self._episode

    def actions(self, index: int) -> np.ndarray:
        self.check_index(index)
        return self._episode.actions.astype(np.float64)

    def cameras(self) -> list[str]:
        return self._whole.cameras()

    def statistics(self) -> dict:
        return self._whole.statistics()


def compare_episode(
    policy: Policy,
    data: EpisodeSet,
    index: int,
    report: Callable[[FrameResult], None] = lambda _: None,
) -> dict[str, Any]:
    """The first step of each answer and the recorded action, as JSON can say it.

    Actions are [T, D] in the units of `dimensions`; errors in mm and mrad where these are m and
    rad. Raises VlaError or DataError where model and dataset do not go together.
    """
    result = evaluate(policy, OneEpisode(data, index), report=report)
    statistics = result.statistics()
    return {
        "model": result.model,
        "index": index,
        "dimensions": [{"part": p.name, **asdict(d)} for p in result.spec.parts for d in p.dims],
        "actions": np.round(result.truth, 6).tolist(),
        "predicted": np.round(result.predicted, 6).tolist(),
        "accuracy": statistics["mean"]["accuracy_clipped"],
        "latency_ms": 1e3 * statistics["mean"]["latency"],
        "errors": statistics["dimensions"],
        "notes": result.notes,
    }
