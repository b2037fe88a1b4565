"""Where the things of an episode stand, and how the arena looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vla_sim_bridge.tasks.rover import PERSON, Course, shape_of

HALF = 3.0  # m, of the arena's side
APART = 0.95  # m, between the middles of two objects: the rover fits between any two
ASIDE = np.deg2rad(14)  # between two objects as the rover sees them at the beginning
OFF_WALLS = 0.6  # m
TRIES = 2000
# m, of footprints; a box's is its mean
RADII = {
    "ball": 0.16,
    "box": 0.15,
    "pillar": 0.1,
    "cone": 0.16,
    PERSON: 0.2,
}  # m; a box's is its mean

Pose = tuple[float, float, float]  # m, m, rad
Places = dict[str, tuple[float, float]]
PERIOD = 0.05  # s, a control period
PACE = (0.2, 0.4)  # m/s, of a person who walks
BESIDE_WALK = 0.9  # m, from the way of a person to the middle of an object


def radius(name: str) -> float:
    """m, of an object's footprint."""
    return RADII[shape_of(name)]


def draw(
    rng: np.random.Generator, course: Course, names: Sequence[str]
) -> tuple[Pose, Places, np.ndarray]:
    """Where the rover starts, where each object stands, and where a person walks [T, 2] m."""
    while True:
        start, walk = _start(rng, course), np.zeros((0, 2))
        places: Places = {}
        if course.gate:
            places = _gate(rng, start, names)
        elif course.detour:
            places = _detour(rng, start, names)
        elif course.walk:
            walk = _walk(rng, start, int(rng.integers(*course.walk)))
            places = {names[0]: (float(walk[0, 0]), float(walk[0, 1]))}
        for name in names[len(places) :]:
            for _ in range(TRIES // 10):
                place = _beside(rng, course, start)
                if _fits(place, start, places) and not _bars(place, course, places, walk):
                    places[name] = place
                    break
        if len(places) == len(names) and (np.abs(walk) < HALF - 2 * OFF_WALLS).all():
            return start, places, walk


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


def _detour(rng: np.random.Generator, start: Pose, names: Sequence[str]) -> Places:
    """The first name ahead of the rover, the second behind it."""
    far, places = rng.uniform(1.1, 1.4), {}
    for name, more in zip(names, (0.0, rng.uniform(1.15, 1.5)), strict=False):
        bearing = start[2] + rng.uniform(-0.12, 0.12)
        way = (far + more) * np.array([np.cos(bearing), np.sin(bearing)])
        places[name] = (float(start[0] + way[0]), float(start[1] + way[1]))
    return places


def _walk(rng: np.random.Generator, start: Pose, steps: int) -> np.ndarray:
    """The way of a person from ahead of the rover on, who bends off at random [steps, 2]."""
    far, bearing = rng.uniform(1.1, 1.5), start[2] + rng.uniform(-0.3, 0.3)
    begin = np.array(start[:2]) + far * np.array([np.cos(bearing), np.sin(bearing)])
    bends = np.repeat(rng.uniform(-0.5, 0.5, steps // 40 + 1), 40)[:steps]  # rad/s
    heading = start[2] + rng.uniform(-0.4, 0.4) + PERIOD * np.cumsum(bends)
    step = PERIOD * rng.uniform(*PACE) * np.column_stack([np.cos(heading), np.sin(heading)])
    return begin + np.cumsum(step, axis=0)


def _bars(place: tuple[float, float], course: Course, places: Places, walk: np.ndarray) -> bool:
    """Whether it would stand in the way through the gate, round the object or of the person."""
    first = list(places.values())[:2]
    if course.gate:
        return bool(np.linalg.norm(np.mean(first, axis=0) - place) < 1.4)
    if course.detour:
        return bool(np.linalg.norm(np.array(first) - place, axis=1).min() < 1.3)
    return bool(len(walk)) and np.linalg.norm(walk - place, axis=1).min() < BESIDE_WALK


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
