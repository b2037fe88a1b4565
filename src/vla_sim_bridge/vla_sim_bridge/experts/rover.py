"""The scripted expert of the rover: it plans on the true map, and drives as its camera allows.

A target that its camera cannot show is looked for by turning left, since a policy of one image
could not know of a shorter way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from vla_sim_bridge.envs.rover import layout

if TYPE_CHECKING:
    from vla_sim_bridge.envs.rover.world import RoverWorld

CELL = 0.1  # m
WIDE = 0.3  # m, from the rover's middle to its corners, and a little
ROOM = 0.25  # m beyond that in which it would rather not drive
STOP = 0.2  # m from the bumper to the target's side
LOOK = np.deg2rad(30)  # the camera shows what is within, with a margin
AHEAD = 0.5  # m along the way to steer for
FULL = np.array([0.5, 1.2])  # m/s, rad/s


@dataclass
class Plan:
    """Costs of the way to the target from each cell of the arena [N, N]."""

    world: RoverWorld
    costs: np.ndarray = field(init=False)
    seen: bool = False  # whether the target was in the image

    def __post_init__(self) -> None:
        count = round(2 * layout.HALF / CELL)
        middle = (np.arange(count) + 0.5) * CELL - layout.HALF
        self.points = np.stack(np.meshgrid(middle, middle, indexing="ij"), axis=-1)
        self.costs = _costs(self._price(), self.cell(self.world.position("target")))

    def _price(self) -> np.ndarray:
        """Of a metre in each cell: 1, more beside obstacles, far more inside of them."""
        gaps = [layout.HALF - np.abs(self.points).max(-1)]
        for name in self.world.others():
            way = np.linalg.norm(self.points - self.world.position(name), axis=-1)
            gaps.append(way - layout.radius(name))
        room = np.min(gaps, axis=0) - WIDE
        return 1 + 4 * np.clip(1 - room / ROOM, 0, 1) + 60 * (room < 0)

    def cell(self, at: np.ndarray) -> tuple[int, int]:
        last = len(self.points) - 1
        i, j = np.clip((np.asarray(at) + layout.HALF) / CELL, 0, last).astype(int)
        return int(i), int(j)

    def steer_for(self, at: np.ndarray) -> np.ndarray:
        """[2] m, a point further on the way from `at` to the target."""
        cell, begin = self.cell(at), np.asarray(at)
        while self.costs[cell] > 0:
            cell = min(_neighbours(cell, len(self.points)), key=lambda c: self.costs[c])
            if np.linalg.norm(self.points[cell] - begin) >= AHEAD:
                return self.points[cell]
        return self.world.position("target")


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
    graph = coo_array((np.concatenate(costs), np.hstack(ends)), (price.size, price.size))
    found = dijkstra(graph.tocsr(), directed=False, indices=number[goal])
    return found.reshape(price.shape)


def rover_expert(world: RoverWorld) -> np.ndarray:
    """The velocity [2] of this control step."""
    plan = world.plan = world.plan or Plan(world)
    gap, bearing = world.ahead("target")
    plan.seen = plan.seen or abs(bearing) <= LOOK
    if not plan.seen:
        return np.array([0.0, FULL[1] / 1.5])
    x, y, heading = world.pose()
    near = gap <= 2 * STOP
    if not near:
        way = plan.steer_for(np.array([x, y])) - (x, y)
        off = np.arctan2(way[1], way[0]) - heading
        bearing = float(np.arctan2(np.sin(off), np.cos(off)))
    if near and abs(gap - STOP) < 0.03 and abs(bearing) < 0.1:
        return np.zeros(2)
    speed = np.clip(1.5 * (gap - STOP), -0.1, FULL[0]) * max(0.0, np.cos(bearing)) ** 4
    return np.array([speed, np.clip(2.0 * bearing, -FULL[1], FULL[1])])
