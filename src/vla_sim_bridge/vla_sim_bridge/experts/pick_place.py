"""Expert for PickPlace: carries four objects from one bin into compartments of another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.experts.motion import close_on, square_grip, towards
from vla_sim_bridge.tasks.pick_place import FLOOR, ORDER, in_bin


@dataclass(frozen=True)
class Grip:
    """How an object is grasped.

    above: m over the object's centre. half: half its height in m. fold: number of equivalent
    grasps.
    """

    above: float
    half: float
    fold: int
    nearer: tuple[float, float] = (
        0.0,
        0.0,
    )  # m, from the compartment's middle: the arm ends there


GRIPS = {
    "Milk": Grip(0.045, 0.078, 4),
    "Bread": Grip(0.006, 0.025, 4, (-0.03, 0.0)),
    "Cereal": Grip(0.045, 0.075, 2),
    "Can": Grip(0.015, 0.041, 36, (-0.045, -0.055)),
}
TRANSIT = 1.04  # m, height of the empty hand over everything
BASE = np.array([-0.5, -0.1])  # m, the robot's
FAR, LOW = 0.74, 0.97  # m from there; height of the empty hand that far
WALL = 0.90  # m, top of the bins' walls
HOVER = 0.10


def pick_place_expert(sim: Simulation) -> np.ndarray:
    """The SI end-effector delta [7] towards moving the next object to its place."""
    eef = sim.eef_pose()
    for item in ORDER:
        if sim.holds(item):
            return _carry(sim, eef, item)
    todo = [item for item in ORDER if not in_bin(item)(sim)]
    goal = eef.copy()
    goal[:3, :3] = square_grip(eef, eef)
    if not todo:
        goal[2, 3] = TRANSIT
        return towards(sim, eef, goal, gripper=1.0)
    item = todo[0]
    grip, thing = GRIPS[item], sim.pose(item)
    grasp = np.eye(4)
    grasp[:3, :3] = square_grip(eef, thing, grip.fold, np.deg2rad(65 if grip.fold > 2 else 100))
    grasp[:3, 3] = thing[:3, 3] + [0, 0, grip.above]
    off = np.linalg.norm(grasp[:2, 3] - eef[:2, 3])
    if off > 0.06:
        goal[:3, :3] = grasp[:3, :3]
        goal[2, 3] = TRANSIT
        if np.linalg.norm(eef[:2, 3] - BASE) > FAR:
            # Back, low: going up out there would straighten the arm for good.
            goal[2, 3] = LOW
            if eef[2, 3] > LOW - 0.04:
                goal[:2, 3] = min(eef[0, 3], 0.12), 0.05
        elif eef[2, 3] > TRANSIT - 0.03:
            goal[:2, 3] = grasp[:2, 3]
        return towards(sim, eef, goal, gripper=1.0)
    over = max(0.04, grip.half - grip.above + 0.03)
    return close_on(sim, eef, grasp, HOVER, near=over, tight=0.009)


def _carry(sim: Simulation, eef: np.ndarray, item: str) -> np.ndarray:
    thing, place, half = sim.position(item), sim.position(f"{item}_bin"), GRIPS[item].half
    aside = place[:2] + GRIPS[item].nearer - thing[:2]
    off, bottom = float(np.linalg.norm(aside)), thing[2] - half
    goal = eef.copy()
    goal[:3, :3] = square_grip(eef, eef)
    if off < 0.03 or (off < 0.06 and bottom < WALL):
        if bottom < FLOOR + 0.035:
            return towards(sim, eef, eef, gripper=1.0)
        goal[:2, 3] += aside
        goal[2, 3] += FLOOR + 0.015 - bottom
    else:
        goal[2, 3] += WALL + 0.06 - bottom
        if bottom > WALL + 0.02:
            goal[:2, 3] += aside
    return towards(sim, eef, goal, gripper=0.0)
