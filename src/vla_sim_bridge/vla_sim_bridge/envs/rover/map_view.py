"""What is known of an arena by its map and the rover's pose alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np

from vla_sim_bridge.envs.rover import layout
from vla_sim_bridge.tasks import Scene
from vla_sim_bridge.tasks.rover import Course

BUMPER = 0.2  # m from the middle of the axle to the front
Pose = tuple[float, float, float]  # m, m, rad


class MapView(ABC):
    """What rules and the expert ask.

    places: m, of each object. track: where the rover has been. word_at: step in which it was told
    to stop; -1: not yet. plan: the expert's of this episode, once it has one.
    """

    scene: Scene
    course: Course
    places: layout.Places
    track: list[tuple[float, float]]
    word_at: int = -1
    plan: Any = None

    @abstractmethod
    def pose(self) -> Pose:
        """x, y (m) and heading (rad) of the middle of the axle."""

    def position(self, name: str) -> np.ndarray:
        """[2] m, of an object by its name or role."""
        return np.array(self.places[self.scene.roles.get(name, name)])

    def ahead(self, name: str) -> tuple[float, float]:
        """From the bumper to an object's side (m), and where it is (rad from straight ahead)."""
        x, y, heading = self.pose()
        way = self.position(name) - (x, y)
        bearing = np.arctan2(way[1], way[0]) - heading
        far = np.linalg.norm(way) - BUMPER - layout.radius(self.scene.roles.get(name, name))
        return float(far), float(np.arctan2(np.sin(bearing), np.cos(bearing)))

    def others(self) -> Iterator[str]:
        """The objects that play no role."""
        return (name for name in self.places if name not in self.scene.roles.values())
