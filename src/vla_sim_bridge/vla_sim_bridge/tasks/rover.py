"""Rover: drive to the object that the sentence names and stop in front of it.

D0 three objects ahead, D1 the whole arena from any heading, D2 objects that share a shape or a
colour with the one named, and random light, floor and walls.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from vla_inference.types import ActionSpec, base_twist_spec
from vla_sim_bridge.tasks.base import Rule, Scene, Task
from vla_sim_bridge.tasks.grammar import Grammar
from vla_sim_bridge.tasks.stack import PALETTE

SHAPES = ("ball", "box", "pillar", "cone")
COPIES = 2  # of each shape in the arena's model
NEAR = 0.3  # m from the bumper to the object's side that it has to stop within
FRONT = np.deg2rad(25)  # how far from straight ahead the object may be then


# -- rules ------------------------------------------------------------------------------------


class RoverState(Protocol):
    """What rules ask of the arena, by the name of an object or a role; see `RoverWorld`."""

    collided: bool

    def ahead(self, name: str) -> tuple[float, float]: ...

    def resting(self) -> bool: ...

    def others(self) -> Iterable[str]: ...


def stopped_at(sim: RoverState, name: str) -> bool:
    gap, bearing = sim.ahead(name)
    return gap <= NEAR and abs(bearing) <= FRONT and sim.resting()


def at_target(sim: RoverState) -> bool:
    return not sim.collided and stopped_at(sim, "target")


def at_another(sim: RoverState) -> bool:
    return any(stopped_at(sim, name) for name in sim.others())


def collided(sim: RoverState) -> bool:
    return sim.collided


WRONG: dict[str, Rule] = {"collision": collided, "wrong_object": at_another}

# -- sentences --------------------------------------------------------------------------------

WORDS = {
    "go": ("drive", "go", "move", "roll"),
    "find": ("find", "look for", "approach"),
    "halt": ("stop", "halt", "wait"),
    "by": ("in front of", "before", "at"),
    "ball": ("ball", "sphere"),
    "box": ("box", "cube"),
    "pillar": ("pillar", "post"),
    "cone": ("cone", "pylon"),
}
TRAIN = Grammar(
    (
        "{go} to the {colour} {shape}",
        "{go} to the {colour} {shape} and {halt} {by} it",
        "please {go} to the {colour} {shape}",
        "{find} the {colour} {shape}",
        "{find} the {colour} {shape} and {halt} {by} it",
        "{halt} {by} the {colour} {shape}",
        "{go} up to the {colour} {shape}",
        "the {colour} {shape} is where you {halt}",
        "I want you {by} the {colour} {shape}",
        "{go} over there, to the {colour} {shape}",
        "can you {go} to the {colour} {shape}",
        "to the {colour} {shape}",
    ),
    WORDS,
)
HELD_OUT = Grammar(
    (
        "please {find} the {colour} {shape} and {halt} there",
        "can you {find} the {colour} {shape}",
        "{by} the {colour} {shape} you {halt}",
        "I want you to {go} to the {colour} {shape}",
        "{go} up to the {colour} {shape} and {halt} {by} it",
        "over to the {colour} {shape}, please",
    ),
    WORDS,
)


def _say(grammar: Grammar):
    def draw(rng: np.random.Generator, scene: Scene) -> str:
        target = scene.roles["target"]
        shape = str(rng.choice(WORDS[shape_of(target)]))
        return grammar.draw(rng, colour=scene.colours[target], shape=shape)

    return draw


def shape_of(name: str) -> str:
    """ball_1 -> ball"""
    return name.partition("_")[0]


# -- scenes -----------------------------------------------------------------------------------


def unlike(rng: np.random.Generator, count: int) -> Scene:
    """Objects that differ in shape and in colour."""
    shapes = rng.choice(SHAPES, count, replace=False)
    colours = rng.choice(list(PALETTE), count, replace=False)
    return _scene([(str(s), str(c)) for s, c in zip(shapes, colours, strict=True)])


def alike(rng: np.random.Generator, count: int) -> Scene:
    """Objects of which one has the target's shape, and another one its colour."""
    shapes = [str(s) for s in rng.permutation(SHAPES)]
    colours = [str(c) for c in rng.permutation(list(PALETTE))]
    looks = [(shapes[0], colours[0]), (shapes[0], colours[1]), (shapes[1], colours[0])]
    return _scene([*looks, *zip(shapes[2:], colours[2:], strict=False)][:count])


def _scene(looks: Sequence[tuple[str, str]]) -> Scene:
    """The first of these (shape, colour) is the target."""
    names: dict[str, str] = {}
    for shape, colour in looks:
        copy = sum(shape_of(n) == shape for n in names)
        names[f"{shape}_{copy}"] = colour
    return Scene(names, {"target": next(iter(names))})


# -- tasks ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Course:
    """Where things are at the beginning.

    distance: m, of objects from the rover; bearing: rad, how far to the side they may be.
    anywhere: the rover begins anywhere with any heading, rather than at the southern wall.
    painted: whether light, floor and walls are random.
    """

    distance: tuple[float, float] = (1.1, 2.6)
    bearing: float = np.deg2rad(28)
    anywhere: bool = False
    painted: bool = False


@dataclass(frozen=True)
class RoverTask(Task):
    """Actions are velocities of the base, forwards and turning."""

    robot: str = "Rover"
    spec: ActionSpec = field(default_factory=base_twist_spec)
    course: Course = field(default_factory=Course)


def _rover(variant: int, draw, count: int, course: Course, horizon: int) -> RoverTask:
    return RoverTask(
        name=f"Rover_D{variant}",
        env="Rover",
        objects={f"{shape}_{i}": f"{shape}_{i}" for shape in SHAPES for i in range(COPIES)},
        subtasks=(),
        draw_scene=lambda rng: draw(rng, count),
        draw_instruction=_say(TRAIN),
        draw_held_out=_say(HELD_OUT),
        colours="episode",
        language="episode",
        success=at_target,
        wrong=WRONG,
        expert="rover",
        course=course,
        horizon=horizon,
    )


ANYWHERE = (1.1, 4.5), np.pi, True
ROVER_TASKS = (
    _rover(0, unlike, 3, Course(), 300),
    _rover(1, unlike, 4, Course(*ANYWHERE), 500),
    _rover(2, alike, 5, Course(*ANYWHERE, painted=True), 500),
)
