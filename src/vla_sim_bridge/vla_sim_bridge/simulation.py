"""A task running in robosuite, headless: reset by seed, step by end-effector delta, render.

Everything robosuite-specific (its action scale, its gripper sign, its upside-down pictures) stays
behind this class. Facts about robosuite 1.5.2: OSC_POSE takes deltas in the base frame, scaled by
0.05 m and 0.5 rad; the gripper is -1 open, +1 closed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from vla_inference.errors import VlaError
from vla_inference.types import ActionSpec, Observation, eef_delta_spec
from vla_sim_bridge.randomization import Randomize, Randomizer
from vla_sim_bridge.tasks import Language, Scene, Task, get_task

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
    """After a control step: success by the task's rule at this very moment (not yet settled).

    wrong: name of the outcome that it is instead, by the task's other rules; empty: none.
    """

    success: bool
    reward: float
    wrong: str = ""


class Simulation:
    """One robot, one task, some cameras; sentences of the language trained on or held out.

    Poses are 4 x 4 matrices in the world frame, metres. `eef_pose` is the gripper's grip site, the
    frame that the controller moves.
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
        with _silence():
            self._env = _make(self.task)
        self.model, self.data = self._env.sim.model._model, self._env.sim.data._data
        self.spec: ActionSpec = eef_delta_spec("rotvec", "base", 1.0 / CONTROL_FREQ)
        known = [self.model.camera(i).name for i in range(self.model.ncam)]
        for name in self.cameras:
            if name not in known:
                raise VlaError(f"there is no camera {name!r}", f"cameras: {', '.join(known)}")
        self._renderers: dict[tuple[int, int], object] = {}
        self._contact_geoms: dict[int, list[str]] = {}
        self._bodies = {n: self.model.body(b).id for n, b in self.task.objects.items()}
        self._site = self._env.robots[0].eef_site_id["right"]
        self._arm_dofs = self._env.robots[0]._ref_joint_pos_indexes
        for name, (position, quaternion) in self.task.camera_poses.items():
            camera = self.model.camera(name)
            camera.pos, camera.quat = position, quaternion
        self._fixtures = {
            n: (self.model.body(n).pos.copy(), self.model.body(n).quat.copy())
            for n in self.task.fixtures
        }
        self._randomizer = None
        if randomize and randomize.parts:
            joints = self._env.robots[0]._ref_joint_vel_indexes
            self._randomizer = Randomizer(
                self.model, randomize, self.cameras, self._bodies.values(), joints
            )
        self.randomized: dict = {}
        self.versions: dict[str, str] = {}
        self.scene = Scene()
        self.rng = np.random.default_rng(0)
        self.instruction = ""
        self.gripper = 1.0

    # -- an episode ---------------------------------------------------------------------------

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode. All that is random in it is drawn from `rng`."""
        self.rng = rng
        if self._randomizer:  # a generator of its own: poses and sentences stay what they were
            self._looks = rng.spawn(1)[0]
            self.randomized = self._randomizer.episode(self._looks)
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
        self.scene = self.task.draw_scene(rng)
        self._paint()
        self.instruction = self.task.instruct(rng, self.scene, self.language)
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
            self.instruction = self.task.instruct(self.rng, self.scene, self.language)
        if self._randomizer and self._randomizer.config.every == "frame":
            self._randomizer.frame(self._looks)
        success = self.succeeded()
        wrong = "" if success else self.wrong()
        return StepResult(success, float(success), wrong)

    def hold(self) -> StepResult:
        """One control period without motion, the gripper as it is."""
        return self.step(np.array([0, 0, 0, 0, 0, 0, self.gripper]))

    def succeeded(self) -> bool:
        """Success at this moment: the task's rule or the environment's own, its object at rest."""
        rule = self.task.success
        if not (self._env._check_success() if rule is None else rule(self)):
            return False
        if not self.task.still_object:
            return True
        return self.speed(self.task.still_object) <= self.task.still_speed

    def wrong(self) -> str:
        """Name of the wrong end that this moment is, by the task's rules; empty: none."""
        return next((name for name, rule in self.task.wrong.items() if rule(self)), "")

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
        """Of every object by its name, and of those that play a role by that as well."""
        names = [*self._bodies, *self.scene.roles]
        return {name: self.pose(name) for name in names}

    def signals(self) -> dict[str, bool]:
        """The subtasks' termination signals at this moment."""
        return {s.signal: bool(s.until(self)) for s in self.task.subtasks if s.signal}

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
        gripper = self._env.robots[0].gripper
        return bool(self._env._check_grasp(gripper, self._geoms(name)))

    def touching(self, one: str, other: str) -> bool:
        return bool(self._env.check_contact(self._geoms(one), self._geoms(other)))

    def joint(self, name: str) -> float:
        """Position of a hinge or slide, rad or m."""
        return float(self.data.joint(name).qpos[0])

    def _geoms(self, name: str) -> list[str]:
        """Names of the geoms of a body and of what is fixed to it that can touch anything."""
        body = self.body(name)
        if body not in self._contact_geoms:
            root = self.model.body_weldid[body]
            self._contact_geoms[body] = [
                self.model.geom(i).name
                for i in range(self.model.ngeom)
                if self.model.body_weldid[self.model.geom_bodyid[i]] == root
                and self.model.geom_contype[i]
            ]
        return self._contact_geoms[body]

    def state(self) -> np.ndarray:
        """float32 [8]: end-effector position m, rotation vector rad, both fingers' position m."""
        from scipy.spatial.transform import Rotation

        pose = self.eef_pose()
        rotation = Rotation.from_matrix(pose[:3, :3]).as_rotvec()
        fingers = self.data.qpos[self._env.robots[0]._ref_gripper_joint_pos_indexes["right"]]
        return np.concatenate([pose[:3, 3], rotation, fingers]).astype(np.float32)

    def robot_state(self) -> dict[str, np.ndarray]:
        """By robosuite's names: quaternions xyzw, rad, m, 1/s. `robot0_state` is `state`.

        robot0_eef_pos and _quat_site are the grip site's, robot0_eef_quat is the hand body's.
        """
        from scipy.spatial.transform import Rotation

        robot, pose = self._env.robots[0], self.eef_pose()
        hand = self.data.body(robot.robot_model.eef_name["right"]).xquat
        fingers = robot._ref_gripper_joint_pos_indexes["right"]
        return {
            "robot0_state": self.state(),
            "robot0_eef_pos": pose[:3, 3].astype(np.float32),
            "robot0_eef_quat": np.roll(hand, -1),
            "robot0_eef_quat_site": Rotation.from_matrix(pose[:3, :3]).as_quat(),
            "robot0_joint_pos": self.data.qpos[robot._ref_joint_pos_indexes].copy(),
            "robot0_joint_vel": self.data.qvel[robot._ref_joint_vel_indexes].copy(),
            "robot0_gripper_qpos": self.data.qpos[fingers].astype(np.float32),
        }

    def free_objects(self) -> list[str]:
        """Names of the objects that nothing ties to the world, by free joints."""
        return [n for n, body in self._bodies.items() if self.model.body_dofnum[body] == 6]

    def push(self, name: str, velocity: np.ndarray) -> None:
        """Add a sideways velocity [2] m/s to a free object, as a short push would."""
        start = self.model.body_dofadr[self.body(name)]
        self.data.qvel[start : start + 2] += velocity

    def get_mujoco_state(self) -> np.ndarray:
        """float64 [1 + nq + nv]: time, positions, velocities (robomimic's `states`)."""
        return np.concatenate([[self.data.time], self.data.qpos, self.data.qvel])

    def scene_record(self) -> dict:
        """What of the scene is no part of the state, as JSON values: see `set_scene`."""
        fixtures = {
            n: [*self.model.body(n).pos.tolist(), *self.model.body(n).quat.tolist()]
            for n in self._fixtures
        }
        record = {**asdict(self.scene), "fixtures": fixtures}
        return {name: value for name, value in record.items() if value}

    def set_scene(self, record: Mapping) -> None:
        """Colours, roles and fixed bodies as `scene_record` told them."""
        self.scene = Scene(record.get("colours", {}), record.get("roles", {}))
        for name, pose in record.get("fixtures", {}).items():
            body = self.model.body(name)
            body.pos, body.quat = pose[:3], pose[3:]
        self._paint()

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

        import vla_sim_bridge.environments  # noqa: F401  registers ours
    except ImportError as error:
        raise VlaError(f"robosuite cannot be imported ({error})", "run `make setup`") from error
    arguments = dict(task.make)
    if task.x_range is not None:
        arguments["placement_initializer"] = UniformRandomSampler(
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
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        use_object_obs=False,
        hard_reset=False,
        ignore_done=True,
        control_freq=CONTROL_FREQ,
        seed=0,
        **arguments,
    )
    samplers = getattr(env.placement_initializer, "samplers", {})
    for name, place in task.placements.items():
        sampler = samplers.get(name, env.placement_initializer)
        sampler.x_range, sampler.y_range = list(place.x), list(place.y)
        sampler.rotation = place.yaw
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
