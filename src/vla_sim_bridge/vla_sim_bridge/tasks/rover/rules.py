"""Rules of the rover's tasks: what counts as success, and what as a wrong end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from vla_sim_bridge.tasks.base import Rule, Scene

NEAR = 0.3  # m from the bumper to the object's side that it has to stop within
FRONT = np.deg2rad(25)  # how far from straight ahead the object may be then
BEHIND = 0.3  # m that it has to stop behind a gate
UNDER_WAY = 0.05  # m that it has to have gone by the time it is told to stop
BRAKING = 0.35  # m that it may go on after that
ROUND = np.deg2rad(90)  # that it has to go around an object
BEHIND_PERSON = 0.9  # m from the bumper to the person that it has to stop within
LOST = 2.0  # m that the person may be ahead


class RoverState(Protocol):
    """What rules ask of the arena, by the name of an object or a role; see `RoverWorld`."""

    scene: Scene
    collided: bool
    track: list[tuple[float, float]]  # m, where it has been in this episode
    word_at: int  # step in which it was told to stop; -1: not yet
    furthest: float  # m, that the person to follow has been ahead
    walking: bool  # whether that person still walks

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


def _swept(sim: RoverState) -> float:
    """rad, of the way around the object that it was told to go round; to the left: above 0."""
    side = "left" if "left" in sim.scene.roles else "right"
    way = np.array(sim.track) - sim.position(side)
    angles = np.unwrap(np.arctan2(way[:, 1], way[:, 0]))
    clockwise = float(angles[0] - angles[-1])  # as one goes who passes on the left
    return clockwise if side == "left" else -clockwise


def came_round(sim: RoverState) -> bool:
    return at_target(sim) and _swept(sim) >= ROUND


def wrong_side(sim: RoverState) -> bool:
    return _swept(sim) <= -ROUND


def followed(sim: RoverState) -> bool:
    """The person has stopped, and it rests behind them without having lost them."""
    gap, bearing = sim.ahead("target")
    there = gap <= BEHIND_PERSON and abs(bearing) <= FRONT and sim.resting()
    return there and not (sim.walking or sim.collided or lost(sim))


def lost(sim: RoverState) -> bool:
    return sim.furthest > LOST


WRONG: dict[str, Rule] = {"collision": collided, "wrong_object": at_another}
