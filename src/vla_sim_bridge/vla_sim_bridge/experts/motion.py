"""Building blocks of experts: a step towards a pose, a fitting grasp, noise."""

from __future__ import annotations

import numpy as np

from vla_inference.episodes.robosuite import ACTION_SCALE
from vla_sim_bridge.envs.poses import delta_between, turn_z
from vla_sim_bridge.envs.robosuite_sim import Simulation

GAIN = 1.6  # the controller lags: ask for more than the distance,
BRAKE = 0.06  # s; less what it will coast. Overshoot at full stretch meets the joint limits
STRETCHED = 0.12  # m; beyond, the shoulder's torque barely holds the arm: no haste there
DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # gripper straight down
FINGER_OPEN = 0.035  # m, one finger
FINGER_REACH = 0.05  # m, how far the outside of an open finger is from the grip's middle
FINGER_ROOM = 0.045  # m, from there to the middle of the next block


def towards(sim: Simulation, eef: np.ndarray, goal: np.ndarray, gripper: float) -> np.ndarray:
    delta = GAIN * delta_between(eef, goal)
    delta[:3] -= BRAKE * sim.eef_velocity()
    delta = np.clip(delta, -ACTION_SCALE, ACTION_SCALE)
    if eef[0, 3] > STRETCHED:
        delta[0] = min(delta[0], 0.02)
        delta[2] = max(delta[2], -0.02)
    return np.append(delta, gripper)


def home_yaw(eef: np.ndarray) -> float:
    """Yaw of a downward-pointing gripper relative to its home orientation, rad."""
    turned = eef[:3, :3] @ DOWN.T
    return float(np.arctan2(turned[1, 0], turned[0, 0]))


def square_grip(
    eef: np.ndarray, block: np.ndarray, fold: int = 4, limit: float = np.deg2rad(65)
) -> np.ndarray:
    """The downward orientation, aligned with the block, nearest to the current one.

    fold: how many of them there are in a full turn; limit: rad from the home orientation beyond
    which the next one is taken instead.
    """
    yaw = np.arctan2(block[1, 0], block[0, 0])
    now_yaw = home_yaw(eef)
    part = 2 * np.pi / fold
    turn = (yaw - now_yaw + part / 2) % part - part / 2
    # Far from the home orientation the wrist meets its joint limit: take the other side instead.
    best = (now_yaw + turn + np.pi) % (2 * np.pi) - np.pi
    if abs(best) > limit:
        best -= np.sign(best) * part
    return turn_z(best)[:3, :3] @ DOWN


def free_grip(eef: np.ndarray, block: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Like `square_grip` for a cube, but prefers the side where both open fingers have room.

    others: [N, 2] m, where things stand that they would come down on.
    """
    first = square_grip(eef, block)
    best, least = first, np.inf
    for turn in (0.0, np.pi / 2, -np.pi / 2):
        grip = turn_z(turn)[:3, :3] @ first
        far = abs(home_yaw(grip))
        room = min(
            float(np.linalg.norm(block[:2, 3] + side * FINGER_REACH * grip[:2, 0] - other))
            for side in (-1, 1)
            for other in others
        )
        cost = 20 * max(0.0, FINGER_ROOM - room) + 0.2 * abs(turn) + 5 * max(0.0, far - 1.9)
        if cost < least:
            best, least = grip, cost
    return best


def close_on(
    sim: Simulation,
    eef: np.ndarray,
    grasp: np.ndarray,
    hover: float,
    near: float = 0.05,
    tight: float = 0.015,
) -> np.ndarray:
    """Moves to a grasp from above and closes the fingers there.

    hover: m above the grip until the hand is over the object; near: the same from 4 cm aside on.
    tight: m aside; closer, the fingers go down around it.
    """
    error = delta_between(eef, grasp)
    off, turn = np.linalg.norm(error[:2]), abs(error[5])
    fingers = sim.fingers()
    if fingers < FINGER_OPEN - 0.002 and off < 0.02 and abs(error[2]) < 0.02:
        return towards(sim, eef, grasp, gripper=0.0)
    # Along the fingers' travel the block centres itself; across it, a grip off centre would let
    # the block swing.
    across = abs(eef[:3, 1] @ error[:3])
    if across < 0.005 and off < 0.013 and abs(error[2]) < 0.007 and turn < 0.15:
        return towards(sim, eef, grasp, gripper=0.0)
    if off > tight or turn > 0.25:
        # Stay above the block's top until the fingers fit around it; come down on the way.
        grasp = grasp.copy()
        grasp[2, 3] += hover if off > 0.04 else near
    return towards(sim, eef, grasp, gripper=1.0)


class Noise:
    """Smooth random deviation of executed from recorded actions (DART, arXiv 1703.09327).

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
