"""The tasks of an installed `robocasa` package, whose kitchens run in a Python of their own.

Names are the package's: `robocasa/OpenDrawer`, in the kitchens that its benchmark tests in, and
`robocasa/pretrain/OpenDrawer` in those that its data are from. It is asked for the sentence of
each episode.
"""

from __future__ import annotations

import numpy as np

from vla_inference.episodes.robocasa import robocasa_spec
from vla_inference.errors import VlaError
from vla_sim_bridge.tasks.base import Scene, Task

PREFIX = "robocasa/"
SPLITS = ("target", "pretrain")  # of kitchens and objects; the first where none is named
HORIZON = 500  # control steps, unless told; the package has one for each of its tasks


def split_name(name: str) -> tuple[str, str]:
    """Split and environment of `robocasa/OpenDrawer` or `robocasa/pretrain/OpenDrawer`."""
    words = name[len(PREFIX) :].split("/")
    if len(words) == 1:
        words = [SPLITS[0], *words]
    if len(words) != 2 or words[0].lower() not in SPLITS or not words[1].isidentifier():
        raise VlaError(
            f"there is no task {name!r}",
            f"name {PREFIX}TASK or {PREFIX}{SPLITS[1]}/TASK, such as {PREFIX}OpenDrawer",
        )
    return words[0].lower(), words[1]


def robocasa_task(name: str) -> Task:
    """One task, whether or not the package is installed."""
    split, env = split_name(name)
    return Task(
        name=f"{PREFIX}{env}" if split == SPLITS[0] else f"{PREFIX}{split}/{env}",
        env=env,
        package="robocasa",
        objects={},
        subtasks=(),
        draw_instruction=_no_sentence,
        horizon=HORIZON,
        robot="PandaOmron",
        spec=robocasa_spec(),
    )


def _no_sentence(rng: np.random.Generator, scene: Scene) -> str:
    raise VlaError("RoboCasa's sentences come with its episodes", "read the world's instruction")
