"""A task of an installed `robocasa` package as a `World`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vla_inference.control.commands import check_steps
from vla_inference.episodes.robocasa import robocasa_spec, to_robocasa
from vla_inference.episodes.robosuite import CONTROL_FREQ
from vla_inference.errors import VlaError
from vla_inference.inputs.robot_state import QuaternionSign
from vla_inference.policies.action_specs import in_si
from vla_inference.types import ActionChunk, ActionPart
from vla_sim_bridge.envs.base import StepResult
from vla_sim_bridge.envs.chunk_to_actions import sim_actions
from vla_sim_bridge.envs.other_python.process import SLOW
from vla_sim_bridge.envs.other_python.world import OtherWorld
from vla_sim_bridge.envs.robocasa_package.environment import start
from vla_sim_bridge.tasks import Language, Task
from vla_sim_bridge.tasks.robocasa_package import split_name

# Names that policies of a fixed arm ask for, and the package's
VIEWS = {"agentview": "robot0_agentview_left", "wrist": "robot0_eye_in_hand"}
ARM = slice(0, 7)
# Kind and SI units of the other parts -> where their numbers stand in an action
PLACES = {
    ("base_twist", ("m/s", "m/s", "rad/s")): slice(7, 10),
    ("joint_delta", ("m",)): slice(10, 11),
}


class RobocasaWorld(OtherWorld):
    """A new kitchen in every episode. Actions are those of `robocasa_spec` [11], SI.

    `step` also takes an arm's seven alone: base and torso then stay. `state` is as in the
    package's datasets.
    """

    def __init__(
        self,
        task: Task,
        cameras: Sequence[str] = ("agentview",),
        width: int = 256,
        height: int = 256,
        language: Language = "train",
    ):
        process = start()
        super().__init__(task, cameras, width, height, language, process)
        self.spec = robocasa_spec()
        self.kitchen: dict[str, int] = {}  # layout and style, by number
        try:
            process.check_registered(task.env)
            split, env = split_name(task.name)
            asked: dict[str, Any] = {"env": env, "split": split, "control_freq": CONTROL_FREQ}
            horizon = process.ask("make", timeout=SLOW, **asked)[0]["horizon"]
            self.task = replace(task, horizon=horizon or task.horizon)
        except BaseException:
            self.close()
            raise

    def reset(self, rng: np.random.Generator) -> None:
        """Starts an episode: kitchen, objects and sentence follow from `rng`."""
        seed = int(rng.integers(2**32))
        self._sign = QuaternionSign()
        header, found = self._process.ask("reset", timeout=SLOW, seed=seed)
        self._take(header, found)
        fovy = header["fovy"]
        self._use_cameras(
            fovy | {name: fovy[view] for name, view in VIEWS.items() if view in fovy}
        )
        self.instruction = header["lang"]
        self.kitchen = {name: header[f"{name}_id"] for name in ("layout", "style")}
        self.gripper = 1.0

    def step(self, action: np.ndarray) -> StepResult:
        """Hold an SI action [11], or an arm's [7], for one control period (0.05 s)."""
        action = np.asarray(action, np.float64)
        if action.shape not in ((7,), (11,)) or not np.isfinite(action).all():
            raise VlaError(f"action {action} is not 7 or 11 finite numbers", "nothing was moved")
        self.gripper = float(action[6] > 0.5)
        full = np.zeros(len(self.spec))
        full[: len(action)] = action
        self._take(*self._process.ask("step", {"action": to_robocasa(full)}))
        return StepResult(self._success, float(self._success))

    def actions(self, chunk: ActionChunk) -> np.ndarray:
        """float64 [T, 11]; of an arm's chunk [T, 7]."""
        parts = chunk.spec.parts
        arm = tuple(p for p in parts if p.kind in ("eef_delta", "gripper"))
        if arm == parts:
            return sim_actions(chunk)
        chunk = in_si(chunk)
        check_steps(chunk)
        given = chunk.spec.split(np.asarray(chunk.actions, np.float64))
        full = np.zeros((len(chunk), len(self.spec)))
        full[:, 6] = self.gripper
        if arm:
            hand = np.concatenate([given[p.name] for p in arm], axis=1)
            spec = replace(chunk.spec, parts=arm)
            full[:, ARM] = sim_actions(replace(chunk, actions=hand, spec=spec))
        for part in parts:
            if part not in arm:
                full[:, _place(part)] = given[part.name]
        return full

    def state(self) -> np.ndarray:
        """float32 [16]: base m and quaternion xyzw, hand in its axes likewise, fingers m."""
        return self._now["state"].astype(np.float32)

    def still(self) -> np.ndarray:
        """The action of no motion; the gripper stays as it is."""
        return np.concatenate([super().still(), np.zeros(len(self.spec) - 7)])

    def render(self, camera: str, width: int | None = None, height: int | None = None):
        """uint8 [H, W, 3] RGB, upright. `agentview` is the left one, `wrist` the hand's."""
        return super().render(VIEWS.get(camera, camera), width, height)


def _place(part: ActionPart) -> slice:
    units = tuple(dim.unit for dim in part.dims)
    if (part.kind, units) not in PLACES:
        raise VlaError(
            f"the chunk's {part.name} ({part.kind}, {', '.join(units)}) cannot be executed",
            "RoboCasa's robot has a hand, a gripper, a base (m/s, m/s, rad/s) and a torso (m)",
        )
    return PLACES[part.kind, units]
