"""Rover: drive to the object that the sentence names and stop in front of it.

D0 three objects ahead, D1 the whole arena from any heading, D2 objects that share a shape or a
colour with the one named, and random light, floor and walls. RoverGate: pass between the two
objects named and stop behind them. RoverWord: on the way to an object, stop when told to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from vla_inference.types import ActionSpec, base_twist_spec
from vla_sim_bridge.tasks.base import Language, Rule, Scene, Task
from vla_sim_bridge.tasks.grammar import Grammar
from vla_sim_bridge.tasks.stack import PALETTE

SHAPES = ("ball", "box", "pillar", "cone")
COPIES = 2  # of each shape in the arena's model
NEAR = 0.3  # m from the bumper to the object's side that it has to stop within
FRONT = np.deg2rad(25)  # how far from straight ahead the object may be then
BEHIND = 0.3  # m that it has to stop behind a gate
UNDER_WAY = 0.05  # m that it has to have gone by the time it is told to stop
BRAKING = 0.35  # m that it may go on after that


# -- rules ------------------------------------------------------------------------------------


class RoverState(Protocol):
    """What rules ask of the arena, by the name of an object or a role; see `RoverWorld`."""

    collided: bool
    track: list[tuple[float, float]]  # m, where it has been in this episode
    word_at: int  # step in which it was told to stop; -1: not yet

    def position(self, name: str) -> np.ndarray: ...

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


def passed(sim: RoverState) -> bool:
    """It came through between the two and rests behind them."""
    first, gate = sim.position("first"), sim.position("second") - sim.position("first")
    track = np.array(sim.track) - first
    side = (gate[0] * track[:, 1] - gate[1] * track[:, 0]) / np.linalg.norm(gate)
    along = track @ gate / (gate @ gate)
    change = np.flatnonzero(side[:-1] * side[1:] < 0)
    through = len(change) > 0 and 0 < along[change[-1]] < 1
    behind = side[0] * side[-1] < 0 and abs(side[-1]) >= BEHIND
    return bool(through and behind and sim.resting() and not sim.collided)


def way_since_word(sim: RoverState) -> float:
    """m; 0 while nothing was said."""
    if sim.word_at < 0:
        return 0.0
    return _length(sim.track[sim.word_at :])


def _length(track: list[tuple[float, float]]) -> float:
    """m, of a way."""
    return float(np.linalg.norm(np.diff(np.array(track), axis=0), axis=1).sum())


def stopped_at_word(sim: RoverState) -> bool:
    """It was under way when it was told, and rests soon after."""
    if sim.word_at < 0 or _length(sim.track[: sim.word_at + 1]) < UNDER_WAY:
        return False
    return sim.resting() and not sim.collided and not drove_on(sim)


def drove_on(sim: RoverState) -> bool:
    return way_since_word(sim) > BRAKING


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


GATE = Grammar(
    (
        "{go} between the {colour} {shape} and the {colour2} {shape2}",
        "{go} between the {colour} {shape} and the {colour2} {shape2} and {halt} behind them",
        "{go} through between {colour} {shape} and {colour2} {shape2}",
        "please pass between the {colour} {shape} and the {colour2} {shape2}",
        "pass the {colour} {shape} and the {colour2} {shape2}, between them",
        "the way is between the {colour} {shape} and the {colour2} {shape2}",
    ),
    WORDS,
)
GATE_HELD_OUT = Grammar(
    (
        "please {go} between the {colour} {shape} and the {colour2} {shape2}",
        "pass between {colour} {shape} and {colour2} {shape2} and {halt} behind them",
        "between the {colour} {shape} and the {colour2} {shape2} is the way",
        "{go} through, between the {colour} {shape} and the {colour2} {shape2}",
    ),
    WORDS,
)
STOP = Grammar(("{halt}", "{halt} now", "please {halt}", "{halt} there"), WORDS)
STOP_HELD_OUT = Grammar(("please {halt} now", "now {halt}", "{halt}, please"), WORDS)


def _say(grammar: Grammar):
    """Of a scene's objects with roles, the first and the second."""

    def draw(rng: np.random.Generator, scene: Scene) -> str:
        said: dict[str, str] = {}
        for number, name in zip(("", "2"), scene.roles.values(), strict=False):
            said[f"colour{number}"] = scene.colours[name]
            said[f"shape{number}"] = str(rng.choice(WORDS[shape_of(name)]))
        return grammar.draw(rng, **said)

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


def gate(rng: np.random.Generator, count: int) -> Scene:
    """Unlike objects; the first two are the gate."""
    scene = unlike(rng, count)
    first, second = list(scene.colours)[:2]
    return Scene(scene.colours, {"first": first, "second": second})


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
    gate: whether the first two objects are a gate ahead of the rover.
    word: steps between which it is told to stop; None: it is not.
    """

    distance: tuple[float, float] = (1.1, 2.6)
    bearing: float = np.deg2rad(28)
    anywhere: bool = False
    painted: bool = False
    gate: bool = False
    word: tuple[int, int] | None = None


@dataclass(frozen=True)
class RoverTask(Task):
    """Actions are velocities of the base, forwards and turning."""

    robot: str = "Rover"
    spec: ActionSpec = field(default_factory=base_twist_spec)
    course: Course = field(default_factory=Course)

    def word(self, rng: np.random.Generator, language: Language) -> str:
        """The sentence that tells it to stop."""
        return (STOP_HELD_OUT if language == "held-out" else STOP).draw(rng)


OBJECTS = {f"{shape}_{i}": f"{shape}_{i}" for shape in SHAPES for i in range(COPIES)}
REACH = RoverTask(
    name="Rover_D0",
    env="Rover",
    objects=OBJECTS,
    subtasks=(),
    draw_scene=lambda rng: unlike(rng, 3),
    draw_instruction=_say(TRAIN),
    draw_held_out=_say(HELD_OUT),
    colours="episode",
    language="episode",
    success=at_target,
    wrong=WRONG,
    expert="rover",
    horizon=300,
)
ANYWHERE = Course((1.1, 4.5), np.pi, anywhere=True)
ROVER_TASKS = (
    REACH,
    replace(
        REACH,
        name="Rover_D1",
        draw_scene=lambda rng: unlike(rng, 4),
        course=ANYWHERE,
        horizon=500,
    ),
    replace(
        REACH,
        name="Rover_D2",
        draw_scene=lambda rng: alike(rng, 5),
        course=replace(ANYWHERE, painted=True),
        horizon=500,
    ),
    replace(
        REACH,
        name="RoverGate_D0",
        env="RoverGate",
        draw_scene=lambda rng: gate(rng, 3),
        draw_instruction=_say(GATE),
        draw_held_out=_say(GATE_HELD_OUT),
        success=passed,
        wrong={"collision": collided},
        course=Course(gate=True),
    ),
    replace(
        REACH,
        name="RoverWord_D0",
        language="step",
        success=stopped_at_word,
        wrong={"collision": collided, "drove_on": drove_on},
        course=Course(word=(8, 32)),
    ),
)
