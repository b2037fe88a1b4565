"""Expert for stacking, from the simulator's own poses.

It is a function of the world alone (no hidden phase), so it recovers from whatever noise or a
failed grasp did, and what it shows can be learned from images.
"""

from __future__ import annotations

import numpy as np

from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.experts.motion import close_on, free_grip, square_grip, towards
from vla_sim_bridge.tasks.rules import on_top

HOVER = 0.07  # m above the small block before the descent
OVER_TOWER = 0.10  # m above a block, where fingers clear a tower of two
LIFTED = 0.88  # m, height of a lifted cube
CLEAR = 0.035  # m between the lower side of the carried block and the top of the big one


def stack_expert(
    sim: Simulation,
    moved: str = "cubeA",
    base: str = "cubeB",
    stacked: float = 0.045,
    avoid: tuple[str, ...] = (),
) -> np.ndarray:
    """The SI end-effector delta [7] towards placing `moved` on `base`.

    stacked: m between the centres of the two when one lies on the other. avoid: objects that the
    open fingers should not come down on.
    """
    eef, objects = sim.eef_pose(), sim.object_poses()
    block, target = objects[moved], objects[base]
    to_base = target[:3, 3] - block[:3, 3]
    aside, above = np.linalg.norm(to_base[:2]), -to_base[2]
    fingers = sim.fingers()

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

    grasp = grip_of(eef, block)
    if avoid:
        others = np.array([sim.position(name)[:2] for name in avoid])
        grasp[:3, :3] = free_grip(eef, block, others)
        return close_on(sim, eef, grasp, OVER_TOWER, OVER_TOWER)  # turn above whatever stands
    return close_on(sim, eef, grasp, HOVER)


def stack_three_expert(sim: Simulation) -> np.ndarray:
    """cubeA on cubeB, then cubeC on cubeA."""
    eef = sim.eef_pose()[:3, 3]
    low, high = sim.position("cubeA"), sim.position("cubeC")
    lies = on_top("cubeA", "cubeB", 0.045)(sim)
    # The hand leaves cubeA upwards before it sets out for cubeC.
    above = np.linalg.norm(eef[:2] - low[:2]) < 0.03 and eef[2] - low[2] < 0.06
    if lies and (np.linalg.norm(eef - high) < 0.05 or not above):
        return stack_expert(sim, "cubeC", "cubeA", stacked=0.04, avoid=("cubeA", "cubeB"))
    return stack_expert(sim, "cubeA", "cubeB", avoid=("cubeB", "cubeC"))


def lift_expert(sim: Simulation) -> np.ndarray:
    """Lifts the cube well above the table."""
    eef, cube = sim.eef_pose(), sim.pose("cube")
    if sim.holds("cube"):
        goal = eef.copy()
        goal[:3, :3] = square_grip(eef, eef)
        goal[2, 3] += max(0.0, LIFTED - cube[2, 3])
        return towards(sim, eef, goal, gripper=0.0)
    return close_on(sim, eef, grip_of(eef, cube), HOVER)


def grip_of(eef: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Height at which to close the fingers; lower, their tips would press on the table."""
    grasp = np.eye(4)
    grasp[:3, 3] = block[:3, 3] + [0, 0, 0.006]
    grasp[:3, :3] = square_grip(eef, block)
    return grasp
