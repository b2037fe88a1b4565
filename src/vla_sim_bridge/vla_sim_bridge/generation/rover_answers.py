"""What the rover's expert would do, at any frame, if the sentence named another object.

The same image with two sentences and two motions: only the sentence tells them apart. These
motions are not driven but reckoned, by a rover that is at once as fast as it is told.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_sim_bridge.envs.rover.layout import PERIOD, Places
from vla_sim_bridge.envs.rover.map_view import MapView, Pose
from vla_sim_bridge.experts.rover import rover_expert
from vla_sim_bridge.tasks import Scene
from vla_sim_bridge.tasks.rover import Course

STEPS = 8  # of an answer


class Reckoned(MapView):
    """A rover on the map that goes exactly where it is told."""

    def __init__(self, scene: Scene, course: Course, places: Places):
        self.scene, self.course, self.places = scene, course, places
        self.track = []
        self._pose: Pose = (0.0, 0.0, 0.0)

    def pose(self) -> Pose:
        return self._pose

    def answer(self, pose: Pose) -> np.ndarray:
        """What the expert does from a pose on [STEPS, 2], knowing only what it sees from there."""
        self._pose = pose
        if self.plan is not None:
            self.plan.seen = False
        actions = np.zeros((STEPS, 2), np.float32)
        for action in actions:
            action[:] = rover_expert(self)
            self._move(*action.tolist())
        return actions

    def _move(self, linear: float, angular: float) -> None:
        x, y, heading = self._pose
        middle, far = heading + PERIOD * angular / 2, PERIOD * linear
        self._pose = (
            x + far * float(np.cos(middle)),
            y + far * float(np.sin(middle)),
            heading + PERIOD * angular,
        )


def other_answers(
    scene: Scene, course: Course, places: Places, poses: Sequence[Pose]
) -> dict[str, np.ndarray]:
    """One answer for each pose, about every other object in turn: columns of an episode.

    other_target: number of the object in `scene.colours` [T]; other_actions [T, STEPS, 2].
    """
    names = list(scene.colours)
    others = [i for i, name in enumerate(names) if name not in scene.roles.values()]
    rovers = {
        i: Reckoned(Scene(scene.colours, {"target": names[i]}), course, places) for i in others
    }
    turns = np.arange(len(poses)) % len(others)
    asked = np.array(others, np.int64)[turns]
    actions = [rovers[int(i)].answer(pose) for i, pose in zip(asked, poses, strict=True)]
    return {
        "datagen_info/other_target": asked,
        "datagen_info/other_actions": np.stack(actions),
    }
