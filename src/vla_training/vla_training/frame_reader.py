"""Single frames of a data set, without reading what lies around them where that can be helped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np

from vla_inference.errors import DataError
from vla_training.datasets import EpisodeSet
from vla_training.datasets.hdf5 import Hdf5Set, PictureColumn, readable


class FrameReader:
    """Pictures and instruction of a step.

    cameras: which, in the model's order; empty takes the data set's first `count`.
    """

    def __init__(self, data: EpisodeSet, cameras: Sequence[str], count: int):
        self.data = data
        there = data.cameras()
        self.cameras = list(cameras) or there[:count]
        missing = [c for c in self.cameras if c not in there]
        if missing:
            raise DataError(
                f"{data.path} has no pictures of camera {missing[0]!r}",
                f"cameras: {', '.join(there) or 'none'}",
            )
        if len(self.cameras) != count:
            raise DataError(
                f"the model takes {count} pictures, {data.path} gives {len(self.cameras)} "
                f"({', '.join(self.cameras) or 'none'})",
                "name that many cameras",
            )
        # Neighbours are rarely asked for: frames come shuffled.
        self.episode = lru_cache(4)(data.__getitem__)
        self.stored = lru_cache(64)(partial(_stored, data, self.cameras))

    def read(self, episode: int, step: int) -> tuple[list[np.ndarray], str]:
        """uint8 [H, W, 3] of each camera, and the sentence."""
        if isinstance(self.data, Hdf5Set):  # one frame at a time
            columns, texts = self.stored(episode)
            pictures, text = [c.read(step) for c in columns], texts[step]
        else:
            seen = self.episode(episode).steps[step].observation
            pictures, text = [seen.images[c] for c in self.cameras], seen.instruction
        if not text.strip():
            raise DataError(
                f"{self.data.path}: step {step} of episode {episode} has no instruction",
                "leave that data set out, or add its instructions",
            )
        return pictures, text


def _stored(
    data: Hdf5Set, cameras: Sequence[str], episode: int
) -> tuple[list[PictureColumn], list[str]]:
    with readable(data.episodes.where(episode)):
        group = data.episodes.group(episode)
        columns = [PictureColumn(group[f"obs/{c}_image"], shuffled=True) for c in cameras]
        return columns, data.episodes.instructions(episode)
