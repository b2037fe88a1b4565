"""How things are called, so that one alone is meant: by colour, size, shape or place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from vla_sim_bridge.tasks.stack import PALETTE

CLEAR = 0.04  # m by which a thing must be on the named side
ASIDE = 0.06  # m off the line between two that still is between them
RELATIONS: dict[str, tuple[int, float]] = {  # words -> axis, sign of what is meant
    "left of": (1, -1.0),
    "to the left of": (1, -1.0),
    "right of": (1, 1.0),
    "to the right of": (1, 1.0),
    "behind": (0, -1.0),
    "in front of": (0, 1.0),
}
KINDS = ("colour", "size", "both", "relation")
TRIES = 50


@dataclass(frozen=True)
class Things:
    """Those on the table, and where: m, x and y."""

    names: tuple[str, ...]
    places: Mapping[str, tuple[float, float]]

    def of_shape(self, name: str) -> list[str]:
        return [n for n in self.names if shape(n) == shape(name)]


def shape(name: str) -> str:
    return "can" if name == "can" else "block"


def size(name: str) -> str:
    return name.split("_")[0]


def noun(rng: np.random.Generator, name: str) -> str:
    return str(rng.choice(("can", "cylinder") if name == "can" else ("block", "cube")))


def name_all(
    rng: np.random.Generator, things: Things, moved: str, base: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Colours of the things, and the words for the two that are asked of.

    Colours may repeat as long as words are left that mean one thing alone.
    """
    for _ in range(TRIES):
        colours = {n: str(rng.choice(list(PALETTE))) for n in things.names}
        found = [call(rng, things, colours, n) for n in (moved, base)]
        if all(found):
            return colours, {"moved": found[0], "base": found[1]}
    drawn = rng.choice(list(PALETTE), size=len(things.names), replace=False)
    colours = {n: str(c) for n, c in zip(things.names, drawn, strict=True)}
    said = {role: f"the {colours[n]} one" for role, n in (("moved", moved), ("base", base))}
    return colours, said


def call(rng: np.random.Generator, things: Things, colours: Mapping[str, str], name: str) -> str:
    """Words for a thing, of a kind drawn among those that mean it alone; empty: there are none."""
    ways: dict[str, Callable[[], list[str]]] = {
        "colour": lambda: by_colour(rng, things, colours, name),
        "size": lambda: by_size(rng, things, name),
        "both": lambda: by_both(rng, things, colours, name),
        "relation": lambda: list(by_relation(rng, things, colours, name)),
    }
    for kind in rng.permutation(KINDS):
        if said := ways[str(kind)]():
            return str(rng.choice(said))
    return ""


def by_colour(rng, things: Things, colours: Mapping[str, str], name: str) -> list[str]:
    alike = [n for n in things.names if colours[n] == colours[name]]
    found = [f"the {colours[name]} one"] if alike == [name] else []
    if [n for n in alike if shape(n) == shape(name)] == [name]:
        found.append(f"the {colours[name]} {noun(rng, name)}")
    return found


def by_size(rng, things: Things, name: str) -> list[str]:
    if name == "can":
        return [f"the {noun(rng, name)}"]
    cubes = things.of_shape(name)
    words = {"small": ("small", "smallest", "little"), "big": ("big", "biggest", "large")}
    found = []
    if len(cubes) > 1 and [n for n in cubes if size(n) == size(name)] == [name]:
        found = [f"the {word} {noun(rng, name)}" for word in words[size(name)]]
    if found and len(cubes) == 2:
        comparative = {"small": "smaller", "big": "bigger"}[size(name)]
        found.append(f"the {comparative} {noun(rng, name)}")
    return found


def by_both(rng, things: Things, colours: Mapping[str, str], name: str) -> list[str]:
    if name == "can":
        return []
    alike = [n for n in things.of_shape(name) if colours[n] == colours[name]]
    if [n for n in alike if size(n) == size(name)] != [name]:
        return []
    found = [f"the {size(name)} {colours[name]} {noun(rng, name)}"]
    if len(alike) == 2:
        comparative = {"small": "smaller", "big": "bigger"}[size(name)]
        found.append(f"the {comparative} {colours[name]} {noun(rng, name)}")
    return found


def by_relation(rng, things: Things, colours: Mapping[str, str], name: str) -> Iterator[str]:
    """Among things of its shape, the only one on a side of another, or between two others."""
    others = [n for n in things.names if n != name]
    plain = {n: w for n in others if (w := by_colour(rng, things, colours, n))}
    for mark, words in plain.items():
        for relation, (axis, sign) in RELATIONS.items():
            if _on_side(things, name, mark, axis, sign):
                yield f"the {noun(rng, name)} {relation} {words[-1]}"
    for one, two in combinations(plain, 2):
        if _only_between(things, name, one, two):
            yield f"the {noun(rng, name)} between {plain[one][-1]} and {plain[two][-1]}"


def _on_side(things: Things, name: str, mark: str, axis: int, sign: float) -> bool:
    """Whether it alone of its shape is on that side, and clearly so."""

    def far(n: str) -> float:
        return sign * (things.places[n][axis] - things.places[mark][axis])

    alike = [n for n in things.of_shape(name) if n != mark]
    return far(name) > CLEAR and all(far(n) < 0 for n in alike if n != name)


def _only_between(things: Things, name: str, one: str, two: str) -> bool:
    def between(n: str, wide: float) -> bool:
        start, end, at = (np.array(things.places[x]) for x in (one, two, n))
        way = end - start
        share = float((at - start) @ way / (way @ way))
        aside = abs(way[0] * (at - start)[1] - way[1] * (at - start)[0]) / np.linalg.norm(way)
        return 0.2 < share < 0.8 and aside < wide

    alike = [n for n in things.of_shape(name) if n not in (name, one, two)]
    return between(name, ASIDE / 2) and not any(between(n, 2 * ASIDE) for n in alike)
