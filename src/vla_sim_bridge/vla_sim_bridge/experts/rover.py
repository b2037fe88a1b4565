"""The scripted expert of the rover: it plans on the true map, and drives as its camera allows.

A target that its camera cannot show is looked for by turning left, since a policy of one image
could not know of a shorter way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from vla_sim_bridge.envs.rover import layout

if TYPE_CHECKING:
    from vla_sim_bridge.envs.rover.map_view import MapView

CELL = 0.1  # m
WIDE = 0.3  # m, from the rover's middle to its corners, and a little
ROOM = 0.25  # m beyond that in which it would rather not drive
STOP = 0.2  # m from the bumper to the target's side
LOOK = np.deg2rad(30)  # the camera shows what is within, with a margin
KEEP = np.deg2rad(24)  # and it goes round obstacles so that the target stays within this
DETOUR = 0.62  # m, beside the middle of an object to go round
DISTANCE = 0.6  # m from the bumper to the person it follows
RUN_UP, RUN_OUT = 0.6, 0.5  # m ahead of a gate's middle and behind it
INSIDE = 60  # price of a metre inside of an obstacle
FREE = (0.2, 0.4, 0.6, 0.8)  # m ahead that have to be free
AHEAD = 0.5  # m along the way to steer for
FULL = np.array([0.5, 1.2])  # m/s, rad/s


@dataclass
class Plan:
    """Costs of the way to a goal [2] m from each cell of the arena [N, N].

    around: names of the objects that are in the way. seen: whether the target was in the image.
    """

    world: MapView
    goal: np.ndarray
    around: list[str]
    seen: bool = False
    costs: np.ndarray = field(init=False)
    price: np.ndarray = field(init=False)  # of a metre in each cell [N, N]

    def __post_init__(self) -> None:
        count = round(2 * layout.HALF / CELL)
        middle = (np.arange(count) + 0.5) * CELL - layout.HALF
        self.points = np.stack(np.meshgrid(middle, middle, indexing="ij"), axis=-1)
        self.price = self._price()
        self.costs = _costs(self.price, self.cell(self.goal))

    def _price(self) -> np.ndarray:
        """Of a metre in each cell: 1, more beside obstacles, far more inside of them."""
        gaps = [layout.HALF - np.abs(self.points).max(-1)]
        for name in self.around:
            way = np.linalg.norm(self.points - self.world.position(name), axis=-1)
            gaps.append(way - layout.radius(name))
        room = np.min(gaps, axis=0) - WIDE
        return 1 + 4 * np.clip(1 - room / ROOM, 0, 1) + INSIDE * (room < 0)

    def cell(self, at: np.ndarray) -> tuple[int, int]:
        last = len(self.points) - 1
        i, j = np.clip((np.asarray(at) + layout.HALF) / CELL, 0, last).astype(int)
        return int(i), int(j)

    def free(self, pose: tuple[float, float, float], bearing: float) -> bool:
        """Whether the next metre straight on at a bearing from there is clear of obstacles."""
        x, y, heading = pose
        way = np.array([np.cos(heading + bearing), np.sin(heading + bearing)])
        points = (np.array([x, y]) + far * way for far in FREE)
        return all(self.price[self.cell(point)] < INSIDE for point in points)

    def steer_for(self, at: np.ndarray) -> np.ndarray:
        """[2] m, a point further on the way from `at` to the target."""
        cell, begin = self.cell(at), np.asarray(at)
        while self.costs[cell] > 0:
            cell = min(_neighbours(cell, len(self.points)), key=lambda c: self.costs[c])
            if np.linalg.norm(self.points[cell] - begin) >= AHEAD:
                return self.points[cell]
        return self.goal


def _neighbours(cell: tuple[int, int], count: int) -> list[tuple[int, int]]:
    i, j = cell
    return [
        (a, b)
        for a in range(max(0, i - 1), min(count, i + 2))
        for b in range(max(0, j - 1), min(count, j + 2))
        if (a, b) != cell
    ]


def _costs(price: np.ndarray, goal: tuple[int, int]) -> np.ndarray:
    """Dijkstra's from the goal over all cells, each joined to its eight neighbours."""
    number = np.arange(price.size).reshape(price.shape)
    ends, costs = [], []
    for di, dj in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = np.s_[: -di or None, max(0, -dj) : -dj if dj > 0 else None]
        there = np.s_[di:, max(0, dj) : dj if dj < 0 else None]
        ends.append(np.stack([number[here].ravel(), number[there].ravel()]))
        costs.append((CELL * np.hypot(di, dj) * (price[here] + price[there]) / 2).ravel())
    graph = csr_array((np.concatenate(costs), np.hstack(ends)), (price.size, price.size))
    found = dijkstra(graph, directed=False, indices=number[goal])
    return found.reshape(price.shape)


def rover_expert(world: MapView) -> np.ndarray:
    """The velocity [2] of this control step."""
    if world.word_at >= 0:
        return np.zeros(2)
    course = world.course
    if course.walk:
        return _follow(world)
    return _through(world) if course.gate else _round(world) if course.detour else _reach(world)


def _follow(world: MapView) -> np.ndarray:
    gap, bearing = world.ahead("target")
    if abs(bearing) > LOOK:
        return np.array([0.0, np.sign(bearing) * FULL[1]])
    near = abs(gap - DISTANCE) < 0.05 and abs(bearing) < 0.1
    return np.zeros(2) if near else _velocity(max(0.0, gap - DISTANCE), bearing)


def _round(world: MapView) -> np.ndarray:
    """To a point beside the object to go round, then to the target."""
    side = "left" if "left" in world.scene.roles else "right"
    first, at = world.position(side), np.array(world.pose()[:2])
    if world.plan is None:
        way = first - at
        left = np.array([-way[1], way[0]]) / np.linalg.norm(way)
        beside = first + (DETOUR if side == "left" else -DETOUR) * left
        world.plan = Plan(world, beside, [*world.places])
    plan = world.plan
    if not plan.seen and np.linalg.norm(at - plan.goal) > 0.25:
        return _velocity(1.0, _bearing(world, plan.steer_for(at)))
    if not plan.seen:
        around = [world.scene.roles[side], *world.others()]
        world.plan = Plan(world, world.position("target"), around, seen=True)
    return _reach(world)


def _reach(world: MapView) -> np.ndarray:
    plan = world.plan = world.plan or Plan(world, world.position("target"), [*world.others()])
    gap, bearing = world.ahead("target")
    plan.seen = plan.seen or abs(bearing) <= LOOK
    if not plan.seen:
        return np.array([0.0, FULL[1] / 1.5])
    near = gap <= 2 * STOP
    if near and abs(gap - STOP) < 0.03 and abs(bearing) < 0.1:
        return np.zeros(2)
    if not near:
        way = _bearing(world, plan.steer_for(np.array(world.pose()[:2])))
        kept = float(np.clip(way, bearing - KEEP, bearing + KEEP))
        bearing = kept if plan.free(world.pose(), kept) else way
    return _velocity(gap - STOP, bearing)


def _through(world: MapView) -> np.ndarray:
    """To a point ahead of the gate, then straight through it."""
    first, second = world.position("first"), world.position("second")
    middle, across = (first + second) / 2, (second - first) / np.linalg.norm(second - first)
    ahead = np.array([-across[1], across[0]])
    if ahead @ (middle - world.track[0]) < 0:
        ahead = -ahead
    at = np.array(world.pose()[:2])
    plan = world.plan = world.plan or Plan(world, middle - RUN_UP * ahead, [*world.places])
    plan.seen = plan.seen or np.linalg.norm(at - plan.goal) < 0.2
    if not plan.seen:
        return _velocity(1.0, _bearing(world, plan.steer_for(at)))
    left = RUN_OUT - (at - middle) @ ahead  # m to go
    if left < 0.03:
        return np.zeros(2)
    on_line = at + ((middle - at) @ across) * across
    return _velocity(left, _bearing(world, on_line + AHEAD * ahead))


def _bearing(world: MapView, point: np.ndarray) -> float:
    """rad from straight ahead to a point [2] m."""
    x, y, heading = world.pose()
    off = np.arctan2(point[1] - y, point[0] - x) - heading
    return float(np.arctan2(np.sin(off), np.cos(off)))


def _velocity(left: float, bearing: float) -> np.ndarray:
    """[2], with `left` m to go, at a bearing."""
    speed = np.clip(1.5 * left, -0.1, FULL[0]) * max(0.0, np.cos(bearing)) ** 4
    return np.array([speed, np.clip(2.0 * bearing, -FULL[1], FULL[1])])
