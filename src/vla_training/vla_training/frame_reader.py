"""Single frames of a data set, without reading what lies around them where that can be helped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from vla_inference.errors import DataError
from vla_training.datasets import EpisodeSet


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
        stored = getattr(data, "episodes", None)
        self.group = getattr(stored, "group", None)  # HDF5: one frame is one chunk of the file
        # Neighbours are rarely asked for: frames come shuffled.
        self.episode = lru_cache(4)(data.__getitem__)

    def read(self, episode: int, step: int) -> tuple[list[np.ndarray], str]:
        """uint8 [H, W, 3] of each camera, and the sentence."""
        if self.group is not None:
            pictures, text = self._stored(episode, step)
        else:
            seen = self.episode(episode).steps[step].observation
            pictures, text = [seen.images[c] for c in self.cameras], seen.instruction
        if not text.strip():
            raise DataError(
                f"{self.data.path}: step {step} of episode {episode} has no instruction",
                "leave that data set out, or add its instructions",
            )
        return pictures, text

    def _stored(self, episode: int, step: int) -> tuple[list[np.ndarray], str]:
        group = self.group(episode)
        try:
            pictures = [group[f"obs/{c}_image"][step] for c in self.cameras]
            text = group["instructions"][step].decode() if "instructions" in group else ""
        except (KeyError, OSError, ValueError) as error:
            raise DataError(
                f"{group.file.filename}: step {step} of {group.name} cannot be read ({error})",
                "the file is damaged: generate or copy it again",
            ) from error
        return pictures, text
