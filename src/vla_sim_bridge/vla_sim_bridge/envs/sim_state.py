"""The state of a simulated world: object and gripper poses for rules and demonstrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from vla_inference.errors import VlaError
from vla_inference.inputs.robot_state import QuaternionSign, axis_angle
from vla_sim_bridge.envs.base import WorldBase
from vla_sim_bridge.tasks import Scene, Task


class SimState(WorldBase):
    """Reads and sets the state of a robosuite environment through MuJoCo's arrays.

    Poses are 4 x 4 matrices in the world frame, metres. `eef_pose` is the gripper's grip site, the
    frame that the controller moves.
    """

    def __init__(self, task: Task, env):
        self.task, self._env = task, env
        self.model, self.data = env.sim.model._model, env.sim.data._data
        self._contact_geoms: dict[int, frozenset[int]] = {}
        self._bodies = {n: self.model.body(b).id for n, b in task.objects.items()}
        robot = env.robots[0]
        self._site = robot.eef_site_id["right"]
        self._fingers = robot._ref_gripper_joint_pos_indexes["right"]
        pads = robot.gripper["right"].important_geoms
        self._pads = [
            {self.model.geom(n).id for n in pads[f"{side}_fingerpad"]}
            for side in ("left", "right")
        ]
        self._fixtures = {
            n: (self.model.body(n).pos.copy(), self.model.body(n).quat.copy())
            for n in task.fixtures
        }
        self.scene = Scene()
        self._sign = QuaternionSign()

    # -- what a demonstration is made of ------------------------------------------------------

    def eef_pose(self) -> np.ndarray:
        pose = np.eye(4)
        pose[:3, :3] = self.data.site_xmat[self._site].reshape(3, 3)
        pose[:3, 3] = self.data.site_xpos[self._site]
        return pose

    def base_position(self) -> np.ndarray:
        """[3] m, where the arm is mounted."""
        return self.data.body("robot0_base").xpos.copy()

    def eef_velocity(self) -> np.ndarray:
        """[3] m/s, world axes."""
        import mujoco

        velocity = np.zeros(6)
        site = mujoco.mjtObj.mjOBJ_SITE
        mujoco.mj_objectVelocity(self.model, self.data, site, self._site, velocity, 0)
        return velocity[3:]

    def object_poses(self) -> dict[str, np.ndarray]:
        """Pose of every object by name, and by role for objects that have one."""
        names = [*self._bodies, *self.scene.roles]
        return {name: self.pose(name) for name in names}

    def signals(self) -> dict[str, bool]:
        """The subtasks' termination signals at this moment."""
        asked = ((s.signal, s.until) for s in self.task.subtasks if s.signal)
        return {name: bool(until(self)) for name, until in asked if until is not None}

    # -- what rules ask (name: an object's, or a role's) ----------------------------------------

    def body(self, name: str) -> int:
        return self._bodies[self.scene.roles.get(name, name)]

    def pose(self, name: str) -> np.ndarray:
        body, pose = self.body(name), np.eye(4)
        pose[:3, :3] = self.data.xmat[body].reshape(3, 3)
        pose[:3, 3] = self.data.xpos[body]
        return pose

    def position(self, name: str) -> np.ndarray:
        return self.data.xpos[self.body(name)]

    def speed(self, name: str) -> float:
        """m/s"""
        return float(np.linalg.norm(self.data.cvel[self.body(name)][3:]))

    def holds(self, name: str) -> bool:
        """Whether both fingers touch it."""
        touched = self._touched(self._geoms(name))
        return not any(touched.isdisjoint(pad) for pad in self._pads)

    def touching(self, one: str, other: str) -> bool:
        return not self._touched(self._geoms(one)).isdisjoint(self._geoms(other))

    def _touched(self, geoms: frozenset[int]) -> set[int]:
        """Geoms in contact with any of these (faster than robosuite's look-up by name)."""
        pairs = self.data.contact.geom.tolist()
        return {b for a, b in pairs if a in geoms} | {a for a, b in pairs if b in geoms}

    def joint(self, name: str) -> float:
        """Position of a hinge or slide, rad or m."""
        return float(self.data.joint(name).qpos[0])

    def _geoms(self, name: str) -> frozenset[int]:
        """The named geoms, of a body and everything fixed to it, that can touch anything."""
        body = self.body(name)
        if body not in self._contact_geoms:
            root = self.model.body_weldid[body]
            self._contact_geoms[body] = frozenset(
                i
                for i in range(self.model.ngeom)
                if self.model.body_weldid[self.model.geom_bodyid[i]] == root
                and self.model.geom_contype[i]
                and self.model.geom(i).name
            )
        return self._contact_geoms[body]

    def fingers(self) -> float:
        """Mean distance of the fingers from the middle in m, as in `state`."""
        return float(np.abs(self.data.qpos[self._fingers].astype(np.float32)).mean())

    def state(self) -> np.ndarray:
        """float32 [8]: end-effector position m, axis angle rad, both fingers' position m.

        The axis angle goes on beyond pi, continuous within an episode (`axis_angle`).
        """
        pose, fingers = self.eef_pose(), self.data.qpos[self._fingers]
        rotation = axis_angle(self._sign.of_matrix(pose[:3, :3]))
        return np.concatenate([pose[:3, 3], rotation, fingers]).astype(np.float32)

    def robot_state(self) -> dict[str, np.ndarray]:
        """The robot's state under robosuite's names: quaternions xyzw, rad, m, 1/s.
        `robot0_state` is `state`.

        robot0_eef_pos and _quat_site are the grip site's, robot0_eef_quat is the hand body's.
        """
        from scipy.spatial.transform import Rotation

        robot, pose = self._env.robots[0], self.eef_pose()
        hand = self.data.body(robot.robot_model.eef_name["right"]).xquat
        return {
            "robot0_state": self.state(),
            "robot0_eef_pos": pose[:3, 3].astype(np.float32),
            "robot0_eef_quat": np.roll(hand, -1),
            "robot0_eef_quat_site": Rotation.from_matrix(pose[:3, :3]).as_quat(),
            "robot0_joint_pos": self.data.qpos[robot._ref_joint_pos_indexes].copy(),
            "robot0_joint_vel": self.data.qvel[robot._ref_joint_vel_indexes].copy(),
            "robot0_gripper_qpos": self.data.qpos[self._fingers].astype(np.float32),
        }

    def free_objects(self) -> list[str]:
        """Names of the objects with free joints."""
        return [n for n, body in self._bodies.items() if self.model.body_dofnum[body] == 6]

    def push(self, name: str, velocity: np.ndarray) -> None:
        """Adds a sideways velocity [2] m/s to a free object, like a short push."""
        start = self.model.body_dofadr[self.body(name)]
        self.data.qvel[start : start + 2] += velocity

    def place(self, name: str, position: Sequence[float], yaw: float) -> None:
        """Puts a free object somewhere, upright and at rest: m, rad."""
        import mujoco

        joint = self.model.body_jntadr[self._bodies[name]]
        at, moves = self.model.jnt_qposadr[joint], self.model.jnt_dofadr[joint]
        turn = np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)
        self.data.qpos[at : at + 7] = (*position, *turn)
        self.data.qvel[moves : moves + 6] = 0
        mujoco.mj_forward(self.model, self.data)

    def get_mujoco_state(self) -> np.ndarray:
        """float64 [1 + nq + nv]: time, positions, velocities (robomimic's `states`)."""
        return np.concatenate([[self.data.time], self.data.qpos, self.data.qvel])

    def scene_record(self) -> dict:
        """The part of the scene that is not in the state, as JSON values: see `set_scene`."""
        fixtures = {
            n: [*self.model.body(n).pos.tolist(), *self.model.body(n).quat.tolist()]
            for n in self._fixtures
        }
        record = {**asdict(self.scene), "fixtures": fixtures}
        return {name: value for name, value in record.items() if value}

    def set_scene(self, record: Mapping) -> None:
        """Restores colours, roles and fixed bodies from `scene_record`."""
        self.scene = Scene(*(record.get(name, {}) for name in ("colours", "roles", "words")))
        for name, pose in record.get("fixtures", {}).items():
            body = self.model.body(name)
            body.pos, body.quat = pose[:3], pose[3:]
        self._paint()

    def set_mujoco_state(self, state: np.ndarray) -> None:
        """Sets a recorded state, for reading poses; computes no motion."""
        nq, nv = self.model.nq, self.model.nv
        if len(state) != 1 + nq + nv:
            raise VlaError(
                f"the state has {len(state)} numbers, {self.task.name} has {1 + nq + nv}",
                "the demonstration belongs to another task or robosuite version",
            )
        import mujoco

        self._sign = QuaternionSign()
        self.data.time = state[0]
        self.data.qpos[:] = state[1 : 1 + nq]
        self.data.qvel[:] = state[1 + nq :]
        mujoco.mj_forward(self.model, self.data)

    def _paint(self) -> None:
        from vla_sim_bridge.tasks.stack import PALETTE

        for name, colour in self.scene.colours.items():
            prefix = self.task.colour_geoms[name]
            for i in range(self.model.ngeom):
                geom = self.model.geom(i)
                if geom.name.startswith(prefix) and geom.group[0] == 1:
                    geom.matid = -1  # a material would hide the colour
                    geom.rgba = [*(c / 255 for c in PALETTE[colour]), 1.0]
