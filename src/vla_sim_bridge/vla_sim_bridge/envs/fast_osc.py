"""A faster control step for robosuite 1.5.2, equal to its own bit by bit.

robosuite's Python runs in each of the 25 substeps of physics: it looks up names, rebuilds limits,
computes each Jacobian three times. Here the first substep is robosuite's own, with goal, gripper
and bookkeeping; the others repeat its law for the arm (operational space control, Khatib 1987) on
MuJoCo's arrays. What rounds is done as robosuite does it: the same operations in the same order,
by the same library, on the same memory layout.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

VARIABLE = "VLA_ROBOSUITE_CONTROL"  # set to 1: robosuite's own loop throughout
VERSION = "1.5.2"  # whose arithmetic this is


def control_step(env) -> Callable[[np.ndarray], object]:
    """The function that executes a robosuite action [7] for one control period: the fast one if
    it fits.

    env: just reset; robosuite recreates its controllers with each reset, so call this again then.
    """
    if os.environ.get(VARIABLE) == "1" or not fits(env):
        return env.step
    return ControlStep(env).step


def fits(env) -> bool:
    """Whether `ControlStep` can compute this environment and nothing of it is overridden."""
    import robosuite
    from robosuite.controllers.composite.composite_controller import CompositeController
    from robosuite.controllers.parts.arm.osc import OperationalSpaceController
    from robosuite.controllers.parts.gripper.simple_grip import SimpleGripController
    from robosuite.environments.base import MujocoEnv
    from robosuite.environments.robot_env import RobotEnv
    from robosuite.robots.fixed_base_robot import FixedBaseRobot

    kind = type(env)
    if (
        robosuite.__version__ != VERSION
        or kind.step is not MujocoEnv.step
        or kind._pre_action is not RobotEnv._pre_action
        or not env.lite_physics
        or not env.ignore_done
        or env._observables
        or env.viewer is not None
        or env.has_renderer
        or [(type(r), r.name) for r in env.robots] != [(FixedBaseRobot, "Panda")]
    ):
        return False
    robot = env.robots[0]
    composite = robot.composite_controller
    parts = composite.part_controllers
    if (
        type(composite) is not CompositeController
        or {n: type(p) for n, p in parts.items()}
        != {"right": OperationalSpaceController, "right_gripper": SimpleGripController}
        or not all(robot.enabled(name) for name in parts)
        or parts["right_gripper"].interpolator is not None
    ):
        return False
    arm, model = parts["right"], env.sim.model._model
    site = model.site(f"{arm.naming_prefix}{arm.part_name}_center")
    return (
        arm.lite_physics
        and arm.num_ref_sites == 1
        and arm.impedance_mode == "fixed"
        and arm.input_ref_frame == "base"
        and arm.uncoupling
        and arm.interpolator_pos is None
        and arm.interpolator_ori is None
        and all(map(_in_a_row, (arm.qpos_index, arm.qvel_index, _actuators(robot))))
        and model.body_weldid[site.bodyid[0]] == 0  # the base never moves
    )


class ControlStep:
    """Control steps of one episode; `env` must pass `fits`.

    What robosuite's controller keeps of the arm (`ref_pos` and the like) is the first substep's.
    """

    def __init__(self, env):
        import mujoco  # not before `robosuite_env` has said how it is to draw
        from robosuite.utils import control_utils

        self._mujoco, self._law = mujoco, control_utils
        self._env, self._robot = env, env.robots[0]
        self._arm = arm = self._robot.part_controllers["right"]
        self._substeps = int(env.control_timestep / env.model_timestep)
        self._model, self._data = model, data = env.sim.model._model, env.sim.data._data
        # MuJoCo's own memory: as long as the data lives, these are up to date
        self._site = model.site(arm.ref_name).id
        self._position = data.site_xpos[self._site]
        self._rotation = data.site_xmat[self._site].reshape(3, 3)
        joints, speeds = _span(arm.qpos_index), _span(arm.qvel_index)
        self._speeds, self._inertia = data.qvel, data.qM
        self._joint_position, self._joint_speed = data.qpos[joints], data.qvel[speeds]
        self._gravity = data.qfrc_bias[speeds]
        actuators = _span(_actuators(self._robot))
        self._control, self._limits = data.ctrl[actuators], model.actuator_ctrlrange[actuators]
        # refilled in every substep
        nv, dof = model.nv, len(arm.qvel_index)
        self._full_mass = np.zeros((nv, nv))
        self._arm_mass = self._full_mass[speeds, speeds]
        # robosuite's indexing leaves it in Fortran's order, which decides how products are summed
        self._mass = np.zeros((dof, dof), order="F")
        self._moves, self._turns = np.zeros((3, nv)), np.zeros((3, nv))
        self._arm_moves, self._arm_turns = self._moves[:, speeds], self._turns[:, speeds]
        self._jacobian = np.zeros((6, dof))
        self._error, self._velocity, self._wrench = np.zeros(6), np.zeros(6), np.zeros(6)

    def step(self, action: np.ndarray) -> None:
        """Like `env.step`, without observations."""
        env, arm, mujoco = self._env, self._arm, self._mujoco
        model, data = self._model, self._data
        env.timestep += 1
        mujoco.mj_step1(model, data)
        env._pre_action(action, True)
        mujoco.mj_step2(model, data)
        # the goal stands in the frame of the base, which does not move
        position = arm.origin_pos + np.dot(arm.origin_ori, arm.goal_pos)
        rotation = np.dot(arm.origin_ori, arm.goal_ori)
        low, high = self._limits.T.copy()
        for _ in range(self._substeps - 1):
            mujoco.mj_step1(model, data)
            torques = self._torques(position, rotation)
            # of the gripper's actuators robosuite would write what they have
            np.minimum(np.maximum(torques, low), high, out=self._control)
            mujoco.mj_step2(model, data)
        env.cur_time += env.control_timestep
        env._post_action(action)

    def _torques(self, position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        """Joint torques of the arm in Nm, as `OperationalSpaceController.run_controller`
        computes them."""
        arm, law, mujoco = self._arm, self._law, self._mujoco
        jacobian, mass = self._jacobian, self._mass
        error, velocity, wrench = self._error, self._velocity, self._wrench
        mujoco.mj_jacSite(self._model, self._data, self._moves, self._turns, self._site)
        mujoco.mj_fullM(self._model, self._full_mass, self._inertia)
        mass[:] = self._arm_mass
        jacobian[:3], jacobian[3:] = self._arm_moves, self._arm_turns
        # 3 rows at a time: a product with all 6 may be summed in another order
        np.dot(self._moves, self._speeds, out=velocity[:3])
        np.dot(self._turns, self._speeds, out=velocity[3:])
        np.subtract(position, self._position, out=error[:3])
        error[3:] = law.orientation_error(rotation, self._rotation)
        # robosuite takes the base's velocity off, which is 0
        wanted = error * arm.kp - velocity * arm.kd
        _, moving, turning, free = law.opspace_matrices(mass, jacobian, jacobian[:3], jacobian[3:])
        np.dot(moving, wanted[:3], out=wrench[:3])
        np.dot(turning, wanted[3:], out=wrench[3:])
        torques = np.dot(jacobian.T, wrench) + self._gravity
        torques += law.nullspace_torques(
            mass, free, arm.initial_joint, self._joint_position, self._joint_speed
        )
        return torques


def _actuators(robot) -> list[int]:
    return robot._ref_actuators_indexes_dict["right"]


def _in_a_row(indexes) -> bool:
    return list(indexes) == list(range(indexes[0], indexes[0] + len(indexes)))


def _span(indexes) -> slice:
    return slice(indexes[0], indexes[0] + len(indexes))
