"""What stands in a rover's arena and where: scenes and courses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_sim_bridge.tasks.base import Scene
from vla_sim_bridge.tasks.stack import PALETTE

SHAPES = ("ball", "box", "pillar", "cone")
COPIES = 2  # of each shape in the arena's model
PERSON = "person"


def shape_of(name: str) -> str:
    """ball_1 -> ball"""
    return name.partition("_")[0]


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


def round_one(rng: np.random.Generator, count: int) -> Scene:
    """Unlike objects: the first to go round, on one of its sides, to the second."""
    scene = unlike(rng, count)
    first, second = list(scene.colours)[:2]
    return Scene(scene.colours, {str(rng.choice(["left", "right"])): first, "target": second})


def walker(rng: np.random.Generator, count: int) -> Scene:
    """A person in a shirt of a colour, and unlike objects of others."""
    scene = unlike(rng, count)
    shirt = str(rng.choice([c for c in PALETTE if c not in scene.colours.values()]))
    return Scene({PERSON: shirt, **scene.colours}, {"target": PERSON})


def _scene(looks: Sequence[tuple[str, str]]) -> Scene:
    """The first of these (shape, colour) is the target."""
    names: dict[str, str] = {}
    for shape, colour in looks:
        copy = sum(shape_of(n) == shape for n in names)
        names[f"{shape}_{copy}"] = colour
    return Scene(names, {"target": next(iter(names))})


@dataclass(frozen=True)
class Course:
    """Where things are at the beginning.

    distance: m, of objects from the rover; bearing: rad, how far to the side they may be.
    anywhere: the rover begins anywhere with any heading, rather than at the southern wall.
    painted: whether light, floor and walls are random.
    gate: whether the first two objects are a gate ahead of the rover.
    detour: whether the first object stands on the way to the second.
    walk: steps between which the person to follow stops; None: there is no person.
    word: steps between which it is told to stop; None: it is not.
    """

    distance: tuple[float, float] = (1.1, 2.6)
    bearing: float = np.deg2rad(28)
    anywhere: bool = False
    painted: bool = False
    gate: bool = False
    detour: bool = False
    walk: tuple[int, int] | None = None
    word: tuple[int, int] | None = None
