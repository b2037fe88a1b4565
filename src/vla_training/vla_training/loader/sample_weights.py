"""Weights of samples: of whole datasets, and of steps around a person's corrections.

A person who takes over shows two things: what to do (the steps in which they act, column
`intervention`) and that what the model did just before was wrong. The first may count more, the
second is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from vla_inference.errors import VlaError
from vla_inference.options import check_options, option


@dataclass(frozen=True, kw_only=True)
class SampleWeights:
    """How often samples are drawn. Only datasets with the column `intervention` have other than
    equal steps."""

    dataset_weights: tuple[float, ...] = option(
        (),
        "Shares of the datasets in the samples, in the order of --dataset, separated by commas, "
        "such as 1,1; default: by their frames.",
    )
    intervention_weight: float = option(
        2.0, "Weight of steps in which a person acted; the model's have 1.", above=0.0, high=1e3
    )
    before_takeover: float = option(
        1.0,
        "Seconds before a takeover, in which the model went wrong, that have --before-weight.",
        low=0.0,
        high=1e3,
    )
    before_weight: float = option(
        0.0, "Weight of the steps before a takeover; 0 leaves them out.", low=0.0, high=1e3
    )
    GROUPS = {"Weights of samples": ()}

    def check(self) -> None:
        check_options(self)
        if not all(0 < w < float("inf") for w in self.dataset_weights):
            raise VlaError(
                f"--dataset-weights is {', '.join(f'{w:g}' for w in self.dataset_weights)}",
                "give numbers above 0",
            )

    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common, as JSON; nothing where all is as usual.

        The weights of datasets are the datasets' own there.
        """
        mine = asdict(replace(self, dataset_weights=()))
        return {} if mine == asdict(SampleWeights()) else {"weights": mine}

    def of_datasets(self, count: int) -> Sequence[float | None]:
        """One for each of `count` datasets; None: by its frames."""
        if self.dataset_weights and len(self.dataset_weights) != count:
            raise VlaError(
                f"--dataset-weights has {len(self.dataset_weights)} numbers for {count} datasets",
                "give one for each",
            )
        return self.dataset_weights or (None,) * count

    def of_steps(self, interventions: np.ndarray, ends: np.ndarray, period: float) -> np.ndarray:
        """float32 [N]: the weight of each step.

        interventions: bool [N], of all episodes in turn, each ending before one of `ends` [E].
        period: s from one step to the next.
        """
        acted = np.asarray(interventions, bool)
        weights = np.where(acted, self.intervention_weight, 1.0).astype(np.float32)
        begins = np.concatenate([[0], ends[:-1]]).astype(int)
        rises = acted.copy()
        rises[1:] &= ~acted[:-1]
        rises[begins[begins < len(acted)]] = False  # acted from the first step: nothing before
        steps = round(self.before_takeover / period)
        for takeover in np.flatnonzero(rises):
            begin = begins[np.searchsorted(ends, takeover, side="right")]
            before = slice(max(begin, takeover - steps), takeover)
            weights[before] = np.where(acted[before], weights[before], self.before_weight)
        return weights


def chunk_limits(weights: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """int64 [N]: one past the last step that a chunk from each step on may have.

    A chunk ends with its episode, and before the first step that is left out.
    """
    count = len(weights)
    stops = np.where(weights > 0, count, np.arange(count))
    following = np.minimum.accumulate(stops[::-1])[::-1]
    last = ends[np.searchsorted(ends, np.arange(count), side="right")]
    return np.minimum(following, last).astype(np.int64)


def balanced(weights: np.ndarray, ends: Sequence[int], shares: Sequence[float]) -> np.ndarray:
    """The weights [N] of steps, scaled so that datasets have these shares of their sum.

    ends: one past the last step of each dataset; those beyond the shares keep their weights.
    """
    scaled, begins = weights.astype(np.float64), [0, *ends]
    parts = [slice(begins[i], end) for i, end in enumerate(ends)][: len(shares)]
    total = sum(scaled[part].sum() for part in parts)
    for part, share in zip(parts, shares, strict=True):
        scaled[part] *= total * share / sum(shares) / max(scaled[part].sum(), 1e-9)
    return scaled.astype(np.float32)
