"""Expert for PickPlace: carries four objects from one bin into compartments of another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from vla_sim_bridge.envs.poses import turn_z
from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.experts.motion import (
    DOWN,
    FINGER_REACH,
    FINGER_ROOM,
    close_on,
    home_yaw,
    square_grip,
    towards,
)
from vla_sim_bridge.tasks.pick_place import FLOOR, ORDER, in_bin


@dataclass(frozen=True)
class Grip:
    """How an object is grasped.

    above: m over the object's centre. half: half its height in m. fold: number of equivalent
    grasps. nearer: m from the compartment's middle to where it is put, as the arm ends there.
    """

    above: float
    half: float
    fold: int
    nearer: tuple[float, float] = (0.0, 0.0)


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
BIN_FROM, BIN_TO = np.array([-0.09, -0.49]), np.array([0.29, -0.01])  # m, inside of the first bin
HAND, SKIN = 0.104, 0.008  # m, half the hand's length, along the fingers' travel; room around it
UNDER = 0.055  # m beside the hand's middle, where things stand under it
TILT = 0.2  # rad, lifts an end of the hand by 2 cm
HAND_UP = 0.031  # m from the grip to the hand's lower side
HOVER = 0.10
WRIST = 1.9  # rad from the home orientation that the wrist turns
LYING = 0.03  # m, half the height of one that lies
FALLEN = 0.7  # an object whose axis is less upright than this cosine lies


def pick_place_expert(sim: Simulation) -> np.ndarray:
    """The SI end-effector delta [7] towards moving the next object to its place."""
    eef = sim.eef_pose()
    for item in ORDER:
        if sim.holds(item):
            return _carry(sim, eef, item)
    todo = [item for item in ORDER if not in_bin(item)(sim)]
    if not todo:
        goal = eef.copy()
        goal[:3, :3] = square_grip(eef, eef)
        goal[2, 3] = TRANSIT
        return towards(sim, eef, goal, gripper=1.0)
    item = todo[0]
    grip, grasp = GRIPS[item], _grasp(sim, eef, item)
    if np.linalg.norm(grasp[:2, 3] - eef[:2, 3]) > 0.06:
        return towards(sim, eef, _over(eef, grasp), gripper=1.0)
    over = max(0.04, grip.half - grip.above + 0.03)
    return close_on(sim, eef, grasp, HOVER, near=over, tight=0.009)


def _over(eef: np.ndarray, grasp: np.ndarray) -> np.ndarray:
    """The next pose on the way over everything to above a grasp."""
    goal = eef.copy()
    goal[:3, :3], goal[2, 3] = grasp[:3, :3], TRANSIT
    if np.linalg.norm(eef[:2, 3] - BASE) > FAR:
        # Back, low: going up out there would straighten the arm for good.
        goal[2, 3] = LOW
        if eef[2, 3] > LOW - 0.04:
            goal[:2, 3] = min(eef[0, 3], 0.12), 0.05
    elif eef[2, 3] > TRANSIT - 0.03:
        goal[:2, 3] = grasp[:2, 3]
    return goal


def _grasp(sim: Simulation, eef: np.ndarray, item: str) -> np.ndarray:
    """Where and how to close the fingers on an object, which may have fallen over.

    Of the grasps that its shape allows, the one that keeps the hand off the bin's walls, the open
    fingers off other objects, and turns least. An end of the hand that something is in the way of
    comes higher: the hand tilts.
    """
    grip, thing = GRIPS[item], sim.pose(item)
    fold, above, block = grip.fold, grip.above, thing
    if abs(thing[2, 2]) < FALLEN:  # it lies: across its axis, at its middle
        fold, above, block = 2, 0.0, np.eye(4)
        block[:2, 0] = thing[:2, 2] / np.linalg.norm(thing[:2, 2])
    others = [sim.position(other)[:2] for other in ORDER if other != item]
    at, height = thing[:2, 3], thing[2, 3] + above
    first = square_grip(eef, block, fold, limit=np.pi)
    best, least, tilt = first, np.inf, 0.0
    for number in range(fold):
        hand = turn_z(2 * np.pi * number / fold)[:3, :3] @ first
        low = height < WALL - HAND_UP
        walls = [low and _beyond(at + side * HAND * hand[:2, 0]) > -SKIN for side in (-1, 1)]
        stands = [low and _under(at, side * hand, others) for side in (-1, 1)]
        ends = [wall or other for wall, other in zip(walls, stands, strict=True)]
        cost = 0.3 * any(walls) + 1.0 * any(stands) + 2.0 * all(ends)
        cost += 5 * max(0.0, abs(home_yaw(hand)) - WRIST)
        cost += 20 * max(0.0, FINGER_ROOM - _room(at, hand, others))
        cost += 0.1 * abs(home_yaw(hand @ eef[:3, :3].T @ DOWN))
        if cost < least:
            best, least, tilt = hand, cost, TILT * (int(ends[1]) - int(ends[0]))
    grasp = np.eye(4)
    grasp[:3, :3] = Rotation.from_rotvec(tilt * best[:, 1]).as_matrix() @ best
    grasp[:2, 3], grasp[2, 3] = at, height
    return grasp


def _beyond(point: np.ndarray) -> float:
    """m by which a point is beyond the first bin's inside."""
    return float(max((BIN_FROM - point).max(), (point - BIN_TO).max()))


def _under(at: np.ndarray, hand: np.ndarray, others: list[np.ndarray]) -> bool:
    """Whether something stands under the end of the hand that its first axis points to."""
    apart = [other - at for other in others]
    along = [(d @ hand[:2, 0], abs(d @ hand[:2, 1])) for d in apart]
    return any(0 < ahead < HAND + 0.02 and aside < UNDER for ahead, aside in along)


def _room(at: np.ndarray, hand: np.ndarray, others: list[np.ndarray]) -> float:
    """m between an open finger and the middle of the nearest other object."""
    fingers = [at + side * FINGER_REACH * hand[:2, 0] for side in (-1, 1)]
    return min(float(np.linalg.norm(f - other)) for f in fingers for other in others)


def _carry(sim: Simulation, eef: np.ndarray, item: str) -> np.ndarray:
    thing, place = sim.pose(item), sim.position(f"{item}_bin")
    half = GRIPS[item].half if abs(thing[2, 2]) > FALLEN else LYING
    aside = place[:2] + GRIPS[item].nearer - thing[:2, 3]
    off, bottom = float(np.linalg.norm(aside)), thing[2, 3] - half
    goal = eef.copy()
    goal[:3, :3] = square_grip(eef, eef)
    if off < 0.03 or (off < 0.06 and bottom < WALL):
        # A hand as long as a compartment may come to rest on its walls: let go there.
        if bottom < FLOOR + 0.035 or eef[2, 3] < WALL - HAND_UP + 0.006:
            return towards(sim, eef, eef, gripper=1.0)
        goal[:2, 3] += aside
        goal[2, 3] += FLOOR + 0.015 - bottom
    else:
        goal[2, 3] += WALL + 0.06 - bottom
        if bottom > WALL + 0.02:
            goal[:2, 3] += aside
    return towards(sim, eef, goal, gripper=0.0)
