"""What an untrained checkpoint has to know of a dataset's robot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from vla_inference.checkpoints.save import save_tensors
from vla_inference.errors import DataError
from vla_inference.options import option
from vla_inference.policies.lerobot.checkpoint import WEIGHTS
from vla_training.datasets import EpisodeSet


@dataclass(frozen=True, kw_only=True)
class Untrained:
    """What checkpoints of all families have."""

    chunk: int = option(
        0, "Steps of an answer; 0: the family's (ACT 100, Octo 4, OpenVLA 8, SmolVLA 50).", low=0
    )
    seed: int = option(0, "Seed of the random weights.")
    stored: str = option(
        "float32",
        "How its weights are stored, and those that are trained from it.",
        choices=("float32", "bfloat16"),
    )

    def store(self, folder: Path) -> None:
        """Rewrites the weights of a folder as `stored` says."""
        if self.stored == "float32":
            return
        path = folder / WEIGHTS
        tensors = {k: v.bfloat16() for k, v in load_file(path).items()}
        save_tensors(path, tensors)


@dataclass(frozen=True)
class Robot:
    """cameras: in the order in which they are seen. image_size: height and width of their images.
    state, actions: how many numbers there are of each."""

    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    state: int
    actions: int

    @classmethod
    def of(cls, data: EpisodeSet, cameras: Sequence[str] = ()) -> Robot:
        """cameras: those it sees; empty: all. DataError if one is missing or their images are of
        several sizes."""
        seen = data[0].steps[0].observation
        names = list(cameras) or list(seen.images)
        if missing := [c for c in names if c not in seen.images]:
            raise data.lacks(missing[0])
        sizes = {seen.images[c].shape[:2] for c in names}
        if len(sizes) != 1:
            raise DataError(
                f"{data.path} has {'images of several sizes' if sizes else 'no images'}",
                "name cameras of one size by --cameras, or convert it with --width and --height",
            )
        height, width = sizes.pop()
        state = 0 if seen.state is None else len(seen.state)
        return cls(tuple(names), (height, width), state, len(data.spec))
