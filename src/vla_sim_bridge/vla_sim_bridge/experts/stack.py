"""An expert that stacks by looking at the simulator's own poses: a source of demonstrations.

It is a function of the world alone (no hidden phase), so it recovers from whatever noise or a
failed grasp did, and what it shows can be learned from pictures.
"""

from __future__ import annotations

import numpy as np

from vla_sim_bridge.experts.motion import FINGER_OPEN, square_grip, towards
from vla_sim_bridge.poses import delta_between
from vla_sim_bridge.simulation import Simulation

HOVER = 0.07  # m above the small block before the descent
CLEAR = 0.035  # m between the lower side of the carried block and the top of the big one


def stack_expert(
    sim: Simulation, moved: str = "cubeA", base: str = "cubeB", stacked: float = 0.045
) -> np.ndarray:
    """The SI end-effector delta [7] that brings `moved` closer to lying on `base`.

    stacked: m between the centres of the two when one lies on the other.
    """
    eef, objects = sim.eef_pose(), sim.object_poses()
    block, target = objects[moved], objects[base]
    to_base = target[:3, 3] - block[:3, 3]
    aside, above = np.linalg.norm(to_base[:2]), -to_base[2]
    fingers = float(np.abs(sim.state()[6:8]).mean())

    upright = square_grip(eef, eef)
    on_top = aside < 0.03 and abs(above - stacked) < 0.006
    if sim.holds(moved):
        if on_top and aside < 0.014:
            return towards(sim, eef, eef, gripper=1.0)  # let go
        goal = eef.copy()
        goal[:3, :3] = upright
        height = stacked + CLEAR
        # Sideways only as far as the lift allows; down only once it is above the base.
        if aside < 0.011 or (aside < 0.02 and above < height - 0.01):
            goal[:3, 3] += [to_base[0], to_base[1], stacked - 0.004 - above]
        else:
            goal[2, 3] += height - above
            if above > height - 0.03 or aside > 0.12:
                goal[:2, 3] += to_base[:2]
        return towards(sim, eef, goal, gripper=0.0)
    if on_top:  # released: draw back
        goal = eef.copy()
        goal[2, 3] = block[2, 3] + (0.08 if fingers > 0.024 else 0.0)
        return towards(sim, eef, goal, gripper=1.0)

    grasp = np.eye(4)
    grasp[:3, 3] = block[:3, 3] + [0, 0, 0.006]  # lower, the fingertips would press on the table
    grasp[:3, :3] = square_grip(eef, block)
    error = delta_between(eef, grasp)
    off, turn = np.linalg.norm(error[:2]), abs(error[5])
    closing = fingers < FINGER_OPEN - 0.002
    if closing and off < 0.02 and abs(error[2]) < 0.02:
        return towards(sim, eef, grasp, gripper=0.0)
    # Along the fingers' travel the block centres itself; across it, a grip off centre would let
    # the block swing.
    across = abs(eef[:3, 1] @ error[:3])
    if across < 0.005 and off < 0.013 and abs(error[2]) < 0.007 and turn < 0.15:
        return towards(sim, eef, grasp, gripper=0.0)
    if off > 0.015 or turn > 0.25:
        # Stay above the block's top until the fingers fit around it; come down on the way.
        grasp[2, 3] += HOVER if off > 0.04 else 0.05
    return towards(sim, eef, grasp, gripper=1.0)
