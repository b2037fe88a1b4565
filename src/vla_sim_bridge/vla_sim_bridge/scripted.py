"""An expert that stacks by looking at the simulator's own poses: a source of demonstrations.

It is a function of the world alone (no hidden phase), so it recovers from whatever noise or a
failed grasp did, and what it shows can be learned from pictures.
"""

from __future__ import annotations

import numpy as np

from vla_sim_bridge.poses import delta_between, turn_z
from vla_sim_bridge.simulation import ACTION_SCALE, Simulation

GAIN = 1.6  # the controller lags: ask for more than the distance,
BRAKE = 0.06  # s; less what it will coast. Overshoot at full stretch meets the joint limits
HOVER = 0.07  # m above the small block before the descent
CLEAR = 0.035  # m between the lower side of the carried block and the top of the big one
STACKED = 0.045  # m between the centres of two stacked blocks
STRETCHED = 0.12  # m; beyond, the shoulder's torque barely holds the arm: no haste there
DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # gripper straight down
FINGER_OPEN = 0.035  # m, one finger


def stack_expert(sim: Simulation, moved: str = "cubeA", base: str = "cubeB") -> np.ndarray:
    """The SI end-effector delta [7] that brings `moved` closer to lying on `base`."""
    eef, objects = sim.eef_pose(), sim.object_poses()
    block, target = objects[moved], objects[base]
    to_base = target[:3, 3] - block[:3, 3]
    aside, above = np.linalg.norm(to_base[:2]), -to_base[2]
    fingers = float(np.abs(sim.state()[6:8]).mean())

    upright = _square_grip(eef, eef)
    on_top = aside < 0.03 and abs(above - STACKED) < 0.006
    if sim.signals()["grasp"]:
        if on_top and aside < 0.014:
            return _towards(sim, eef, eef, gripper=1.0)  # let go
        goal = eef.copy()
        goal[:3, :3] = upright
        height = STACKED + CLEAR
        # Sideways only as far as the lift allows; down only once it is above the base.
        if aside < 0.011 or (aside < 0.02 and above < height - 0.01):
            goal[:3, 3] += [to_base[0], to_base[1], STACKED - 0.004 - above]
        else:
            goal[2, 3] += height - above
            if above > height - 0.03 or aside > 0.12:
                goal[:2, 3] += to_base[:2]
        return _towards(sim, eef, goal, gripper=0.0)
    if on_top:  # released: draw back
        goal = eef.copy()
        goal[2, 3] = block[2, 3] + (0.08 if fingers > 0.024 else 0.0)
        return _towards(sim, eef, goal, gripper=1.0)

    grasp = np.eye(4)
    grasp[:3, 3] = block[:3, 3] + [0, 0, 0.006]  # lower, the fingertips would press on the table
    grasp[:3, :3] = _square_grip(eef, block)
    error = delta_between(eef, grasp)
    off, turn = np.linalg.norm(error[:2]), abs(error[5])
    closing = fingers < FINGER_OPEN - 0.002
    if closing and off < 0.02 and abs(error[2]) < 0.02:
        return _towards(sim, eef, grasp, gripper=0.0)
    # Along the fingers' travel the block centres itself; across it, a grip off centre would let
    # the block swing.
    across = abs(eef[:3, 1] @ error[:3])
    if across < 0.005 and off < 0.013 and abs(error[2]) < 0.007 and turn < 0.15:
        return _towards(sim, eef, grasp, gripper=0.0)
    if off > 0.015 or turn > 0.25:
        # Stay above the block's top until the fingers fit around it; come down on the way.
        grasp[2, 3] += HOVER if off > 0.04 else 0.05
    return _towards(sim, eef, grasp, gripper=1.0)


def _towards(sim: Simulation, eef: np.ndarray, goal: np.ndarray, gripper: float) -> np.ndarray:
    delta = GAIN * delta_between(eef, goal)
    delta[:3] -= BRAKE * sim.eef_velocity()
    delta = np.clip(delta, -ACTION_SCALE, ACTION_SCALE)
    if eef[0, 3] > STRETCHED:
        delta[0] = min(delta[0], 0.02)
        delta[2] = max(delta[2], -0.02)
    return np.append(delta, gripper)


def _square_grip(eef: np.ndarray, block: np.ndarray) -> np.ndarray:
    """The downward orientation, square to the block, that is nearest to the present one."""
    yaw = np.arctan2(block[1, 0], block[0, 0])
    now = eef[:3, :3] @ DOWN.T
    now_yaw = np.arctan2(now[1, 0], now[0, 0])
    quarter = np.pi / 2
    turn = (yaw - now_yaw + quarter / 2) % quarter - quarter / 2
    # Far from the home orientation the wrist meets its joint limit: take the other side instead.
    best = (now_yaw + turn + np.pi) % (2 * np.pi) - np.pi
    if abs(best) > np.deg2rad(65):
        best -= np.sign(best) * quarter
    return turn_z(best)[:3, :3] @ DOWN


class Noise:
    """Smooth random deviation of what is executed from what is recorded (DART, arXiv 1703.09327).

    scale: standard deviation in units of a full action (0.05 m, 0.5 rad); memory: AR(1) factor.
    """

    def __init__(self, rng: np.random.Generator, scale: float, memory: float = 0.7):
        self.rng, self.scale, self.memory = rng, scale, memory
        self.value = np.zeros(6)

    def disturb(self, action: np.ndarray) -> np.ndarray:
        fresh = self.rng.standard_normal(6) * np.sqrt(1 - self.memory**2)
        self.value = self.memory * self.value + fresh
        disturbed = np.array(action)
        # Turning by a full action is ten times as violent as moving by one: less of it.
        disturbed[:6] += self.scale * self.value * ACTION_SCALE * [1, 1, 1, 0.4, 0.4, 0.4]
        disturbed[:6] = np.clip(disturbed[:6], -ACTION_SCALE, ACTION_SCALE)
        return disturbed
