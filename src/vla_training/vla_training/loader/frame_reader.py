"""Reads single frames of a dataset, without reading whole episodes where the format allows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import cast

import numpy as np

from vla_inference.errors import DataError
from vla_training.datasets import EpisodeSet
from vla_training.datasets.hdf5.images import ImageColumn, ImageColumnSet


class FrameReader:
    """Reads images and instruction of a step.

    cameras: which, in the model's order; empty takes the dataset's first `count`.
    instructed: whether a step without an instruction is an error.
    """

    def __init__(
        self, data: EpisodeSet, cameras: Sequence[str], count: int, instructed: bool = True
    ):
        self.data, self.instructed = data, instructed
        there = data.cameras()
        self.cameras = list(cameras) or there[:count]
        missing = [c for c in self.cameras if c not in there]
        if missing:
            raise data.lacks(missing[0])
        if len(self.cameras) != count:
            raise DataError(
                f"the model takes {count} images, {data.path} gives {len(self.cameras)} "
                f"({', '.join(self.cameras) or 'none'})",
                "name that many cameras",
            )
        # Neighbours are rarely asked for: frames come shuffled.
        self.episode = lru_cache(4)(data.__getitem__)
        self.stored = lru_cache(64)(
            # asked of sets whose images can be read one by one alone
            partial(_stored, cast(ImageColumnSet, data), self.cameras)
        )

    def read(self, episode: int, step: int) -> tuple[list[np.ndarray], str]:
        """uint8 [H, W, 3] of each camera, and the instruction."""
        if isinstance(self.data, ImageColumnSet):  # one frame at a time
            columns, texts = self.stored(episode)
            images, text = [c.read(step) for c in columns], texts[step]
        else:
            seen = self.episode(episode).steps[step].observation
            images, text = [seen.images[c] for c in self.cameras], seen.instruction
        if self.instructed and not text.strip():
            raise DataError(
                f"{self.data.path}: step {step} of episode {episode} has no instruction",
                "leave that dataset out, or convert it with --instruction",
            )
        return images, text


def _stored(
    data: ImageColumnSet, cameras: Sequence[str], episode: int
) -> tuple[list[ImageColumn], list[str]]:
    columns = data.columns(episode, cameras, shuffled=True)
    missing = [c for c in cameras if c not in columns]
    if missing:
        raise DataError(
            f"{data.path}: episode {episode} has no images of camera {missing[0]!r}",
            "leave that camera out, or the episode",
        )
    return [columns[c] for c in cameras], data.instructions(episode)
