"""A world of robosuite 1.4 in another Python: motion, poses and images over its pipe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_inference.episodes.robosuite import CONTROL_FREQ, to_robosuite
from vla_inference.errors import VlaError
from vla_inference.inputs.robot_state import QuaternionSign, axis_angle
from vla_inference.types import ActionSpec, eef_delta_spec
from vla_sim_bridge.envs.base import StepResult, WorldBase
from vla_sim_bridge.envs.other_python.process import OtherPython
from vla_sim_bridge.tasks import Language, Task


class OtherWorld(WorldBase):
    """A world in the other Python. Success is the environment's own rule, at each moment.

    Frames and units as in `Simulation`. robosuite 1.4's OSC_POSE scales actions as 1.5's does
    (0.05 m, 0.5 rad, gripper -1 open) but takes deltas in the axes of the world.
    """

    def __init__(
        self,
        task: Task,
        cameras: Sequence[str],
        width: int,
        height: int,
        language: Language,
        process: OtherPython,
    ):
        self.task, self.language = task, language
        self.cameras, self.width, self.height = tuple(cameras), width, height
        self.spec: ActionSpec = eef_delta_spec("rotvec", "base", 1.0 / CONTROL_FREQ)
        self.instruction, self.gripper = "", 1.0
        self._sign = QuaternionSign()
        self._process = process
        self._fovy: dict[str, float] = {}
        about = process.about
        self.versions: dict[str, str] = {n: about[n] for n in ("robosuite", "mujoco")}
        self.versions[f"{process.package}_python"] = f"{process.python} ({about['python']})"

    # -- an episode ---------------------------------------------------------------------------

    def step(self, action: np.ndarray) -> StepResult:
        """Hold an SI end-effector delta [7] for one control period (0.05 s)."""
        action = self._take_action(action)
        turn = self._now["base_rotation"]
        turned = np.concatenate([turn @ action[:3], turn @ action[3:6], action[6:]])
        self._take(*self._process.ask("step", {"action": to_robosuite(turned)}))
        return StepResult(self._success, float(self._success))

    def succeeded(self) -> bool:
        return self._success

    # -- where things are ---------------------------------------------------------------------

    def eef_pose(self) -> np.ndarray:
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = self._now["eef_rotation"], self._now["eef_position"]
        return pose

    def base_position(self) -> np.ndarray:
        """[3] m, where the arm is mounted."""
        return self._now["base_position"].copy()

    def state(self) -> np.ndarray:
        """float32 [8]: end-effector position m, axis angle rad, both fingers' position m."""
        rotation = axis_angle(self._sign.of_matrix(self._now["eef_rotation"]))
        parts = [self._now["eef_position"], rotation, self._now["fingers"]]
        return np.concatenate(parts).astype(np.float32)

    def get_mujoco_state(self) -> np.ndarray:
        """float64: time, positions, velocities (robomimic's `states`)."""
        return self._process.ask("state")[1]["state"]

    def set_mujoco_state(self, state: np.ndarray) -> None:
        """Sets a recorded state of the same model."""
        state = np.asarray(state, np.float64)
        self._sign = QuaternionSign()
        self._take(*self._process.ask("set_state", {"state": state}))

    # -- images -----------------------------------------------------------------------------

    def render(self, camera: str, width: int | None = None, height: int | None = None):
        """uint8 [H, W, 3] RGB, upright, by robosuite's own renderer."""
        self._check_camera(camera)
        width, height = width or self.width, height or self.height
        answer = self._process.ask("render", camera=camera, width=width, height=height)
        image = answer[1]["image"]
        if image.shape != (height, width, 3):
            raise VlaError(f"{camera} gave an image of shape {image.shape}", None)
        return image

    def camera_matrix(self, camera: str) -> np.ndarray:
        """The 3 x 3 pinhole matrix of a camera, in pixels."""
        f = self.height / 2 / np.tan(np.deg2rad(self._fovy[camera]) / 2)
        return np.array([[f, 0, self.width / 2], [0, f, self.height / 2], [0, 0, 1]])

    def close(self) -> None:
        self._process.close()

    def _use_cameras(self, fovy: dict[str, float]) -> None:
        """fovy: of every camera of a world that was made, degrees."""
        self._fovy = fovy
        for name in self.cameras:
            self._check_camera(name)

    def _check_camera(self, name: str) -> None:
        if name not in self._fovy:
            raise VlaError(f"there is no camera {name!r}", f"cameras: {', '.join(self._fovy)}")

    def _take(self, header: dict, arrays: dict[str, np.ndarray]) -> None:
        self._now, self._success = arrays, bool(header["success"])
