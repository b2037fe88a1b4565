"""Deterministic sampler: maps a position to a dataset and a frame, from the seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from vla_inference.errors import VlaError

BLOCK = 1000  # positions in which the datasets have exactly their shares


class Sampler:
    """Position -> dataset and frame.

    Each dataset is gone through whole, newly shuffled, before it begins again; the sets alternate
    by their shares.

    frame_weights: of the frames of each dataset, or None where all count alike. Each time the
    dataset is gone through, a frame comes up as often as its weight says, rounded up or down.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        seed: int,
        frame_weights: Sequence[np.ndarray | None] | None = None,
    ):
        self.frame_weights = list(frame_weights or [None] * len(sizes))
        self.sizes = [
            size if each is None else max(1, round(float(each.sum())))
            for size, each in zip(sizes, self.frame_weights, strict=True)
        ]
        self.seed = seed
        exact = BLOCK * np.asarray(weights, float) / sum(weights)
        counts = np.floor(exact).astype(int)
        for i in np.argsort(counts - exact, kind="stable")[: BLOCK - counts.sum()]:
            counts[i] += 1
        if (counts == 0).any():
            raise VlaError(
                f"dataset {int(np.argmin(counts)) + 1} has less than 1/{BLOCK} of the mixture",
                "raise its weight, or leave it out",
            )
        self.counts = counts
        self._block = lru_cache(4)(self._draw_block)
        self._epoch = lru_cache(2 * len(self.sizes))(self._draw_epoch)

    def _draw_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Dataset of each position of a block, and how many of it came before in the block."""
        source = np.repeat(np.arange(len(self.sizes)), self.counts)
        rng(self.seed, 1, block).shuffle(source)
        before = np.empty(BLOCK, int)
        for i, count in enumerate(self.counts):
            before[source == i] = np.arange(count)
        return source, before

    def _draw_epoch(self, source: int, epoch: int) -> np.ndarray:
        random, size = rng(self.seed, 2, source, epoch), self.sizes[source]
        weights = self.frame_weights[source]
        if weights is None:
            return random.permutation(size)
        reached = np.cumsum(weights, dtype=np.float64)
        marks = (np.arange(size) + random.random()) * reached[-1] / size
        frames = np.searchsorted(reached, marks, side="right").clip(max=len(weights) - 1)
        return random.permutation(frames)

    def __call__(self, position: int) -> tuple[int, int]:
        if len(self.sizes) == 1:
            source, count = 0, position
        else:
            block, at = divmod(position, BLOCK)
            sources, before = self._block(block)
            source = int(sources[at])
            count = block * int(self.counts[source]) + int(before[at])
        epoch, at = divmod(count, self.sizes[source])
        return source, int(self._epoch(source, epoch)[at])

    def span(self, begin: int, end: int) -> np.ndarray:
        """Frames of the only dataset at positions `begin` to `end`: int64 [end - begin]"""
        (size,) = self.sizes
        first, last = begin // size, (end - 1) // size
        frames = np.concatenate([self._epoch(0, epoch) for epoch in range(first, last + 1)])
        return frames[begin - first * size : end - first * size]


def rng(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
