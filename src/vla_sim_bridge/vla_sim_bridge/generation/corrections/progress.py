"""How far a task is, from its own subtasks, and whether that has stopped growing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_sim_bridge.envs.robosuite_sim import Simulation

NEARER = 0.01  # m; less is no progress
BEGUN = 3  # steps after which a grasp counts


def stage_of(sim: Simulation) -> int:
    """Index of the subtask that is to be done now: the one after the last whose signal is on."""
    done = [bool(s.until and s.until(sim)) for s in sim.task.subtasks]
    last = max((i for i, on in enumerate(done) if on), default=-1)
    return min(last + 1, len(done) - 1)


def distance_of(sim: Simulation, stage: int) -> float:
    """From the grip site to the object of a subtask, m."""
    target = sim.position(sim.task.subtasks[stage].object)
    return float(np.linalg.norm(sim.eef_pose()[:3, 3] - target))


@dataclass
class Progress:
    """The furthest that an episode has got: a subtask, and how near the hand came to its object.

    steps: since that was last bettered.
    """

    stage: int = -1
    distance: float = np.inf
    steps: int = 0

    def look(self, sim: Simulation) -> None:
        """Call once a control step."""
        stage = stage_of(sim)
        distance = distance_of(sim, stage)
        further = stage > self.stage
        if further or (stage == self.stage and distance < self.distance - NEARER):
            self.stage, self.distance, self.steps = stage, distance, 0
        else:
            self.steps += 1


class WrongGrasp:
    """Tells whether an object is held that no subtask up to now is about."""

    def __init__(self) -> None:
        self._steps = 0

    def look(self, sim: Simulation) -> bool:
        """Call once a control step."""
        begun = sim.task.subtasks[: stage_of(sim) + 1]
        right = {sim.body(s.object) for s in begun}
        held = {sim.body(n) for n in sim.free_objects() if sim.holds(n)}
        self._steps = self._steps + 1 if held - right else 0
        return self._steps >= BEGUN
