"""Pictures of a simulated world."""

from __future__ import annotations

import numpy as np


class Pictures:
    """Of a MuJoCo model; width and height in pixels where a call names none."""

    def __init__(self, model, data, width: int, height: int):
        self.model, self.data, self.width, self.height = model, data, width, height
        self._renderers: dict[tuple[int, int], object] = {}

    def render(self, camera: str, width: int | None = None, height: int | None = None):
        """uint8 [H, W, 3] RGB, upright.

        An own renderer rather than robosuite's: collision geoms and reflections left out, which
        more than doubles the rate on a CPU; the same one makes training data and evaluations.
        """
        import mujoco

        size = (height or self.height, width or self.width)
        renderer = self._renderers.get(size)
        if renderer is None:
            self.model.vis.global_.offheight = max(size[0], self.model.vis.global_.offheight)
            self.model.vis.global_.offwidth = max(size[1], self.model.vis.global_.offwidth)
            self.model.vis.quality.offsamples = 0
            renderer = mujoco.Renderer(self.model, *size)
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
            self._renderers[size] = renderer
            self._visible = mujoco.MjvOption()
            self._visible.geomgroup[0] = 0
            self._visible.sitegroup[:] = 0
        renderer.update_scene(self.data, camera, self._visible)
        return renderer.render()

    def camera_matrix(self, camera: str) -> np.ndarray:
        """The 3 x 3 pinhole matrix of a camera, in pixels."""
        fovy = np.deg2rad(self.model.camera(camera).fovy[0])
        f = self.height / 2 / np.tan(fovy / 2)
        return np.array([[f, 0, self.width / 2], [0, f, self.height / 2], [0, 0, 1]])

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
