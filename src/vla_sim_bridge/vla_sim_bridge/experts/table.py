"""Expert for Table_L: does what the scene's words ask for."""

from __future__ import annotations

import numpy as np

from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.experts.motion import close_on, free_grip, square_grip, towards
from vla_sim_bridge.experts.stack import OVER_TOWER, grip_of, stack_expert
from vla_sim_bridge.tasks.table.rules import done, height, there
from vla_sim_bridge.tasks.table.things import EDGES, HALF, TOP

LIFTED = 0.12  # m above the table
CARRIED = 0.09  # m, of the lower side above the table: over all that stands there
AT_EDGE = 0.31  # m from the middle
ASIDE = 0.085  # m between the middles of two that are put side by side
REACH_X, REACH_Y = (-0.22, 0.16), (-0.24, 0.24)  # m, where something is put beside another


def table_expert(sim: Simulation) -> np.ndarray:
    """The SI end-effector delta [7] towards what is asked."""
    act = sim.scene.words["act"]
    others = [n for n in there(sim) if n != sim.scene.roles["moved"]]
    if act == "stack":
        halves = [HALF[sim.scene.roles[role]] for role in ("moved", "base")]
        return stack_expert(sim, "moved", "base", sum(halves), avoid=tuple(others))
    if act == "lift":
        return _lift(sim, others)
    if act == "edge":
        side = EDGES[sim.scene.words["edge"]]
        x = sim.position("moved")[0]
        return _put(sim, others, np.array([np.clip(x, -0.12, 0.05), side * AT_EDGE]))
    return _put(sim, others, _beside(sim, others))


def _grasp(sim: Simulation, eef: np.ndarray, others: list[str]) -> np.ndarray:
    """An action towards closing the fingers on what is moved, clear of the others."""
    block = sim.pose("moved")
    grasp = grip_of(eef, block)
    grasp[:3, :3] = free_grip(eef, block, np.array([sim.position(n)[:2] for n in others]))
    return close_on(sim, eef, grasp, OVER_TOWER, OVER_TOWER)


def _lift(sim: Simulation, others: list[str]) -> np.ndarray:
    eef = sim.eef_pose()
    if not sim.holds("moved"):
        return _grasp(sim, eef, others)
    goal = eef.copy()
    goal[:3, :3] = square_grip(eef, eef)
    goal[2, 3] += max(0.0, LIFTED - height(sim, "moved"))
    return towards(sim, eef, goal, gripper=0.0)


def _put(sim: Simulation, others: list[str], place: np.ndarray) -> np.ndarray:
    """Carries what is moved over all others to a place [2] on the table, and lets go."""
    eef, at, low = sim.eef_pose(), sim.position("moved"), height(sim, "moved")
    goal = eef.copy()
    goal[:3, :3] = square_grip(eef, eef)
    if not sim.holds("moved"):
        if done(sim):  # released: draw back
            goal[2, 3] = max(eef[2, 3], TOP + 0.15)
            return towards(sim, eef, goal, gripper=1.0)
        return _grasp(sim, eef, others)
    aside = place - at[:2]
    off = float(np.linalg.norm(aside))
    if off < 0.012 or (off < 0.025 and low < CARRIED - 0.03):
        if low < 0.005:
            return towards(sim, eef, eef, gripper=1.0)
        goal[:2, 3] += aside
        goal[2, 3] -= low + 0.002
    else:
        goal[2, 3] += CARRIED - low
        if low > CARRIED - 0.03:
            goal[:2, 3] += aside
    return towards(sim, eef, goal, gripper=0.0)


def _beside(sim: Simulation, others: list[str]) -> np.ndarray:
    """The place [2] around the base that has most room, among those within reach."""
    base = sim.position("base")[:2]
    rest = [sim.position(n)[:2] for n in others if n != sim.scene.roles["base"]]
    best, most = base, -np.inf
    for angle in np.arange(8) * np.pi / 4:
        place = base + ASIDE * np.array([np.cos(angle), np.sin(angle)])
        low, high = np.array([REACH_X, REACH_Y]).T
        room = min([float(np.linalg.norm(place - at)) for at in rest], default=1.0)
        room = min(room, 0.15) - 10 * max(0.0, (low - place).max(), (place - high).max())
        if room > most:
            best, most = place, room
    return best
