"""`ConvertConfig`: the transforms of `vla convert`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vla_inference.options import option


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """How to transform the episodes.

    remap: camera -> its new name, None to leave it out; "state" may be left out too.
    width, height: one of the two keeps the proportions, both squash.
    sample_actions: a step's action is the motion of n, which must be end-effector deltas. A step
        that stays has the reward of the last one it stands for.
    """

    remap: Mapping[str, str | None] = field(default_factory=dict)
    width: int | None = option(
        None, "Width of the images, pixels.", low=1, high=4096, unit="pixels"
    )
    height: int | None = option(
        None, "Height of the images, pixels.", low=1, high=4096, unit="pixels"
    )
    sample_steps: int = option(1, "Keep every n-th step.", low=1)
    sample_actions: int = option(
        1, "Combine n actions, from each step that is kept, into one.", low=1
    )
    episodes: str = option("", "Which episodes, from 0 over all datasets: 0-99,150; default: all.")
    matching: str = option(
        "", "Only episodes whose first instruction has this regular expression in it."
    )
    successful: bool = option(False, "Only episodes whose last reward is above 0.")
    interventions: bool = option(False, "Only episodes in which a person acted.")
    share: str = option(
        "", "A part of these, drawn at random: 0-0.9, and 0.9-1 for the others; default: all."
    )
    seed: int = option(0, "Random seed of --share.", low=0)
    max_episodes: int | None = option(None, "Episodes to convert; default: all.", low=1)
    rotation: str | None = option(
        None, "Rotation of the actions; default: unchanged.", choices=("rotvec", "rpy")
    )
    allow_no_images: bool = option(False, "Convert a dataset without images.")
    allow_no_instructions: bool = option(False, "Convert steps without an instruction.")
    GROUPS = {
        "Which episodes": (
            "episodes",
            "matching",
            "successful",
            "interventions",
            "share",
            "seed",
            "max_episodes",
        ),
        "What becomes of them": (),
    }
