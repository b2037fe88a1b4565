"""Expert for Door: grips the handle obliquely from above, presses it down and pulls."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from vla_sim_bridge.envs.poses import delta_between
from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.experts.motion import DOWN, FINGER_OPEN, square_grip, towards

GRIP = np.array([0.10, -0.10, 0.0])  # m, on the handle, in the latch's frame
HINGE = np.array([0.255, 0.0, 0.0])  # m, in the door's frame
PRESSED = 1.1  # rad; the latch is out of the frame
FOLLOW = 0.55  # share of the handle's turn that the hand goes along with
AJAR = 0.20  # rad; it cannot go back in
OPENED = 0.36  # rad
EMPTY = 0.008  # m, one finger; closer, there is nothing between them
AWAY = 0.08  # m, from where the hand goes straight in
TILT = np.deg2rad(50)  # from straight down: a level hand would meet the door


def door_expert(sim: Simulation) -> np.ndarray:
    """The SI end-effector delta [7] towards opening the door."""
    eef, latch, door = sim.eef_pose(), sim.pose("latch"), sim.pose("door")
    handle = latch[:3, 3] + latch[:3, :3] @ GRIP
    hinge = sim.joint("Door_hinge")
    grasp = np.eye(4)
    grasp[:3, 3] = handle
    level = square_grip(np.block([[DOWN, np.zeros((3, 1))], [np.zeros(3), 1.0]]), door, fold=2)
    grasp[:3, :3] = Rotation.from_rotvec(TILT * door[:3, 0]).as_matrix() @ level
    # The handle slips round between the fingers, which may lose touch on one side for a moment.
    fingers = sim.fingers()
    closed = EMPTY < fingers < FINGER_OPEN - 0.001
    if not (closed and np.linalg.norm(eef[:3, 3] - handle) < 0.035):
        if hinge > OPENED - 0.04:
            return towards(sim, eef, eef, gripper=1.0)
        return _approach(sim, eef, grasp)
    pressed = sim.joint("Door_latch_joint")
    lower = [_turned(handle, latch[:3, 3], latch[:3, 1], sign * 0.45) for sign in (-1, 1)]
    down = -1 if lower[0][2] < lower[1][2] else 1
    if hinge < AJAR:
        more = 0.45 if abs(pressed) < PRESSED else 0.3
        grasp[:3, 3] = _turned(handle, latch[:3, 3], latch[:3, 1], more * down)
        hand = FOLLOW * (pressed + more * down)
        grasp[:3, :3] = Rotation.from_rotvec(hand * latch[:3, 1]).as_matrix() @ grasp[:3, :3]
    else:
        grasp[:3, :3] = eef[:3, :3]
    if abs(pressed) > PRESSED or hinge > AJAR:
        axis = door[:3, 3] + door[:3, :3] @ HINGE
        further = min(0.05, max(0.0, OPENED - hinge))
        grasp[:3, 3] = _turned(grasp[:3, 3], axis, door[:3, 2], further)
    # The hand stays where it holds the handle, which may have slipped a little.
    grasp[:3, 3] += np.clip(eef[:3, 3] - handle, -0.01, 0.01)
    return towards(sim, eef, grasp, gripper=0.0)


def _approach(sim: Simulation, eef: np.ndarray, grasp: np.ndarray) -> np.ndarray:
    """Moves in along the hand's axis once it is aligned with the handle, then closes."""
    error = delta_between(eef, grasp)
    way = grasp[:3, 2]
    aside = error[:3] - (error[:3] @ way) * way
    if np.linalg.norm(error[:3]) < 0.012:
        return towards(sim, eef, grasp, gripper=0.0)
    if np.linalg.norm(aside) > 0.01 or np.linalg.norm(error[3:]) > 0.2:
        grasp[:3, 3] -= AWAY * way
    return towards(sim, eef, grasp, gripper=1.0)


def _turned(point: np.ndarray, centre: np.ndarray, axis: np.ndarray, angle: float) -> np.ndarray:
    return centre + Rotation.from_rotvec(angle * axis).apply(point - centre)
