"""Where the things of an episode stand, and how the arena looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vla_sim_bridge.tasks.rover import Course, shape_of

HALF = 3.0  # m, of the arena's side
APART = 0.95  # m, between the middles of two objects: the rover fits between any two
ASIDE = np.deg2rad(14)  # between two objects as the rover sees them at the beginning
OFF_WALLS = 0.6  # m
TRIES = 2000
RADII = {"ball": 0.16, "box": 0.15, "pillar": 0.1, "cone": 0.16}  # m; a box's is its mean

Pose = tuple[float, float, float]  # m, m, rad
Places = dict[str, tuple[float, float]]


def radius(name: str) -> float:
    """m, of an object's footprint."""
    return RADII[shape_of(name)]


def draw(rng: np.random.Generator, course: Course, names: Sequence[str]) -> tuple[Pose, Places]:
    """Where the rover starts, and where each object stands."""
    while True:
        start = _start(rng, course)
        places = _gate(rng, start, names) if course.gate else {}
        for name in names[len(places) :]:
            for _ in range(TRIES // 10):
                place = _beside(rng, course, start)
                if _fits(place, start, places) and not (course.gate and _bars(place, places)):
                    places[name] = place
                    break
        if len(places) == len(names):
            return start, places


def _start(rng: np.random.Generator, course: Course) -> Pose:
    if course.anywhere:
        x, y = rng.uniform(-(HALF - 0.8), HALF - 0.8, 2)
        return float(x), float(y), float(rng.uniform(-np.pi, np.pi))
    x, y, heading = rng.uniform(-0.2, 0.2, 3).tolist()
    return x - 1.8, y, heading


def _gate(rng: np.random.Generator, start: Pose, names: Sequence[str]) -> Places:
    """The first two names side by side, ahead of the rover."""
    far, bearing = rng.uniform(1.3, 1.8), start[2] + rng.uniform(-0.2, 0.2)
    middle = np.array(start[:2]) + far * np.array([np.cos(bearing), np.sin(bearing)])
    across = bearing + np.pi / 2 + rng.uniform(-0.35, 0.35)
    half = rng.uniform(1.05, 1.35) / 2 * np.array([np.cos(across), np.sin(across)])
    sides = (middle + half, middle - half)
    if rng.integers(2):
        sides = sides[::-1]
    return {n: (float(x), float(y)) for n, (x, y) in zip(names, sides, strict=False)}


def _bars(place: tuple[float, float], places: Places) -> bool:
    """Whether it would stand in the way through the gate."""
    middle = np.mean(list(places.values())[:2], axis=0)
    return bool(np.linalg.norm(middle - place) < 1.4)


def _beside(rng: np.random.Generator, course: Course, start: Pose) -> tuple[float, float]:
    far, bearing = rng.uniform(*course.distance), rng.uniform(-course.bearing, course.bearing)
    angle = start[2] + bearing
    return float(start[0] + far * np.cos(angle)), float(start[1] + far * np.sin(angle))


def _fits(place: tuple[float, float], start: Pose, places: Mapping) -> bool:
    if max(map(abs, place)) > HALF - OFF_WALLS:
        return False

    def angle(at: tuple[float, float]) -> float:
        return np.arctan2(at[1] - start[1], at[0] - start[0])

    for other in places.values():
        turn = abs(angle(place) - angle(other))
        if np.hypot(place[0] - other[0], place[1] - other[1]) < APART:
            return False
        if min(turn, 2 * np.pi - turn) < ASIDE:
            return False
    return True


class Looks:
    """Colours of floor and walls and the light: how they are in the model, or drawn."""

    def __init__(self, model):
        self.model = model
        self.usual = {
            "floor": model.material("floor").rgba[:3].tolist(),
            "wall": model.material("wall").rgba[:3].tolist(),
            "light": model.light("sun").diffuse.tolist(),
            "direction": model.light("sun").dir.tolist(),
            "ambient": model.vis.headlight.ambient.tolist(),
        }
        self.now: dict[str, list[float]] = {}

    def draw(self, rng: np.random.Generator) -> dict[str, list[float]]:
        """Greyish floor and walls, so that no object is lost on them; light from any side."""
        grey, tint = rng.uniform(0.25, 0.85, (2, 1)), rng.uniform(-0.08, 0.08, (2, 3))
        floor, wall = np.clip(grey + tint, 0, 1).tolist()
        side = rng.uniform(-0.8, 0.8, 2).tolist()
        return {
            "floor": floor,
            "wall": wall,
            "light": (rng.uniform(0.35, 0.8) * np.ones(3)).tolist(),
            "direction": [*side, -1.0],
            "ambient": (rng.uniform(0.25, 0.5) * np.ones(3)).tolist(),
        }

    def put(self, looks: Mapping[str, Sequence[float]]) -> None:
        self.now = {name: list(value) for name, value in looks.items()}
        value = {**self.usual, **self.now}
        self.model.material("floor").rgba[:3] = value["floor"]
        self.model.material("wall").rgba[:3] = value["wall"]
        self.model.light("sun").diffuse = value["light"]
        way = np.asarray(value["direction"], float)
        self.model.light("sun").dir = way / np.linalg.norm(way)
        self.model.vis.headlight.ambient[:] = value["ambient"]
