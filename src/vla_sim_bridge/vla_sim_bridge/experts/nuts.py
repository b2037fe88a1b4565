"""Expert for nut assembly: takes a nut by its handle and lowers it over its peg."""

from __future__ import annotations

import numpy as np

from vla_sim_bridge.envs.poses import invert, turn_z
from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.experts.motion import DOWN as DOWN_HAND
from vla_sim_bridge.experts.motion import close_on, home_yaw, square_grip, towards
from vla_sim_bridge.tasks.nut_assembly import DOWN

PEG_TOP = 0.95  # m
OVER = PEG_TOP + 0.03  # m, height at which a nut is carried over its peg
AMONG_PEGS = 0.12  # m; from this x on there are pegs
ABOVE_NUT = 0.90  # m, where open fingers are clear of a nut that lies
HANDLE = {"SquareNut": 0.054, "RoundNut": 0.060}  # m from the middle, along the nut's x
BASE = np.array([-0.56, 0.0])  # m, the robot's
# Turns of the hand from its home orientation, rad: how far the wrist goes, where to grip.
WRIST_FROM, WRIST_TO = -1.9, 3.3
GRIP_FROM, GRIP_TO = -1.8, 2.6
PART = 1.5  # turned at a time
HOVER = 0.07


def nut_expert(sim: Simulation, nut: str = "SquareNut", peg: str = "peg1") -> np.ndarray:
    """The SI end-effector delta [7] towards placing the nut around its peg."""
    eef, now, post = sim.eef_pose(), sim.pose(nut), sim.position(peg)
    aside = post[:2] - now[:2, 3]
    off, height = float(np.linalg.norm(aside)), now[2, 3]
    threaded = off < 0.02 and height < PEG_TOP + 0.012
    if not sim.holds(nut):
        if threaded and height < DOWN:  # done: let go, draw back
            goal = eef.copy()
            goal[2, 3] = ABOVE_NUT
            return towards(sim, eef, goal, gripper=1.0)
        grasp = np.eye(4)
        grasp[:3, :3] = _turned(eef, _grip(now))
        grasp[:3, 3] = now[:3, 3] + HANDLE[nut] * now[:3, 0] + [0, 0, 0.004]
        if eef[0, 3] > AMONG_PEGS and np.linalg.norm(grasp[:2, 3] - eef[:2, 3]) > 0.1:
            # Back from the pegs, low: going up there would straighten the arm for good.
            goal = eef.copy()
            goal[:3, :3] = square_grip(eef, eef)
            goal[2, 3] = max(eef[2, 3], ABOVE_NUT)
            if eef[2, 3] > ABOVE_NUT - 0.02:
                goal[0, 3] = 0.0
            return towards(sim, eef, goal, gripper=1.0)
        return close_on(sim, eef, grasp, HOVER)
    if threaded and height < DOWN - 0.02:
        return towards(sim, eef, eef, gripper=1.0)
    goal = np.eye(4)
    goal[:3, :3] = _level(now, eef, post, nut)
    goal[:3, 3] = now[:3, 3]
    turn = np.arccos(np.clip((np.trace(goal[:3, :3] @ now[:3, :3].T) - 1) / 2, -1, 1))
    if threaded or (off < 0.004 and turn < 0.06):
        goal[:2, 3] += aside
        goal[2, 3] = DOWN - 0.045
    else:
        goal[2, 3] = OVER
        if height > PEG_TOP + 0.015 or off > 0.15:
            goal[:2, 3] += aside
    return towards(sim, eef, goal @ invert(now) @ eef, gripper=0.0)


def nuts_expert(sim: Simulation) -> np.ndarray:
    """The square nut, then the round one."""
    square = sim.pose("SquareNut")
    apart = np.linalg.norm(square[:2, 3] - sim.position("peg1")[:2])
    done = apart < 0.02 and square[2, 3] < DOWN and not sim.holds("SquareNut")
    handle = square[:3, 3] + HANDLE["SquareNut"] * square[:3, 0]
    away = sim.eef_pose()[:3, 3] - handle
    leaving = np.linalg.norm(away[:2]) < 0.03 and away[2] < 0.04
    if done and not leaving:
        return nut_expert(sim, "RoundNut", "peg2")
    return nut_expert(sim, "SquareNut", "peg1")


def _grip(nut: np.ndarray) -> np.ndarray:
    """A grasp across the handle that leaves room to turn it towards the robot."""
    hand = np.arctan2(-nut[1, 0], -nut[0, 0])
    if not GRIP_FROM < hand < GRIP_TO:
        hand -= np.sign(hand) * np.pi
    return turn_z(hand)[:3, :3] @ DOWN_HAND


def _turned(eef: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """A part of the way to an orientation: the shortest might be one that the wrist cannot go."""
    hand = _wrist(eef)
    turn = np.clip(home_yaw(wanted) - hand, -PART, PART)
    return turn_z(hand + turn)[:3, :3] @ DOWN_HAND


def _wrist(eef: np.ndarray) -> float:
    """The hand's turn from its home orientation, where the wrist can be, rad."""
    hand = home_yaw(eef)
    return hand + 2 * np.pi if hand < WRIST_FROM - 0.2 else hand


def _level(nut: np.ndarray, eef: np.ndarray, post: np.ndarray, nut_name: str) -> np.ndarray:
    """The nut's flat pose on its peg, in the symmetric rotation that stretches the arm least."""
    fold = 4 if nut_name == "SquareNut" else 12
    yaw, hand = np.arctan2(nut[1, 0], nut[0, 0]), _wrist(eef)
    turns = [k * 2 * np.pi / fold - yaw for k in range(-fold, 2 * fold)]
    allowed = [t for t in turns if WRIST_FROM < hand + t < WRIST_TO] or [0.0]

    def cost(turn: float) -> float:
        handle = post[:2] + HANDLE[nut_name] * np.array([np.cos(yaw + turn), np.sin(yaw + turn)])
        reach = float(np.linalg.norm(handle - BASE))
        return 0.3 * abs(turn) + 40 * max(0.0, reach - 0.73)

    # A part of the way at a time: the shortest might be the one that the wrist cannot go.
    turn = np.clip(min(allowed, key=cost), -PART, PART)
    return turn_z(yaw + turn)[:3, :3]
