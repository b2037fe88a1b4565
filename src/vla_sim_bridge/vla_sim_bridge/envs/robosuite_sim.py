"""A task running in robosuite, headless: reset by seed, step by end-effector delta, render.

Everything robosuite-specific (its action scale, its gripper sign, its upside-down images) stays
behind this class and the modules that it is made of.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_inference.episodes.robosuite import CONTROL_FREQ, to_robosuite
from vla_inference.errors import VlaError
from vla_inference.inputs.robot_state import QuaternionSign
from vla_inference.types import ActionSpec, eef_delta_spec
from vla_sim_bridge.envs.base import StepResult, episode_rng
from vla_sim_bridge.envs.fast_osc import control_step
from vla_sim_bridge.envs.joint_tracking import JointTracking, Reference
from vla_sim_bridge.envs.randomization import Randomize, Randomizer
from vla_sim_bridge.envs.renderer import Renderer
from vla_sim_bridge.envs.robosuite_env import ROBOT, make_env, silence
from vla_sim_bridge.envs.sim_state import SimState
from vla_sim_bridge.tasks import Language, Task, get_task

__all__ = ["ROBOT", "Simulation", "StepResult", "episode_rng"]


class Simulation(SimState):
    """One robot, one task, some cameras; instructions in the chosen language.

    Poses are 4 x 4 matrices in the world frame, metres.
    """

    def __init__(
        self,
        task: Task | str,
        cameras: Sequence[str] = ("agentview",),
        width: int = 224,
        height: int = 224,
        language: Language = "train",
        randomize: Randomize | None = None,
    ):
        self.task = get_task(task) if isinstance(task, str) else task
        if self.task.package:
            raise VlaError(
                f"{self.task.name} runs in the Python that has {self.task.package}",
                "it is for rollouts, not for generation or experts",
            )
        self.language = language
        self.cameras, self.width, self.height = tuple(cameras), width, height
        with silence():
            env = make_env(self.task)
        super().__init__(self.task, env)
        self.spec: ActionSpec = eef_delta_spec("rotvec", "base", 1.0 / CONTROL_FREQ)
        known = [self.model.camera(i).name for i in range(self.model.ncam)]
        for name in self.cameras:
            if name not in known:
                raise VlaError(f"there is no camera {name!r}", f"cameras: {', '.join(known)}")
        for name, (position, quaternion) in self.task.camera_poses.items():
            camera = self.model.camera(name)
            camera.pos, camera.quat = position, quaternion
        self._images = Renderer(self.model, self.data, width, height)
        self._randomizer = None
        if randomize and randomize.parts:
            joints = self._env.robots[0]._ref_joint_vel_indexes
            self._randomizer = Randomizer(
                self.model, randomize, self.cameras, self._bodies.values(), joints
            )
        self.randomized: dict = {}
        self.versions: dict[str, str] = {}
        self.rng = np.random.default_rng(0)
        self.instruction = ""
        self.gripper = 1.0
        self._control = self._env.step
        self._tracking = JointTracking(self._env)

    # -- an episode ---------------------------------------------------------------------------

    def reset(self, rng: np.random.Generator) -> None:
        """Starts an episode. Everything random in it is drawn from `rng`."""
        self.rng = rng
        if self._randomizer:  # a generator of its own: poses and sentences stay what they were
            self._looks = rng.spawn(1)[0]
            self.randomized = self._randomizer.episode(self._looks)
        self._sign = QuaternionSign()
        self._env.rng = rng
        sampler = self._env.placement_initializer
        for part in (sampler, *getattr(sampler, "samplers", {}).values()):
            part.rng = rng
        # The gripper's ramp and the controller's goal outlive a soft reset of robosuite; without
        # this an episode would depend on the one before it.
        gripper = self._env.robots[0].gripper["right"]
        gripper.current_action = np.zeros_like(gripper.current_action)
        self._env.reset()
        self._place_fixtures(rng)
        self.data.qacc_warmstart[:] = 0
        self._env.robots[0].composite_controller.reset()
        arrange = self.task.arrange
        self.scene = arrange(rng, self) if arrange else self.task.draw_scene(rng)
        self._paint()
        self.instruction = self.task.instruct(rng, self.scene, self.language)
        self.gripper = 1.0
        self._control = control_step(self._env)
        self._tracking = JointTracking(self._env)

    def step(self, action: np.ndarray) -> StepResult:
        """Holds an SI end-effector delta [7] for one control period (0.05 s)."""
        self._control(to_robosuite(self._take_action(action)))
        return self._after_step()

    def follow(self, reference: Reference, gripper: float) -> StepResult:
        """Moves the arm by joint references for one control period. gripper: 1 open, 0 closed."""
        self.gripper = float(gripper > 0.5)
        self._tracking.step([reference], [self.gripper])
        return self._after_step()

    def joint_positions(self) -> np.ndarray:
        """[7] rad, of the arm's joints."""
        return self._tracking.positions()

    def joint_velocities(self) -> np.ndarray:
        """[7] rad/s"""
        return self._tracking.velocities()

    def _after_step(self) -> StepResult:
        """What changes with time, and what the rules say."""
        if self.task.colours == "step":
            self.scene = self.task.draw_scene(self.rng)
            self._paint()
        if self.task.language == "step":
            self.instruction = self.task.instruct(self.rng, self.scene, self.language)
        if self._randomizer and self._randomizer.config.every == "frame":
            self._randomizer.frame(self._looks)
        success = self.succeeded()
        wrong = "" if success else self.wrong()
        return StepResult(success, float(success), wrong)

    def succeeded(self) -> bool:
        """Success at this moment: the rule of the task or the environment, with its object at
        rest."""
        rule = self.task.success
        if not (self._env._check_success() if rule is None else rule(self)):
            return False
        if not self.task.still_object:
            return True
        return self.speed(self.task.still_object) <= self.task.still_speed

    def wrong(self) -> str:
        """Name of the wrong outcome at this moment, by the task's rules; empty: none."""
        return next((name for name, rule in self.task.wrong.items() if rule(self)), "")

    # -- images -----------------------------------------------------------------------------

    def render(self, camera: str, width: int | None = None, height: int | None = None):
        """uint8 [H, W, 3] RGB, upright."""
        return self._images.render(camera, width, height)

    def camera_matrix(self, camera: str) -> np.ndarray:
        """The 3 x 3 pinhole matrix of a camera, in pixels."""
        return self._images.camera_matrix(camera)

    def close(self) -> None:
        self._images.close()

    def _place_fixtures(self, rng: np.random.Generator) -> None:
        import mujoco

        for name, place in self.task.fixtures.items():
            position, quaternion = self._fixtures[name]
            yaw = rng.uniform(*(place.yaw or (0, 2 * np.pi))) / 2
            turned = np.zeros(4)
            mujoco.mju_mulQuat(turned, np.array([np.cos(yaw), 0, 0, np.sin(yaw)]), quaternion)
            body = self.model.body(name)
            body.pos = position + np.array([rng.uniform(*place.x), rng.uniform(*place.y), 0])
            body.quat = turned
        if self.task.fixtures:
            mujoco.mj_forward(self.model, self.data)
