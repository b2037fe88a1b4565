"""`GenerateConfig`: the options of `vla generate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from vla_inference.errors import VlaError
from vla_inference.options import Holds, check_options, option
from vla_sim_bridge.envs.randomization import Every, Randomize, Ranges

METHODS = ("scripted", "mimicgen", "corrected", "endings")
BY_MODEL = ("corrected", "endings")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What to generate. Two calls with the same values make the same data."""

    task: str = "Stack_D2"
    episodes: int = option(100, "Successful episodes per task.", low=1)
    cameras: tuple[str, ...] = option(
        ("agentview",),
        "Cameras, separated by commas: agentview,wrist,frontview; wrist is stored as "
        "robot0_eye_in_hand.",
    )
    camera_width: int = option(
        224, "Width of the images, pixels.", low=16, high=4096, unit="pixels"
    )
    camera_height: int = option(
        224, "Height of the images, pixels.", low=16, high=4096, unit="pixels"
    )
    seed: int = option(0, "Random seed.")
    method: str = option(
        "scripted",
        "scripted; mimicgen; corrected: a model acts, and the scripted expert takes over where it "
        "errs; endings: all goes well, or wrong in many ways.",
        choices=METHODS,
    )
    source: str | None = option(
        None,
        "HDF5 file with source demonstrations for mimicgen; default: the shipped human one.",
        holds=Holds.PATH,
    )
    select_source: str = option(
        "nearest_neighbor_object",
        "mimicgen: random, nearest_neighbor_object, nearest_neighbor_robot_distance.",
    )
    nearest: int = option(3, "mimicgen: choose at random among this many nearest sources.", low=1)
    noise: float = option(
        0.2,
        "scripted: maximum noise on executed actions, as a share of a full action, 0 to 1.",
        low=0.0,
        high=1.0,
    )
    horizon: int | None = option(
        None,
        "Steps until an attempt fails (mimicgen: 10 times as many); default: the task's own, "
        "corrected: twice as many.",
        low=1,
    )
    model: str | None = option(
        None,
        "corrected: the checkpoint that acts; endings: that acts in every other episode.",
        holds=Holds.PATH,
    )
    device: str | None = option(
        None, "cpu, cuda ... of the model that acts; default: CUDA if available."
    )
    execute_steps: int = option(4, "Executed steps of each chunk of the model.", low=1)
    stall: float = option(
        2.0,
        "corrected: seconds without progress (the next subtask, or nearer to its object) after "
        "which the expert takes over; it does at once when a wrong object is held.",
        above=0.0,
        high=1e3,
    )
    takeover_steps: int = option(
        60,
        "corrected: steps after which the expert gives back at the latest; before, when the next "
        "subtask is reached.",
        low=1,
    )
    randomize: tuple[str, ...] = option((), "Any of colours,camera,light,dynamics; default: none.")
    randomize_every: str = option(
        "episode", "How often; dynamics change per episode only.", choices=("episode", "frame")
    )
    randomize_ranges: dict = field(default_factory=dict)  # other than the default `Ranges`
    recovery: float = option(
        0.0, "Share of episodes in which the arm or an object is pushed.", low=0.0, high=1.0
    )
    keep_failures: bool = option(False, "Keep failed attempts in failed.hdf5.")
    images: bool = option(True, "Render the cameras; --no-images is faster.")
    compression: str = option(
        "gzip", "Of the images in the file; none is fastest.", choices=("gzip", "lzf", "none")
    )
    GROUPS = {
        "Images": ("cameras", "camera_width", "camera_height", "images"),
        "Method": ("method", "source", "select_source", "nearest", "noise", "horizon"),
        "Episodes of a model": ("model", "device", "execute_steps", "stall", "takeover_steps"),
        "Variety": ("randomize", "randomize_every", "recovery"),
    }

    def look(self) -> Randomize:
        ranges = Ranges.make(self.randomize_ranges)
        return Randomize(tuple(self.randomize), cast("Every", self.randomize_every), ranges)

    def check(self) -> None:
        from vla_sim_bridge.mimicgen.method import SELECTIONS

        check_options(self)
        if self.select_source not in SELECTIONS:
            raise VlaError(
                f"sources cannot be selected by {self.select_source!r}",
                f"use {', '.join(SELECTIONS)}",
            )
        if self.source is not None and not Path(self.source).is_file():
            raise VlaError(f"there is no source file {self.source}", "correct --source")
        if self.model is not None and self.method not in BY_MODEL:
            raise VlaError(
                f"--model is of --method {' and '.join(BY_MODEL)}, not {self.method}",
                "leave it out",
            )
        if self.images and not self.cameras:
            raise VlaError("no camera was given", "give --cameras agentview, or --no-images")
        self.look()
