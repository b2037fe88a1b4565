"""The `Task` dataclass: a robosuite environment, its placement, success rule and sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from vla_inference.errors import VlaError
from vla_inference.types import ActionSpec, eef_delta_spec

Vary = Literal["never", "episode", "step"]
Language = Literal["train", "held-out", "free"]
LANGUAGES: tuple[Language, ...] = ("train", "held-out", "free")


class RuleState(Protocol):
    """What rules ask of a simulated world, by the name of an object or a role; see `SimState`."""

    def position(self, name: str) -> np.ndarray: ...

    def speed(self, name: str) -> float: ...

    def holds(self, name: str) -> bool: ...

    def touching(self, one: str, other: str) -> bool: ...


# A question about the world at this moment: a `RuleState`, or a rover's
Rule = Callable[[Any], bool]


@dataclass(frozen=True)
class Subtask:
    """A segment of a demonstration that refers to one object (MimicGen, arXiv 2310.17596).

    object: name of the reference object (or role), whose frame the motion is carried over in.
    signal: name of the termination signal; None for the last subtask, which runs to the end.
    offset: steps, drawn uniformly from this closed range, added to the end of the subtask.
    symmetry: fold of the object's rotational symmetry about z (4 for a cube): motions may be
        carried over turned by any multiple of 360/fold degrees, and the nearest one is taken.
    until: what the signal is, see `rules.py`; needed where there is a signal.
    """

    object: str
    signal: str | None = None
    offset: tuple[int, int] = (0, 0)
    symmetry: int = 1
    until: Rule | None = None


@dataclass(frozen=True)
class Scene:
    """What varies between episodes besides poses.

    colours: object name -> name in `stack.PALETTE`. roles: role -> object name, where the
    episode decides which object plays which part; rules and subtasks may name roles. words: what
    else rules and sentences need to know, such as what is asked.
    """

    colours: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Placement:
    """Where an object may start: m from its reference point, yaw in rad.

    yaw: None for any.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    yaw: tuple[float, float] | None = None


def plain_scene(rng: np.random.Generator) -> Scene:
    """A scene in which only poses vary."""
    return Scene()


@dataclass(frozen=True)
class Task:
    """The data that define a task.

    env: name of the robosuite environment, or of one in `envs/blocks.py`; `make`: further
        arguments of it.
    package: the installed package that has the environment, in a Python of its own; an empty name:
        ours.
    objects: name -> MuJoCo body name.
    draw_scene, draw_instruction: from a random generator; no other source of chance.
    arrange: takes the place of `draw_scene`; also places the objects of a world, as `Scene.words`
        may speak of where they are.
    draw_held_out: the same for the sentences that are never generated from, for testing.
    draw_free: the same for sentences as people type them, words that no training has among them.
    x_range, y_range: metres from the table centre, for all objects. None: as the
        environment places them, but for the samplers named in `placements`.
    fixtures: fixed body -> where it is moved to at a reset, in m from where the model has it.
    camera_poses: camera name -> (position m, quaternion wxyz), where it differs from robosuite's.
    colour_geoms: object name -> geom name prefix, for the objects that are recoloured.
    colours, language: how often they are redrawn.
    success: the rule; None for the environment's own.
    wrong: name of an outcome -> rule, for ends that are no success and are counted apart.
    still_object: the object that must be at rest (below `still_speed` m/s) for an end to count;
        an empty name: none.
    expert: name of the scripted expert in `experts`; an empty name: there is none.
    human: file in `demonstrations/` that MimicGen's method starts from; an empty name: none.
    roles: who plays which part in a source demonstration that does not say.
    horizon: control steps (0.05 s) until an attempt has failed.
    robot: "Panda" or "Rover". spec: what the numbers of its actions are.
    """

    name: str
    env: str
    objects: Mapping[str, str]
    subtasks: tuple[Subtask, ...]
    draw_instruction: Callable[[np.random.Generator, Scene], str]
    draw_scene: Callable[[np.random.Generator], Scene] = plain_scene
    arrange: Callable[[np.random.Generator, Any], Scene] | None = None
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    make: Mapping[str, object] = field(default_factory=dict)
    placements: Mapping[str, Placement] = field(default_factory=dict)
    fixtures: Mapping[str, Placement] = field(default_factory=dict)
    camera_poses: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(
        default_factory=dict
    )
    colour_geoms: Mapping[str, str] = field(default_factory=dict)
    colours: Vary = "never"
    language: Vary = "never"
    draw_held_out: Callable[[np.random.Generator, Scene], str] | None = None
    draw_free: Callable[[np.random.Generator, Scene], str] | None = None
    success: Rule | None = None
    wrong: Mapping[str, Rule] = field(default_factory=dict)
    still_object: str = ""
    still_speed: float = 0.1
    package: str = ""
    expert: str = ""
    human: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)
    horizon: int = 200
    robot: str = "Panda"
    spec: ActionSpec = field(default_factory=eef_delta_spec)

    def instruct(self, rng: np.random.Generator, scene: Scene, language: Language) -> str:
        """An instruction for the scene: trained on, held out, or as people type."""
        return self.sentences(language)(rng, scene)

    def sentences(self, language: str) -> Callable[[np.random.Generator, Scene], str]:
        """The function that draws sentences of a language; VlaError if the task has none."""
        drawn = {
            "train": self.draw_instruction,
            "held-out": self.draw_held_out,
            "free": self.draw_free,
        }
        if language not in drawn:
            raise VlaError(f"language is {language!r}", f"give {' or '.join(LANGUAGES)}")
        draw = drawn[language]
        if draw is None:
            there = [name for name, what in drawn.items() if what is not None]
            raise VlaError(
                f"{self.name} has no {language} sentences", f"use language {' or '.join(there)}"
            )
        return draw
