"""A scripted expert for `TwoArms`: each arm takes a handle of the pot, and both lift it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from vla_inference.control.arm import Arm
from vla_inference.control.ik import IkSettings, joint_step
from vla_inference.errors import VlaError
from vla_sim_bridge.envs.two_arms import ARMS, TwoArms

HANDLES = {"right_arm": "pot_handle0", "left_arm": "pot_handle1"}
# height above the handle (m), gripper (1 open), control periods
PHASES = ((0.12, 1.0, 40), (0.0, 1.0, 30), (0.0, 0.0, 20), (0.2, 0.0, 50))
NEAREST, ROUNDS, LONGEST = 1e-6, 100, 0.1  # m and rad, of a solution; steps to it; of a step


@dataclass(frozen=True)
class Phase:
    """joints: where each arm's shall be at its end [7] rad. periods: control periods of 0.05 s."""

    joints: dict[str, np.ndarray]
    gripper: float
    periods: int


def plan(world: TwoArms, chain: Arm) -> list[Phase]:
    """chain: from an arm's base to its grip site, the same for both."""
    at = {arm: joints for arm, (joints, _) in world.joints().items()}
    across = world.in_base("left_arm", HANDLES["left_arm"])
    across = across - world.in_base("left_arm", HANDLES["right_arm"])
    turn = Rotation.from_euler("z", math.atan2(-across[0], across[1])).as_matrix()
    goals = {}
    for arm in ARMS:
        goals[arm] = chain.pose(at[arm])
        goals[arm][:3, :3] = turn @ goals[arm][:3, :3]
        goals[arm][:3, 3] = world.in_base(arm, HANDLES[arm])
    phases = []
    for height, gripper, periods in PHASES:
        at = {arm: reach(chain, at[arm], raised(goals[arm], height)) for arm in ARMS}
        phases.append(Phase(at, gripper, periods))
    return phases


def raised(pose: np.ndarray, height: float) -> np.ndarray:
    """The pose [4, 4] that is higher by so much, m."""
    pose = pose.copy()
    pose[2, 3] += height
    return pose


def reach(chain: Arm, joints: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Joints [n] rad, the nearest from these on, at which the frame is at a pose [4, 4]."""
    settings = IkSettings()
    for _ in range(ROUNDS):
        pose = chain.pose(joints)
        turn = Rotation.from_matrix(goal[:3, :3] @ pose[:3, :3].T).as_rotvec()
        way = np.concatenate([goal[:3, 3] - pose[:3, 3], turn])
        far = float(np.abs(way).max())
        if far < NEAREST:
            return joints
        joints = joints + joint_step(chain, joints, way * min(1.0, LONGEST / far), settings)[0]
    raise VlaError("the arm cannot reach the handle", "begin with another seed")
