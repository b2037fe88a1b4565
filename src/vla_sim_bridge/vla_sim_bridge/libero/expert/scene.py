"""Where things are in a LIBERO environment: poses, collision geometry, heights by rays."""

from __future__ import annotations

from collections.abc import Collection

import mujoco
import numpy as np

CORNERS = np.array(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, -1).T  # [8, 3]
SOLID = np.array([1, 0, 0, 0, 0, 0], np.uint8)  # collision geometry is group 0
DOWN = np.array([0.0, 0.0, -1.0])
SPACING = 0.01  # m, between rays: walls are thin
LAYERS = 40  # surfaces that a ray goes through, at most


class Scene:
    """Reads an environment of LIBERO (its inner one, a robosuite environment). m and world axes.

    Objects are named as in the task's BDDL file.
    """

    def __init__(self, env):
        self.env, self.robot, self.sim = env, env.robots[0], env.sim
        self._model, self._data = self.sim.model._model, self.sim.data._data
        self._root = self._model.body_rootid
        self.base = np.array(self.sim.data.get_body_xpos("robot0_base"))
        self._robot_bodies = self._family(self.sim.model.body_name2id("robot0_base"))
        self._corners: dict[str, np.ndarray] = {}

    def hand(self) -> np.ndarray:
        """[4, 4], pose of the grip site: z points out of the hand, the fingers move along x."""
        site, pose = self.robot.eef_site_id, np.eye(4)
        pose[:3, :3] = self._data.site_xmat[site].reshape(3, 3)
        pose[:3, 3] = self._data.site_xpos[site]
        return pose

    def opening(self) -> float:
        """Between the fingers' pads."""
        return float(np.abs(self._data.qpos[self.robot._ref_gripper_joint_pos_indexes]).sum())

    def is_object(self, name: str) -> bool:
        return name in self.env.obj_body_id

    def category(self, name: str) -> str:
        return self.env.get_object(name).category_name

    def pose(self, name: str) -> np.ndarray:
        """[4, 4], of an object's body."""
        body, pose = self.env.obj_body_id[name], np.eye(4)
        pose[:3, :3], pose[:3, 3] = self._data.xmat[body].reshape(3, 3), self._data.xpos[body]
        return pose

    def site(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Centre [3] and half size [3] of a region, which is a site in the model."""
        index = self.sim.model.site_name2id(name)
        return self._data.site_xpos[index].copy(), self._model.site_size[index].copy()

    def tilt(self, name: str) -> float:
        """Degrees between the vertical and the nearest axis of an object."""
        upright = np.abs(self.pose(name)[2, :3]).max()
        return float(np.degrees(np.arccos(min(1.0, upright))))

    def points(self, name: str) -> np.ndarray:
        """[N, 3], corners of an object's collision geometry."""
        pose = self.pose(name)
        if name not in self._corners:
            self._corners[name] = (self._geometry(name) - pose[:3, 3]) @ pose[:3, :3]
        return self._corners[name] @ pose[:3, :3].T + pose[:3, 3]

    def own_bodies(self, name: str) -> set[int]:
        return self._family(self.env.obj_body_id[name])

    def height(self, x: float, y: float, start: float, ignore: Collection[int] = ()) -> float:
        """Highest solid surface at x, y below `start`; robot and bodies `ignore` left out."""
        at, hit = np.array([x, y, start], float), np.array([-1], np.int32)
        for _ in range(LAYERS):
            way = mujoco.mj_ray(self._model, self._data, at, DOWN, SOLID, 1, -1, hit)
            if way < 0:
                break
            body = self._model.geom_bodyid[hit[0]]
            if body not in self._robot_bodies and body not in ignore:
                return float(at[2] - way)
            at[2] -= way + 1e-4
        return -np.inf

    def highest_between(
        self, one: np.ndarray, other: np.ndarray, width: float, ignore: Collection[int] = ()
    ) -> float:
        """Highest solid surface under a straight way, and within `width` beside it."""
        along = (other - one)[:2]
        aside = np.array([-along[1], along[0]]) / (np.linalg.norm(along) + 1e-9)
        start = max(one[2], other[2]) + 0.4
        way = np.linspace(one[:2], other[:2], 2 + int(np.linalg.norm(along) / SPACING))
        points = [p + side * aside for p in way for side in np.linspace(-width, width, 7)]
        return max(self.height(x, y, start, ignore) for x, y in points)

    def _family(self, body: int) -> set[int]:
        return set(np.flatnonzero(self._root == self._root[body]).tolist())

    def _geometry(self, name: str) -> np.ndarray:
        model, data, found = self._model, self._data, []
        bodies = self.own_bodies(name)
        for geom in range(model.ngeom):
            if model.geom_bodyid[geom] not in bodies or not model.geom_contype[geom]:
                continue
            corners = CORNERS * model.geom_size[geom]
            if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
                mesh = model.geom_dataid[geom]
                first = model.mesh_vertadr[mesh]
                corners = model.mesh_vert[first : first + model.mesh_vertnum[mesh]]
            found.append(corners @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom])
        return np.concatenate(found)
