"""What stands on the table of Table_L: three to five things, where, and what is asked of them.

Left, right, in front and behind are as the main camera sees them: left is -y, in front is +x.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vla_sim_bridge.tasks.base import Scene
from vla_sim_bridge.tasks.stack import PALETTE
from vla_sim_bridge.tasks.table.references import Things, name_all

TOP = 0.8  # m, of the table
# m: half an edge of a cube; radius and half the height of a can
SMALL, BIG, CAN = 0.018, 0.025, (0.02, 0.03)
BLOCKS = {
    "small_1": (SMALL, "WoodRed"),
    "small_2": (SMALL, "WoodGreen"),
    "big_1": (BIG, "WoodBlue"),
    "big_2": (BIG, "WoodRed"),
    "can": (CAN, "WoodGreen"),
}
# m, half the height of each
HALF = {"small_1": SMALL, "small_2": SMALL, "big_1": BIG, "big_2": BIG, "can": CAN[1]}
CUBES = tuple(name for name in BLOCKS if name != "can")
ACTS = ("stack", "lift", "edge", "beside")
EDGES = {"left": -1.0, "right": 1.0}  # side of y
X, Y = (-0.17, 0.13), (-0.19, 0.19)  # m, where things stand
APART = 0.125  # m, between two of them at first
AWAY = (-0.3, 0.1)  # m, x of the first of those that are not used, under the table, and the step


def arrange(rng: np.random.Generator, sim: Any) -> Scene:
    """Draws a scene and places its things. What is not used lies under the table.

    sim: a `SimState`.
    """
    scene, places = draw(rng)
    for name, at in places.items():
        sim.place(name, (*at, TOP + HALF[name] + 0.001), rng.uniform(-np.pi, np.pi))
    for number, name in enumerate(n for n in BLOCKS if n not in places):
        sim.place(name, (AWAY[0] + AWAY[1] * number, 0.0, HALF[name] + 0.001), 0.0)
    return scene


def draw_scene(rng: np.random.Generator) -> Scene:
    return draw(rng)[0]


def draw(rng: np.random.Generator) -> tuple[Scene, dict[str, tuple[float, float]]]:
    """A scene, and where things stand, m."""
    used = [str(n) for n in rng.choice(list(BLOCKS), size=int(rng.integers(3, 6)), replace=False)]
    places = dict(zip(used, _places(rng, len(used)), strict=True))
    act = str(rng.choice(ACTS))
    base = str(rng.choice([n for n in used if act == "beside" or n in CUBES]))
    moved = str(rng.choice([n for n in used if n != base]))
    colours, words = name_all(rng, Things(tuple(used), places), moved, base)
    words["act"] = act
    if act == "edge":
        words["edge"] = str(rng.choice(list(EDGES)))
    colours |= {name: str(rng.choice(list(PALETTE))) for name in BLOCKS if name not in used}
    return Scene(colours, {"moved": moved, "base": base}, words), places


def _places(rng: np.random.Generator, count: int) -> list[tuple[float, float]]:
    """m; none nearer than `APART` to another."""
    while True:
        found: list[tuple[float, float]] = []
        for _ in range(60):
            at = float(rng.uniform(*X)), float(rng.uniform(*Y))
            if all(np.hypot(at[0] - x, at[1] - y) > APART for x, y in found):
                found.append(at)
            if len(found) == count:
                return found
