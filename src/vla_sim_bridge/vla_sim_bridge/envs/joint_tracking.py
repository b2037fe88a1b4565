"""Moves robosuite's arms by joint references, as a robot's own drives do.

The law of each joint, in each substep of physics, is that of robosuite's operational space
controller, in joint space: M (kp (wanted - measured) + kd (wanted speed - speed)) plus gravity,
with kp 150 / s^2 and critical damping. So a joint target is approached as the same target pose
would be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

STIFFNESS = 150.0  # 1/s^2, robosuite's for its Panda (default_panda.json)
DAMPING = 2 * STIFFNESS**0.5  # 1/s, critical

# (positions [n] rad, velocities [n] rad/s) wanted this long (s) after the period has begun;
# without positions: the velocities alone
Reference = Callable[[float], "tuple[np.ndarray | None, np.ndarray]"]


def held(positions: np.ndarray) -> Reference:
    """Standing still at these positions [n] rad."""
    still = np.zeros(len(positions))
    return lambda _: (positions, still)


class JointTracking:
    """The arms of a robosuite environment, each by its own reference.

    env: just reset; robosuite renews its controllers with each reset, so make this again then.
    """

    def __init__(self, env):
        import mujoco  # not before `robosuite_env` has said how it is to draw

        self._mujoco, self._env = mujoco, env
        self._model, self._data = env.sim.model._model, env.sim.data._data
        self._substeps = int(env.control_timestep / env.model_timestep)
        self._mass = np.zeros((self._model.nv, self._model.nv))
        self._arms = [_ArmIndexes(robot) for robot in env.robots]

    def positions(self, arm: int = 0) -> np.ndarray:
        """[n] rad"""
        return self._data.qpos[self._arms[arm].q].copy()

    def velocities(self, arm: int = 0) -> np.ndarray:
        """[n] rad/s"""
        return self._data.qvel[self._arms[arm].v].copy()

    def step(self, references: Sequence[Reference], grippers: Sequence[float]) -> None:
        """One control period. grippers: 1 open, 0 closed, of each arm."""
        env, model, data, mujoco = self._env, self._model, self._data, self._mujoco
        action = np.concatenate(
            [arm.action(g) for arm, g in zip(self._arms, grippers, strict=True)]
        )
        env.timestep += 1
        for i in range(self._substeps):
            mujoco.mj_step1(model, data)
            if i == 0:  # robosuite's own: the grippers, and its bookkeeping
                env._pre_action(action, True)
            self._apply(references, (i + 1) * env.model_timestep)
            mujoco.mj_step2(model, data)
        env.cur_time += env.control_timestep
        env._post_action(action)

    def _apply(self, references: Sequence[Reference], time: float) -> None:
        """Sets the arms' torques."""
        model, data = self._model, self._data
        self._mujoco.mj_fullM(model, self._mass, data.qM)
        for arm, reference in zip(self._arms, references, strict=True):
            position, velocity = reference(time)
            wanted = DAMPING * (velocity - data.qvel[arm.v])
            if position is not None:
                wanted += STIFFNESS * (position - data.qpos[arm.q])
            torques = self._mass[np.ix_(arm.v, arm.v)] @ wanted + data.qfrc_bias[arm.v]
            low, high = model.actuator_ctrlrange[arm.actuators].T
            data.ctrl[arm.actuators] = np.clip(torques, low, high)


class _ArmIndexes:
    """Where a robot's only arm stands in MuJoCo's arrays."""

    def __init__(self, robot):
        controller = robot.part_controllers["right"]
        self.q = np.array(controller.qpos_index)
        self.v = np.array(controller.qvel_index)
        self.actuators = np.array(robot._ref_actuators_indexes_dict["right"])
        self._numbers = robot.action_dim

    def action(self, gripper: float) -> np.ndarray:
        """robosuite's: no motion of the arm, the gripper last, -1 open and 1 closed."""
        action = np.zeros(self._numbers)
        action[-1] = 1 - 2 * gripper
        return action
