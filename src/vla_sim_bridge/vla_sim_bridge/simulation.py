"""A task running in robosuite, headless: reset by seed, step by end-effector delta, render.

Everything robosuite-specific (its action scale, its gripper sign, its upside-down pictures) stays
behind this class. Facts about robosuite 1.5.2: OSC_POSE takes deltas in the base frame, scaled by
0.05 m and 0.5 rad; the gripper is -1 open, +1 closed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_inference.errors import VlaError
from vla_inference.types import ActionSpec, Observation, eef_delta_spec
from vla_sim_bridge.tasks import Task, get_task

# MuJoCo picks its way of drawing at import. Without a screen that is EGL on a GPU, OSMesa else.
if "MUJOCO_GL" not in os.environ and not os.environ.get("DISPLAY"):
    os.environ["MUJOCO_GL"] = "egl" if os.path.exists("/dev/nvidia0") else "osmesa"

POSITION_SCALE = 0.05  # m per unit of robosuite action (controller output_max)
ROTATION_SCALE = 0.5  # rad
CONTROL_FREQ = 20.0  # Hz
ROBOT = "Panda"
ACTION_SCALE = np.array([POSITION_SCALE] * 3 + [ROTATION_SCALE] * 3)


def to_robosuite(action: np.ndarray) -> np.ndarray:
    """SI delta (m, rad, gripper 1 open) -> robosuite's 7 numbers in [-1, 1] (gripper -1 open)."""
    action = np.asarray(action, np.float64)
    arm = np.clip(action[..., :6] / ACTION_SCALE, -1.0, 1.0)
    gripper = np.where(action[..., 6:7] > 0.5, -1.0, 1.0)
    return np.concatenate([arm, gripper], axis=-1)


def from_robosuite(action: np.ndarray) -> np.ndarray:
    """robosuite's 7 numbers -> SI delta (m, rad, gripper 1 open): undoes `to_robosuite`."""
    action = np.asarray(action, np.float64)
    gripper = (1.0 - action[..., 6:7]) / 2.0
    return np.concatenate([action[..., :6] * ACTION_SCALE, gripper], axis=-1)


def episode_rng(purpose: str, seed: int, index: int) -> np.random.Generator:
    """The one source of chance of an episode.

    `purpose` ("generate", "evaluate") is part of the seed, so that no evaluation episode can ever
    be one that training data was generated from.
    """
    if seed < 0 or index < 0:
        raise VlaError(f"seed {seed}, episode {index}", "both must be 0 or more")
    key = [seed, index, *purpose.encode()]
    return np.random.default_rng(np.random.SeedSequence(key))


@dataclass(frozen=True)
class StepResult:
    """After a control step: success by the task's rule at this very moment (not yet settled)."""

    success: bool
    reward: float


class Simulation:
    """One robot, one task, some cameras.

    Poses are 4 x 4 matrices in the world frame, metres. `eef_pose` is the gripper's grip site, the
    frame that the controller moves.
    """

    def __init__(
        self,
        task: Task | str,
        cameras: Sequence[str] = ("agentview",),
        width: int = 224,
        height: int = 224,
    ):
        self.task = get_task(task) if isinstance(task, str) else task
        self.cameras, self.width, self.height = tuple(cameras), width, height
        with _silence():
            self._env = _make(self.task)
        self.model, self.data = self._env.sim.model._model, self._env.sim.data._data
        self.spec: ActionSpec = eef_delta_spec("rotvec", "base", 1.0 / CONTROL_FREQ)
        known = [self.model.camera(i).name for i in range(self.model.ncam)]
        for name in self.cameras:
            if name not in known:
                raise VlaError(f"there is no camera {name!r}", f"cameras: {', '.join(known)}")
        self._renderers: dict[tuple[int, int], object] = {}
        self._bodies = {n: self.model.body(b).id for n, b in self.task.objects.items()}
        self._site = self._env.robots[0].eef_site_id["right"]
        self._arm_dofs = self._env.robots[0]._ref_joint_pos_indexes
        for name, (position, quaternion) in self.task.camera_poses.items():
            camera = self.model.camera(name)
            camera.pos, camera.quat = position, quaternion
        self.rng = np.random.default_rng(0)
        self.instruction = ""
        self.gripper = 1.0

    # -- an episode ---------------------------------------------------------------------------

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode. All that is random in it is drawn from `rng`."""
        self.rng = rng
        self._env.rng = rng
        self._env.placement_initializer.rng = rng
        # The gripper's ramp and the controller's goal outlive a soft reset of robosuite; without
        # this an episode would depend on the one before it.
        gripper = self._env.robots[0].gripper["right"]
        gripper.current_action = np.zeros_like(gripper.current_action)
        self._env.reset()
        self.data.qacc_warmstart[:] = 0
        self._env.robots[0].composite_controller.reset()
        self.scene = self.task.draw_scene(rng)
        self._paint()
        self.instruction = self.task.draw_instruction(rng, self.scene)
        self.gripper = 1.0

    def step(self, action: np.ndarray) -> StepResult:
        """Hold an SI end-effector delta [7] for one control period (0.05 s)."""
        action = np.asarray(action, np.float64)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise VlaError(f"action {action} is not 7 finite numbers", "nothing was moved")
        self.gripper = float(action[6] > 0.5)
        self._env.step(to_robosuite(action))
        if self.task.colours == "step":
            self.scene = self.task.draw_scene(self.rng)
            self._paint()
        if self.task.language == "step":
            self.instruction = self.task.draw_instruction(self.rng, self.scene)
        success = self.succeeded()
        return StepResult(success, float(success))

    def hold(self) -> StepResult:
        """One control period without motion, the gripper as it is."""
        return self.step(np.array([0, 0, 0, 0, 0, 0, self.gripper]))

    def succeeded(self) -> bool:
        """Success at this moment: the environment's own rule, and the moved object at rest."""
        if not self._env._check_success():
            return False
        if not self.task.still_object:
            return True
        velocity = self.data.cvel[self._bodies[self.task.still_object]][3:]
        return bool(np.linalg.norm(velocity) <= self.task.still_speed)

    def observation(self) -> Observation:
        """Pictures of all cameras, instruction and state (see `state`)."""
        images = {name: self.render(name) for name in self.cameras}
        return Observation(images, self.instruction, self.state())

    # -- what a demonstration is made of ------------------------------------------------------

    def eef_pose(self) -> np.ndarray:
        pose = np.eye(4)
        pose[:3, :3] = self.data.site_xmat[self._site].reshape(3, 3)
        pose[:3, 3] = self.data.site_xpos[self._site]
        return pose

    def eef_velocity(self) -> np.ndarray:
        """[3] m/s, world axes."""
        import mujoco

        velocity = np.zeros(6)
        site = mujoco.mjtObj.mjOBJ_SITE
        mujoco.mj_objectVelocity(self.model, self.data, site, self._site, velocity, 0)
        return velocity[3:]

    def object_poses(self) -> dict[str, np.ndarray]:
        poses = {}
        for name, body in self._bodies.items():
            pose = np.eye(4)
            pose[:3, :3] = self.data.xmat[body].reshape(3, 3)
            pose[:3, 3] = self.data.xpos[body]
            poses[name] = pose
        return poses

    def signals(self) -> dict[str, bool]:
        """The subtasks' termination signals at this moment."""
        names = {s.signal for s in self.task.subtasks if s.signal}
        signals = {}
        if "grasp" in names:
            first = getattr(self._env, next(iter(self.task.objects)))
            gripper = self._env.robots[0].gripper
            signals["grasp"] = bool(self._env._check_grasp(gripper, first))
        return signals

    def state(self) -> np.ndarray:
        """float32 [8]: end-effector position m, rotation vector rad, both fingers' position m."""
        from scipy.spatial.transform import Rotation

        pose = self.eef_pose()
        rotation = Rotation.from_matrix(pose[:3, :3]).as_rotvec()
        fingers = self.data.qpos[self._env.robots[0]._ref_gripper_joint_pos_indexes["right"]]
        return np.concatenate([pose[:3, 3], rotation, fingers]).astype(np.float32)

    def get_mujoco_state(self) -> np.ndarray:
        """float64 [1 + nq + nv]: time, positions, velocities (robomimic's `states`)."""
        return np.concatenate([[self.data.time], self.data.qpos, self.data.qvel])

    def set_mujoco_state(self, state: np.ndarray) -> None:
        """Put the world into a recorded state, for reading poses; no motion is computed."""
        nq, nv = self.model.nq, self.model.nv
        if len(state) != 1 + nq + nv:
            raise VlaError(
                f"the state has {len(state)} numbers, {self.task.name} has {1 + nq + nv}",
                "the demonstration belongs to another task or robosuite version",
            )
        import mujoco

        self.data.time = state[0]
        self.data.qpos[:] = state[1 : 1 + nq]
        self.data.qvel[:] = state[1 + nq :]
        mujoco.mj_forward(self.model, self.data)

    # -- pictures -----------------------------------------------------------------------------

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

    def _paint(self) -> None:
        from vla_sim_bridge.tasks.stack import PALETTE

        for name, colour in self.scene.colours.items():
            prefix = self.task.colour_geoms[name]
            for i in range(self.model.ngeom):
                geom = self.model.geom(i)
                if geom.name.startswith(prefix) and geom.group[0] == 1:
                    geom.matid = -1  # a material would hide the colour
                    geom.rgba = [*(c / 255 for c in PALETTE[colour]), 1.0]


def _make(task: Task):
    try:
        import robosuite
        from robosuite.controllers import load_composite_controller_config
        from robosuite.utils.placement_samplers import UniformRandomSampler
    except ImportError as error:
        raise VlaError(f"robosuite cannot be imported ({error})", "run `make setup`") from error
    sampler = UniformRandomSampler(
        name="ObjectSampler",
        x_range=list(task.x_range),
        y_range=list(task.y_range),
        rotation=None,
        ensure_object_boundary_in_range=False,
        ensure_valid_placement=True,
        reference_pos=np.array((0, 0, 0.8)),
        z_offset=0.01,
        rng=np.random.default_rng(0),
    )
    env = robosuite.make(
        task.env,
        robots=ROBOT,
        controller_configs=load_composite_controller_config(robot=ROBOT),
        placement_initializer=sampler,
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        use_object_obs=False,
        hard_reset=False,
        ignore_done=True,
        control_freq=CONTROL_FREQ,
        seed=0,
    )
    # We read poses from MuJoCo ourselves; robosuite would sample every sensor at 500 Hz.
    env._observables.clear()
    return env


@contextlib.contextmanager
def _silence():
    """robosuite logs warnings about optional parts at import; errors still come as exceptions."""
    import logging

    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    with open(os.devnull, "w") as sink, contextlib.redirect_stderr(sink):
        sys.stdout.flush()
        yield
