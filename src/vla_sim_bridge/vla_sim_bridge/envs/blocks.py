"""Additional robosuite environments with blocks; importing this module registers them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from robosuite.environments.manipulation.manipulation_env import ManipulationEnv
from robosuite.models.arenas import TableArena
from robosuite.models.objects import BoxObject, CylinderObject
from robosuite.models.tasks import ManipulationTask
from robosuite.utils.mjcf_utils import CustomMaterial

TABLE = (0.8, 0.8, 0.05)  # m, as in robosuite's Stack
TABLE_TOP = np.array((0.0, 0.0, 0.8))
Half: TypeAlias = "float | tuple[float, float]"


class Blocks(ManipulationEnv):
    """Cubes on robosuite's table, like its `Stack`, with any number, sizes and textures.

    blocks: name -> (half edge in m, robosuite texture); for a cylinder its radius and half its
    height. They stand where the placement initializer says. Success is the task's business: the
    environment's own is never true.
    """

    def __init__(
        self,
        robots,
        blocks: Mapping[str, tuple[Half, str]],
        placement_initializer,
        use_object_obs=True,
        **kwargs,
    ):
        self.blocks = blocks
        self.placement_initializer = placement_initializer
        self.use_object_obs = use_object_obs
        super().__init__(robots=robots, **kwargs)

    def reward(self, action=None) -> float:
        return 0.0

    def _check_success(self) -> bool:
        return False

    def _load_model(self) -> None:
        super()._load_model()
        robot = self.robots[0].robot_model
        robot.set_base_xpos(robot.base_xpos_offset["table"](TABLE[0]))
        arena = TableArena(
            table_full_size=TABLE, table_friction=(1.0, 5e-3, 1e-4), table_offset=TABLE_TOP
        )
        arena.set_origin([0, 0, 0])
        self.cubes = [self._cube(name, *spec) for name, spec in self.blocks.items()]
        self.placement_initializer.reset()
        self.placement_initializer.add_objects(self.cubes)
        self.model = ManipulationTask(
            mujoco_arena=arena,
            mujoco_robots=[r.robot_model for r in self.robots],
            mujoco_objects=self.cubes,
        )

    @staticmethod
    def _cube(name: str, half: Half, texture: str) -> BoxObject | CylinderObject:
        material = CustomMaterial(
            texture=texture,
            tex_name=f"{name}_tex",
            mat_name=f"{name}_mat",
            tex_attrib={"type": "cube"},
            mat_attrib={"texrepeat": "1 1", "specular": "0.4", "shininess": "0.1"},
        )
        if isinstance(half, tuple):
            return CylinderObject(name=name, size=list(half), material=material)
        size = [half] * 3
        return BoxObject(name=name, size_min=size, size_max=size, material=material)

    def _reset_internal(self) -> None:
        super()._reset_internal()
        for position, quaternion, cube in self.placement_initializer.sample().values():
            pose = np.concatenate([position, quaternion])
            self.sim.data.set_joint_qpos(cube.joints[0], pose)
