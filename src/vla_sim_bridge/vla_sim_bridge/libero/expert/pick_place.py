"""The expert: picks up an object and puts it on another one, or into a region.

What it relies on: bowls are gripped by their rim, so a bowl that was lifted hangs tilted and
straightens where it is put; fingers round its 4 mm wall read as closed.
"""

from __future__ import annotations

import numpy as np

from vla_sim_bridge.libero.expert.grips import KINDS, Grip, choose
from vla_sim_bridge.libero.expert.motion import CLOSED, OPEN, Motion
from vla_sim_bridge.libero.expert.scene import Scene

TRIES = 3
OVER = 0.10  # m, above a grip before going down to it
AWAY = 0.05  # m between the hand and what it passes over
ABOVE_PLACE = 0.03  # m between what is carried and what it passes over
GAP = 0.004  # m over the place when the fingers open
INSIDE = 0.03  # m over a region's floor, the same
CENTRED = 0.006  # m
MOST_TILT = 20.0  # degrees; a bowl on the ramekin rests at 16, one that slid off it at 22 to 33

RACK = "wine_rack"  # a bottle stood on it falls

Goal = tuple[str, str, str]  # "on" or "in", the object, where it goes


def goals(problem: dict) -> tuple[list[Goal], str]:
    """What a task asks for, and why the expert cannot do it; empty if it can.

    problem: the task's BDDL file, as LIBERO parses it.
    """
    kinds = {name: kind for kind, names in problem["objects"].items() for name in names}
    furniture = [name for names in problem["fixtures"].values() for name in names]
    opened = [names[0] for word, *names in problem["initial_state"] if word.lower() == "open"]
    found = []
    for word, *names in problem["goal_state"]:
        if word not in ("on", "in"):
            return [], f"the scripted expert cannot do {' '.join((word, *names))}"
        kind = kinds.get(names[0], names[0])
        if kind not in KINDS:
            return [], f"the scripted expert has no grip for {kind}"
        if names[1].startswith(RACK):
            return [], f"the scripted expert cannot lay {names[0]} into {names[1]}"
        if word == "in" and names[1] not in opened and names[1].startswith(tuple(furniture)):
            return [], f"the scripted expert cannot open {names[1]}"
        found.append((word, names[0], names[1]))
    return found, ""


class PickPlace:
    """Does one task; `over` of its motion ends it at any moment."""

    def __init__(self, scene: Scene, motion: Motion):
        self.scene, self.motion = scene, motion

    def run(self, wanted: list[Goal]) -> str:
        """How the last object was handled: "placed", "slipped" or "dropped"."""
        how = "placed"
        for goal in wanted:
            for _ in range(TRIES):
                how = self._once(goal)
                if self.motion.over or self.scene.env._eval_predicate(list(goal)):
                    break
        return how

    def _once(self, goal: Goal) -> str:
        word, name, place = goal
        grip = choose(self.scene, name, self._place(word, place))
        self._grasp(grip)
        if not self._holds(name):
            self.motion.go(
                _above(grip.position, OVER), grip.yaw, OPEN, near=0.03, turn=0.5, most=20
            )
            self.motion.hold(6, _above(grip.position, OVER), grip.yaw, OPEN)
            return "slipped"
        goes = self._place(word, place)  # now: what it may have pushed aside is where it stays
        if not self._carry(name, goes, grip.yaw):
            return "dropped"
        self._release(name, goes, grip.yaw)
        return "placed"

    def _grasp(self, grip: Grip) -> None:
        """Over everything to the object, down, close, and up a little."""
        scene, motion, yaw = self.scene, self.motion, grip.yaw
        above, here = _above(grip.position, OVER), self._here()
        safe = max(above[2], scene.highest_between(here, above, 0.10) + AWAY)
        if here[2] < safe - 0.02:
            motion.go(_at(here, safe), yaw, OPEN, near=0.02, turn=0.8)
        motion.go(_at(above, safe), yaw, OPEN, near=0.015, turn=0.15)
        motion.go(above, yaw, OPEN, most=40)
        motion.go(grip.position, yaw, OPEN, near=0.005, most=45, stall=True)
        for step in range(12):
            before = scene.opening()
            motion.hold(1, grip.position, yaw, CLOSED)
            if step > 3 and abs(scene.opening() - before) < 3e-4:
                break
        lifted = _above(grip.position, 0.05)
        motion.go(lifted, yaw, CLOSED, near=0.012, turn=0.3, most=20)

    def _carry(self, name: str, place: np.ndarray, yaw: float) -> bool:
        """Over everything to above the place; whether it still holds the object."""
        scene, motion, here = self.scene, self.motion, self._here()
        aside = np.append(place[:2] - scene.pose(name)[:2, 3], 0.0)
        below = scene.highest_between(here, here + aside, 0.06, scene.own_bodies(name))
        hangs = here[2] - scene.points(name)[:, 2].min()
        safe = max(below, place[2]) + ABOVE_PLACE + hangs
        if here[2] < safe - 0.01:
            motion.go(_at(here, safe), yaw, CLOSED, near=0.015, turn=0.4)
        if not self._holds(name):
            return False
        motion.go(_at(here + aside, safe), yaw, CLOSED, near=0.015, turn=0.4)
        for _ in range(3):  # what hangs in the fingers may have turned: bring its middle over
            if not self._holds(name):
                return False
            aside = np.append(place[:2] - scene.pose(name)[:2, 3], 0.0)
            if np.linalg.norm(aside) < CENTRED:
                break
            motion.go(_at(self._here() + aside, safe), yaw, CLOSED, CENTRED, turn=0.4, most=15)
        return True

    def _release(self, name: str, place: np.ndarray, yaw: float) -> None:
        """Down until it stands, open, and up."""
        motion, bottom = self.motion, self.scene.points(name)[:, 2].min()
        low = _above(self._here(), place[2] - bottom)
        motion.go(low, yaw, CLOSED, CENTRED, turn=0.4, most=45, stall=True)
        motion.hold(6, self._here(), yaw, OPEN)
        motion.go(_above(self._here(), 0.08), yaw, OPEN, near=0.02, turn=0.6, most=20)

    def _here(self) -> np.ndarray:
        return self.scene.hand()[:3, 3]

    def _holds(self, name: str) -> bool:
        """Whether the fingers are round something, and the object's box is where they are."""
        pose, points = self.scene.pose(name), self.scene.points(name)
        local = (points - pose[:3, 3]) @ pose[:3, :3]
        hand = (self._here() - pose[:3, 3]) @ pose[:3, :3]
        away = np.linalg.norm(hand - np.clip(hand, local.min(0), local.max(0)))
        return bool(away < 0.02 and self.scene.opening() > 0.001)

    def _place(self, word: str, place: str) -> np.ndarray:
        """[3] m: where the object's origin goes (x, y), and its lowest point (z)."""
        scene = self.scene
        if scene.is_object(place):
            (x, y, _), points = scene.pose(place)[:3, 3], scene.points(place)
            middle = points[np.linalg.norm(points[:, :2] - (x, y), axis=1) < 0.04]
            top = (middle if len(middle) else points)[:, 2].max()
            return np.array([x, y, top + GAP])
        (x, y, z), size = scene.site(place)
        if word == "in":
            return np.array([x, y, z - size[2] + INSIDE])
        return np.array([x, y, scene.height(x, y, z + 0.3) + GAP])


def _at(point: np.ndarray, height: float) -> np.ndarray:
    return np.array([point[0], point[1], height])


def _above(point: np.ndarray, way: float) -> np.ndarray:
    return _at(point, point[2] + way)
