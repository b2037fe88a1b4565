"""What experts are made of: a step towards a pose, a grip that fits, noise on top."""

from __future__ import annotations

import numpy as np

from vla_sim_bridge.poses import delta_between, turn_z
from vla_sim_bridge.simulation import ACTION_SCALE, Simulation

GAIN = 1.6  # the controller lags: ask for more than the distance,
BRAKE = 0.06  # s; less what it will coast. Overshoot at full stretch meets the joint limits
STRETCHED = 0.12  # m; beyond, the shoulder's torque barely holds the arm: no haste there
DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # gripper straight down
FINGER_OPEN = 0.035  # m, one finger


def towards(sim: Simulation, eef: np.ndarray, goal: np.ndarray, gripper: float) -> np.ndarray:
    delta = GAIN * delta_between(eef, goal)
    delta[:3] -= BRAKE * sim.eef_velocity()
    delta = np.clip(delta, -ACTION_SCALE, ACTION_SCALE)
    if eef[0, 3] > STRETCHED:
        delta[0] = min(delta[0], 0.02)
        delta[2] = max(delta[2], -0.02)
    return np.append(delta, gripper)


def square_grip(eef: np.ndarray, block: np.ndarray) -> np.ndarray:
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
