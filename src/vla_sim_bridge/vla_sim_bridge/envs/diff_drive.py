"""A mobile base with two driven wheels in a small MuJoCo scene with a camera."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vla_sim_bridge.envs.renderer import Renderer, explained

WHEEL_RADIUS, WHEEL_SEPARATION = 0.1, 0.34  # m, as in diff_drive.xml


class DiffDrive:
    camera = "front"

    def __init__(self, width: int = 224, height: int = 224):
        with explained():
            import mujoco
        self._mujoco = mujoco
        path = Path(__file__).with_suffix(".xml")
        self.model = mujoco.MjModel.from_xml_string(path.read_text())
        self.data = mujoco.MjData(self.model)
        mujoco.mj_forward(self.model, self.data)
        self._images = Renderer(self.model, self.data, width, height)
        self.render, self.camera_matrix = self._images.render, self._images.camera_matrix

    def wheels(self) -> tuple[float, float]:
        """Angles of the left and the right wheel, rad, without end."""
        joint = self.data.joint
        return float(joint("left_wheel").qpos[0]), float(joint("right_wheel").qpos[0])

    def pose(self) -> tuple[float, float, float]:
        """Where the base really is: x, y (m) and heading (rad)."""
        body = self.data.body("base_link")
        turn = body.xmat.reshape(3, 3)
        return float(body.xpos[0]), float(body.xpos[1]), float(np.arctan2(turn[1, 0], turn[0, 0]))

    def step(self, left: float, right: float, period: float) -> None:
        """Turns the wheels at these velocities, rad/s, for a period, s."""
        self.data.ctrl[:] = left, right
        for _ in range(round(period / self.model.opt.timestep)):
            self._mujoco.mj_step(self.model, self.data)

    def close(self) -> None:
        self._images.close()
