"""The rover in its arena: reset by seed, moved by velocities, seen by its camera and lidar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk
from vla_sim_bridge.envs.base import StepResult, WorldBase
from vla_sim_bridge.envs.chunk_to_actions import base_actions
from vla_sim_bridge.envs.renderer import Renderer, explained
from vla_sim_bridge.envs.rover import layout
from vla_sim_bridge.envs.rover.map_view import MapView
from vla_sim_bridge.tasks import Language, Scene, Task, get_task
from vla_sim_bridge.tasks.rover import PERSON, RoverTask
from vla_sim_bridge.tasks.stack import PALETTE

PERIOD = layout.PERIOD
RADIUS, SEPARATION = 0.1, 0.34  # m, of the wheels and between them
MOST = np.array([0.5, 1.2])  # m/s forwards and rad/s that the wheels' drivers take
STILL = np.array([0.02, 0.05])  # m/s and rad/s
RANGE = 6.0  # m, of the lidar
BEAMS = 180  # all around, counter-clockwise from straight back

_PERSON, _PERSON_SPEED = slice(9, 11), slice(8, 10)  # in qpos and in qvel: behind the wheels


class RoverWorld(MapView, WorldBase):
    """One rover, one task, some cameras (agentview: forwards; overview: from above).

    Actions are m/s forwards and rad/s to the left [2]. Positions are m in the arena, whose middle
    is 0, 0; headings rad from x. collided: whether it has touched anything in this episode.
    track: where it has been. word_at: step in which it was told to stop; -1: not yet. plan: the
    expert's of this episode, once it has one. walk: where a person is, m, in each control period
    [T, 2]; furthest: m, that they have been ahead.
    """

    def __init__(
        self,
        task: RoverTask | str,
        cameras: Sequence[str] = ("agentview",),
        width: int = 224,
        height: int = 224,
        language: Language = "train",
    ):
        found = get_task(task) if isinstance(task, str) else task
        if not isinstance(found, RoverTask):
            raise VlaError(f"{found.name} is not a rover's", "name a task such as Rover_D0")
        with explained():
            import mujoco
        self._mujoco = mujoco
        self.task: Task = found
        self._rover_task = found
        self.course, self.language = found.course, language
        self.cameras, self.width, self.height = tuple(cameras), width, height
        self.spec = found.spec
        self.versions: dict[str, str] = {}
        self.model = mujoco.MjModel.from_xml_string(
            Path(__file__).with_name("rover.xml").read_text()
        )
        self.data = mujoco.MjData(self.model)
        known = [self.model.camera(i).name for i in range(self.model.ncam)]
        for name in self.cameras:
            if name not in known:
                raise VlaError(f"there is no camera {name!r}", f"cameras: {', '.join(known)}")
        self._images = Renderer(self.model, self.data, width, height)
        self._looks = layout.Looks(self.model)
        groups = self.model.geom_group
        obstacle = groups == 1
        obstacle[self.model.geom("floor").id] = False
        self._rover, self._obstacle = groups == 2, obstacle
        self.instruction, self.gripper, self.collided = "", 1.0, False
        self.track: list[tuple[float, float]] = []
        self.word_at, self._word = -1, (-1, "")  # step and sentence
        self.scene = Scene()
        self.places: layout.Places = {}
        self.walk, self.furthest = np.zeros((0, 2)), 0.0

    # -- an episode ---------------------------------------------------------------------------

    def reset(self, rng: np.random.Generator) -> None:
        """Starts an episode. Everything random in it is drawn from `rng`."""
        self.scene = self.task.draw_scene(rng)
        start, places, walk = layout.draw(rng, self.course, list(self.scene.colours))
        self.instruction = self.task.instruct(rng, self.scene, self.language)
        looks = self._looks.draw(rng) if self.course.painted else {}
        arena = {"places": places, "looks": looks, "walk": walk.tolist()}
        self.set_scene({**asdict(self.scene), **arena})
        self.place(*start)
        if self.course.word:
            self._word = (
                int(rng.integers(*self.course.word)),
                self._rover_task.word(rng, self.language),
            )

    def place(self, x: float, y: float, heading: float) -> None:
        """Puts the rover somewhere, at rest, as at the beginning of an episode."""
        self._mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:3] = x, y, RADIUS
        self.data.qpos[3:7] = np.cos(heading / 2), 0, 0, np.sin(heading / 2)
        self._mujoco.mj_forward(self.model, self.data)
        self.collided, self.plan, self.furthest = False, None, 0.0
        self.track, self.word_at, self._word = [self.pose()[:2]], -1, (-1, "")

    def step(self, action: np.ndarray) -> StepResult:
        """Drives at a velocity [2] (m/s, rad/s) for one control period."""
        action = np.asarray(action, np.float64)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise VlaError(f"action {action} is not 2 finite numbers", "nothing was moved")
        linear, angular = np.clip(action, -MOST, MOST)
        turn = angular * SEPARATION / 2
        return self.turn_wheels((linear - turn) / RADIUS, (linear + turn) / RADIUS)

    def turn_wheels(self, left: float, right: float) -> StepResult:
        """Turns the wheels at these velocities, rad/s, for one control period."""
        self.data.ctrl[:] = left, right
        pace = self._pace()
        for _ in range(round(PERIOD / self.model.opt.timestep)):
            self.data.qvel[_PERSON_SPEED] = pace
            self._mujoco.mj_step(self.model, self.data)
            self.collided = self.collided or self._touches()
        self._mujoco.mj_kinematics(self.model, self.data)  # where the last step has led to,
        self._mujoco.mj_camlight(self.model, self.data)  # for images and rules
        self.track.append(self.pose()[:2])
        if len(self.walk):
            self.furthest = max(self.furthest, self.ahead(PERSON)[0])
        if len(self.track) == self._word[0]:
            self.word_at, self.instruction = self._word[0] - 1, self._word[1]
        success = bool(self.task.success and self.task.success(self))
        return StepResult(success, float(success), "" if success else self.wrong())

    def _pace(self) -> np.ndarray:
        """[2] m/s, of the person in this control period."""
        step = len(self.track) - 1
        if not self.walking:
            return np.zeros(2)
        return (self.walk[step + 1] - self.walk[step]) / PERIOD

    @property
    def walking(self) -> bool:
        return len(self.track) < len(self.walk)

    def _touches(self) -> bool:
        pairs = self.data.contact.geom
        hit = self._rover[pairs] & self._obstacle[pairs[:, ::-1]]
        return bool(hit.any())

    def wrong(self) -> str:
        """Name of the wrong outcome at this moment, by the task's rules; empty: none."""
        return next((name for name, rule in self.task.wrong.items() if rule(self)), "")

    def still(self) -> np.ndarray:
        return np.zeros(2)

    def actions(self, chunk: ActionChunk) -> np.ndarray:
        return base_actions(chunk)

    # -- what rules and the expert ask ----------------------------------------------------------

    def pose(self) -> tuple[float, float, float]:
        """x, y (m) and heading (rad) of the middle of the axle."""
        body = self.data.body("base_link")
        forwards = body.xmat.reshape(3, 3)[:, 0]
        return float(body.xpos[0]), float(body.xpos[1]), float(np.arctan2(*forwards[1::-1]))

    def velocity(self) -> np.ndarray:
        """[2] m/s forwards and rad/s to the left, by the wheels."""
        left, right = self.data.qvel[6:8] * RADIUS
        return np.array([(left + right) / 2, (right - left) / SEPARATION])

    def wheels(self) -> tuple[float, float]:
        """Angles of the left and the right wheel, rad, without end."""
        return float(self.data.qpos[7]), float(self.data.qpos[8])

    def position(self, name: str) -> np.ndarray:
        at = super().position(name)
        person = self.scene.roles.get(name, name) == PERSON
        return at + self.data.qpos[_PERSON] if person else at

    def resting(self) -> bool:
        return bool((np.abs(self.velocity()) <= STILL).all())

    def lidar(self) -> np.ndarray:
        """float32 [BEAMS] m from the middle; infinite where nothing is within `RANGE`."""
        heading = self.pose()[2]
        angles = heading - np.pi + 2 * np.pi / BEAMS * np.arange(BEAMS)
        rays = np.column_stack([np.cos(angles), np.sin(angles), np.zeros(BEAMS)])
        hit, far = np.zeros(BEAMS, np.int32), np.zeros(BEAMS)
        groups = np.array([0, 1, 0, 0, 0, 0], np.uint8)
        begin, static, nobody = self.data.site("lidar").xpos, 1, -1
        known = self.model, self.data, begin, rays.ravel(), groups, static, nobody
        self._mujoco.mj_multiRay(*known, hit, far, BEAMS, RANGE)
        return np.where(hit < 0, np.inf, far).astype(np.float32)

    def render(self, camera: str, width: int | None = None, height: int | None = None):
        """uint8 [H, W, 3] RGB, upright."""
        return self._images.render(camera, width, height)

    def camera_matrix(self, camera: str) -> np.ndarray:
        """The 3 x 3 pinhole matrix of a camera, in pixels."""
        return self._images.camera_matrix(camera)

    # -- what is recorded -----------------------------------------------------------------------

    def state(self) -> np.ndarray:
        """float32 [2]: m/s forwards and rad/s to the left, by the wheels."""
        return self.velocity().astype(np.float32)

    def get_mujoco_state(self) -> np.ndarray:
        """float64 [1 + nq + nv]: time, positions, velocities."""
        return np.concatenate([[self.data.time], self.data.qpos, self.data.qvel])

    def set_mujoco_state(self, state: np.ndarray) -> None:
        """Sets a recorded state, for images; computes no motion."""
        nq, nv = self.model.nq, self.model.nv
        if len(state) != 1 + nq + nv:
            raise VlaError(
                f"the state has {len(state)} numbers, {self.task.name} has {1 + nq + nv}",
                "the demonstration belongs to another task",
            )
        self.data.time = state[0]
        self.data.qpos[:], self.data.qvel[:] = state[1 : 1 + nq], state[1 + nq :]
        self._mujoco.mj_forward(self.model, self.data)

    def scene_record(self) -> dict:
        """What of the scene is not in the state, as JSON values: see `set_scene`."""
        walk = {"walk": self.walk.tolist()} if len(self.walk) else {}
        return {**asdict(self.scene), "places": self.places, "looks": self._looks.now} | walk

    def set_scene(self, record: Mapping) -> None:
        """Restores colours, roles, places and looks from `scene_record`."""
        self.scene = Scene(record.get("colours", {}), record.get("roles", {}))
        self.places = {name: tuple(at) for name, at in record.get("places", {}).items()}
        for name in self.task.objects:
            self.model.body(name).pos = [*self.places.get(name, (0, 0)), -2.0]
        for name in self.places:
            self.model.body(name).pos[2] = 0.0
        for name, colour in self.scene.colours.items():
            self.model.geom(name).rgba = [*(c / 255 for c in PALETTE[colour]), 1.0]
        self.walk = np.reshape(record.get("walk", []), (-1, 2))
        self._looks.put(record.get("looks", {}))
        self._mujoco.mj_forward(self.model, self.data)

    def close(self) -> None:
        self._images.close()
