"""When what was asked is done, and when something else was: see `Scene.words` for what it is."""

from __future__ import annotations

from typing import Any

import numpy as np

from vla_sim_bridge.tasks.rules import STILL, on_top
from vla_sim_bridge.tasks.table.things import BLOCKS, EDGES, HALF, TOP

RAISED = 0.08  # m that something is lifted
TAKEN = 0.03  # m, above which something else was taken
EDGE = 0.27  # m from the middle, from where on it is at an edge
NEAR = 0.11  # m between the middles of two that are beside each other


def done(sim: Any) -> bool:
    """Whether what was asked is so now."""
    act = sim.scene.words["act"]
    if act == "lift":
        return bool(sim.holds("moved") and height(sim, "moved") > RAISED)
    if act == "stack":
        return rests_on(sim, "moved", "base")
    if not lies(sim, "moved"):
        return False
    if act == "edge":
        return at_edge(sim, "moved") == sim.scene.words["edge"]
    return lies(sim, "base") and distance(sim, "moved", "base") < NEAR


def wrong_object(sim: Any) -> bool:
    """Something else than what is asked for was taken."""
    moved = sim.scene.roles["moved"]
    return any(n != moved and sim.holds(n) and height(sim, n) > TAKEN for n in there(sim))


def wrong_task(sim: Any) -> bool:
    """The right thing was left where it was not asked to be."""
    roles, words = sim.scene.roles, sim.scene.words
    base = roles["base"] if words["act"] == "stack" else ""
    for name in there(sim):
        if name not in (roles["moved"], base) and rests_on(sim, "moved", name):
            return True
    return lies(sim, "moved") and at_edge(sim, "moved") not in ("", words.get("edge", ""))


def there(sim: Any) -> list[str]:
    """What stands on the table, or above it."""
    return [name for name in BLOCKS if sim.position(name)[2] > TOP - 0.1]


def height(sim: Any, name: str) -> float:
    """m from the table to its lower side, if it is upright."""
    return float(sim.position(name)[2] - HALF[sim.scene.roles.get(name, name)] - TOP)


def lies(sim: Any, name: str) -> bool:
    """Released on the table, at rest."""
    return bool(not sim.holds(name) and height(sim, name) < 0.01 and sim.speed(name) < STILL)


def rests_on(sim: Any, upper: str, lower: str) -> bool:
    halves = [HALF[sim.scene.roles.get(name, name)] for name in (upper, lower)]
    return on_top(upper, lower, sum(halves))(sim)


def at_edge(sim: Any, name: str) -> str:
    y = sim.position(name)[1]
    return next((edge for edge, side in EDGES.items() if side * y > EDGE), "")


def distance(sim: Any, one: str, other: str) -> float:
    return float(np.linalg.norm((sim.position(one) - sim.position(other))[:2]))
