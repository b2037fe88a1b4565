"""How to grip each object from above, and which grips have room for the hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vla_sim_bridge.libero.expert.scene import Scene

HOME = np.array(
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]
)  # yaw 0: the fingers move along the world's y
# The open hand of a Panda, in the frame of its grip site, m
TIP = 0.010  # the fingers reach this far below the site
FINGER = (0.040, 0.067, 0.0115)  # a finger's inside, outside, and half its width
PALM = (0.104, 0.034, 0.031)  # half width, half depth, height above the site
ROOM = 0.004  # that a hand should have
MOST_YAW = 1.75  # rad; the wrist's joint limit is near
REACH = 0.70  # m from the robot's base, sideways; beyond it the controller stalls
PER_TURN, PER_METRE, PER_ROOM = 0.3, 20.0, 60.0  # what a rad, a metre too far, a metre less costs


@dataclass(frozen=True)
class Kind:
    """way: "rim" (one wall of a bowl), "round" (any yaw) or "box" (two sides).

    depth: m, of the grip site below the object's top. radius: m, of the rim. axis: of the object,
    along which the fingers close on a box. sides: pairs of equal sides, times two.
    """

    way: str
    depth: float
    radius: float = 0.0
    axis: int = 0
    sides: int = 2


BOWL = Kind("rim", 0.018, radius=0.049)
CAN = Kind("round", 0.025)
CARTON = Kind("box", 0.040, axis=0, sides=4)
BOTTLE = Kind("box", 0.035, axis=2)
FLAT = Kind("box", 0.012, axis=1)
KINDS = {
    "akita_black_bowl": BOWL,
    "black_bowl": BOWL,
    "white_bowl": BOWL,
    "alphabet_soup": CAN,
    "tomato_sauce": CAN,
    "milk": CARTON,
    "orange_juice": CARTON,
    "salad_dressing": BOTTLE,
    "ketchup": BOTTLE,
    "bbq_sauce": Kind("box", 0.030, axis=1),
    "cream_cheese": FLAT,
    "butter": FLAT,
    "chocolate_pudding": Kind("box", 0.015, axis=1),
    "cookies": Kind("box", 0.012, axis=0),
    "wine_bottle": Kind("round", 0.030),
}


@dataclass(frozen=True)
class Grip:
    """Where the grip site shall be: [3] m, and the hand's yaw from home, rad."""

    position: np.ndarray
    yaw: float


def turned(yaw: float) -> np.ndarray:
    """[3, 3], the hand pointing down."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ HOME


def candidates(scene: Scene, name: str) -> Iterator[Grip]:
    """All grips of an object, whatever stands around it."""
    kind, pose, points = KINDS[scene.category(name)], scene.pose(name), scene.points(name)
    top = points[:, 2].max()
    if kind.way == "rim":
        for angle in np.linspace(0, 2 * np.pi, 36, endpoint=False):
            x, y = pose[:2, 3] + kind.radius * np.array([np.cos(angle), np.sin(angle)])
            for depth in (kind.depth, 0.6 * kind.depth):  # shallow where walls are in the way
                for flip in (-np.pi / 2, np.pi / 2):
                    yield Grip(np.array([x, y, top - depth]), _wrap(angle + flip))
        return
    middle = (points.max(0) + points.min(0)) / 2
    at = np.array([*middle[:2], top - kind.depth])
    if kind.way == "round":
        yaws = np.linspace(-np.pi / 2, np.pi / 2, 19)
    else:
        x, y = pose[:2, kind.axis]
        yaws = np.arctan2(y, x) - np.pi / 2 + 2 * np.pi * np.arange(kind.sides) / kind.sides
    for yaw in yaws:
        yield Grip(at, _wrap(yaw))


def room(scene: Scene, grip: Grip) -> float:
    """m between the open hand at a grip and what stands below it; negative: it would hit."""
    turn, at, start = turned(grip.yaw), grip.position, grip.position[2] + 0.25

    def below(along: float, across: float) -> float:
        x, y, _ = at + turn @ np.array([along, across, 0.0])
        return scene.height(x, y, start)

    inside, outside, half = FINGER
    fingers = [
        below(side * along, across)
        for side in (-1, 1)
        for along in np.linspace(inside, outside, 4)
        for across in (-half, 0.0, half)
    ]
    width, depth, over = PALM
    palm = [
        below(along, across)
        for along in np.linspace(-width, width, 7)
        for across in (-depth, 0.0, depth)
    ]
    return float(min(at[2] - TIP - max(fingers), at[2] + over - max(palm)))


def choose(scene: Scene, name: str, place: np.ndarray) -> Grip:
    """The grip with room for the hand that needs the least turning and stretching.

    place: [3] m, where the object goes. The hand ends there, as far beside it as it grips beside
    the object's middle.
    """
    middle = scene.pose(name)[:2, 3]

    def effort(grip: Grip) -> float:
        here = grip.position[:2] - scene.base[:2]
        there = here + place[:2] - middle
        stretch = max(np.linalg.norm(here), np.linalg.norm(there)) - REACH
        return PER_TURN * abs(grip.yaw) + PER_METRE * max(0.0, float(stretch))

    least, best = np.inf, None
    within = [g for g in candidates(scene, name) if abs(g.yaw) <= MOST_YAW]
    for cost, _, grip in sorted((effort(g), i, g) for i, g in enumerate(within)):
        if cost >= least:
            break  # rays are slow: only what may still be the best is looked at
        cost += PER_ROOM * max(0.0, ROOM - room(scene, grip))
        if cost < least:
            least, best = cost, grip
    assert best is not None  # two opposite yaws are always candidates
    return best


def _wrap(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)
