"""An expert that takes a nut by its handle and lowers it over its peg."""

from __future__ import annotations

import numpy as np

from vla_sim_bridge.experts.motion import close_on, home_yaw, square_grip, towards
from vla_sim_bridge.poses import invert, turn_z
from vla_sim_bridge.simulation import Simulation
from vla_sim_bridge.tasks.nut_assembly import DOWN

PEG_TOP = 0.95  # m
OVER = PEG_TOP + 0.03  # m, height at which a nut is carried over its peg
AMONG_PEGS = 0.12  # m; from this x on there are pegs
HANDLE = {"SquareNut": 0.054, "RoundNut": 0.060}  # m from the middle, along the nut's x
WRIST = np.deg2rad(110)  # from the home orientation; beyond, its joint limit is near
HOVER = 0.07


def nut_expert(sim: Simulation, nut: str = "SquareNut", peg: str = "peg1") -> np.ndarray:
    """The SI end-effector delta [7] that brings the nut closer to lying around the peg."""
    eef, now, post = sim.eef_pose(), sim.pose(nut), sim.position(peg)
    aside = post[:2] - now[:2, 3]
    off, height = float(np.linalg.norm(aside)), now[2, 3]
    threaded = off < 0.02 and height < PEG_TOP + 0.012
    if not sim.holds(nut):
        if threaded and height < DOWN:  # done: let go, draw back
            goal = eef.copy()
            goal[2, 3] = height + 0.10
            return towards(sim, eef, goal, gripper=1.0)
        grasp = np.eye(4)
        grasp[:3, :3] = square_grip(eef, now, fold=2, limit=WRIST)
        grasp[:3, 3] = now[:3, 3] + HANDLE[nut] * now[:3, 0] + [0, 0, 0.004]
        if eef[0, 3] > AMONG_PEGS and np.linalg.norm(grasp[:2, 3] - eef[:2, 3]) > 0.1:
            # Out from between the pegs and back: sideways from there the arm would be straight.
            goal = eef.copy()
            goal[:3, :3] = square_grip(eef, eef)
            goal[2, 3] = OVER
            if eef[2, 3] > PEG_TOP:
                goal[0, 3] = 0.0
            return towards(sim, eef, goal, gripper=1.0)
        return close_on(sim, eef, grasp, HOVER)
    if threaded and height < DOWN - 0.02:
        return towards(sim, eef, eef, gripper=1.0)
    goal = np.eye(4)
    goal[:3, :3] = _level(now, eef, 4 if nut == "SquareNut" else 24)
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
    leaving = np.linalg.norm(away[:2]) < 0.03 and away[2] < 0.08
    if done and not leaving:
        return nut_expert(sim, "RoundNut", "peg2")
    return nut_expert(sim, "SquareNut", "peg1")


def _level(nut: np.ndarray, eef: np.ndarray, fold: int) -> np.ndarray:
    """The nut flat and square to its peg: of `fold` ways the nearest that the wrist can follow.

    Ways that hold the handle far from the robot are avoided: the arm ends there.
    """
    yaw = np.arctan2(nut[1, 0], nut[0, 0])
    hand = home_yaw(eef)
    part = 2 * np.pi / fold
    turns = [k * part - yaw for k in range(fold)]
    turns = [(t + np.pi) % (2 * np.pi) - np.pi for t in turns]

    def cost(turn: float) -> float:
        beyond = max(0.0, abs(hand + turn) - WRIST)
        return abs(turn) + 10 * beyond + 1.6 * np.cos(yaw + turn)

    return turn_z(yaw + min(turns, key=cost))[:3, :3]
