"""What a task is: data about a robosuite environment, and how its sentences are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Vary = Literal["never", "episode", "step"]


@dataclass(frozen=True)
class Subtask:
    """A stretch of a demonstration that is tied to one object (MimicGen, arXiv 2310.17596).

    object: name of the reference object, whose frame the motion is carried over in.
    signal: name of the termination signal; None for the last subtask, which runs to the end.
    offset: steps, drawn uniformly from this closed range, added to the end of the subtask.
    symmetry: fold of the object's rotational symmetry about z (4 for a cube): motions may be
        carried over turned by any multiple of 360/fold degrees, and the nearest one is taken.
    """

    object: str
    signal: str | None = None
    offset: tuple[int, int] = (0, 0)
    symmetry: int = 1


@dataclass(frozen=True)
class Scene:
    """What varies between episodes besides poses: colours by object name (RGB 0-255)."""

    colours: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A page of data that makes a task.

    env: name of the robosuite environment.
    objects: name -> MuJoCo body name.
    x_range, y_range: metres from the table centre, for all objects alike.
    camera_poses: camera name -> (position m, quaternion wxyz), where it differs from robosuite's.
    colour_geoms: object name -> geom name prefix, for the objects that are recoloured.
    colours, language: when they are drawn anew.
    draw_scene, draw_instruction: from a random generator; no other source of chance.
    still_object: the object that must be at rest (below `still_speed` m/s) for success to count.
    """

    name: str
    env: str
    objects: Mapping[str, str]
    subtasks: tuple[Subtask, ...]
    draw_scene: Callable[[np.random.Generator], Scene]
    draw_instruction: Callable[[np.random.Generator, Scene], str]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    camera_poses: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(
        default_factory=dict
    )
    colour_geoms: Mapping[str, str] = field(default_factory=dict)
    colours: Vary = "never"
    language: Vary = "never"
    still_object: str = ""
    still_speed: float = 0.1
    horizon: int = 200
