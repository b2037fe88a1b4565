"""The simulation node's parameters, checked in one place."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from vla_inference.episodes.robosuite import CONTROL_FREQ
from vla_inference.errors import VlaError
from vla_inference.inputs.history import stride_of
from vla_inference.options import check_options, option
from vla_inference.policies.base import Needs
from vla_sim_bridge.tasks import get_task

USUAL_STEPS = 4  # of a chunk that are executed before the next image


RATE = {"above": 0, "high": 1e6}


@dataclass
class SimSettings:
    """Each field is a parameter of the node. horizon 0 becomes the task's own."""

    task: str = option(
        "Stack_D0", "task, such as Stack_D2 or Stack_L; docs/reference.md lists them"
    )
    episodes: int = option(3, "number of episodes, at least 1")
    first_episode: int = option(
        0, "index of the first episode, to run a part of a longer run", low=0
    )
    only_episodes: str = option(
        "", "indices of the episodes to run, separated by commas; empty: `episodes` from the first"
    )
    seed: int = option(7, "random seed; episode i of a seed is always the same", low=0)
    horizon: int = option(0, "control steps after which an episode fails; 0: the task's own")
    language: str = option(
        "train", "sentences: train, held-out (never used for training), free (as people type)"
    )
    camera: str = option(
        "agentview", "camera whose images are published; its frame is <camera>_optical"
    )
    second_camera: str = option(
        "", "second camera, whose images are published on image_wrist; empty: none"
    )
    state: bool = option(
        False,
        "publish the robot's state with each image: current_pose, as the task's datasets have it, "
        "and joint_states of finger_joint1 and finger_joint2",
    )
    history: int = option(
        0,
        "past images of each camera, published with each image as <topic>_past1, _past2 ...: of "
        "one history_interval before, two ..., the episode's first where that is nearer",
        low=0,
        high=64,
    )
    history_interval: float = option(
        0.1, "simulated time between past images, whole control steps [s]", above=0, high=60
    )
    width: int = option(224, "width of the images [pixels]", low=16, high=4096, unit="pixels")
    height: int = option(224, "height of the images [pixels]", low=16, high=4096, unit="pixels")
    lock_step: bool = option(True, "wait for each frame's answer; false: real time")
    execute_steps: int = option(
        0,
        "lock step: executed steps of each chunk; 0: 4, or all if there are fewer",
        low=0,
    )
    action_timeout: float = option(
        10.0, "maximum time for a frame's answer; then the run ends with an error [s]", **RATE
    )
    start_timeout: float = option(
        120.0, "maximum time for the first answer, while the model loads [s]", **RATE
    )
    driven_by: str = option(
        "chunks",
        "what moves the robot: chunks, or a command node's output as on a real robot; a rover "
        "takes base_twist",
        choices=(
            "chunks",
            "twist",
            "pose",
            "joint_trajectory",
            "joint_positions",
            "joint_velocities",
            "base_twist",
        ),
    )
    auto_enable: bool = option(
        True,
        "driven by commands: enable the command node at each episode's beginning; false: people "
        "do, and time stands still in an episode while it is not enabled; they also may give "
        "other instructions, and lock step goes no faster than real time",
    )
    command_wait: float = option(
        1.0, "driven by commands, lock step: maximum time to wait for one [s]", **RATE
    )
    answer_delay: float = option(
        0.0,
        "driven by commands, lock step: simulated time that an answer takes, to topic "
        "delayed_action [s]",
        low=0,
        high=60,
    )
    control_rate: float = option(20.0, "real time: control periods per second [Hz]", **RATE)
    frame_rate: float = option(10.0, "real time: frames per second [Hz]", **RATE)
    real_time_factor: float = option(
        1.0,
        "real time, driven by commands: simulated seconds per wall-clock second",
        **RATE,
    )
    discovery_time: float = option(
        1.5, "how long to look for another simulation first [s]", low=0, high=60
    )
    output: str = option("", "results folder; empty: results/<task>_<time>")
    record_episodes: int = option(
        3, "number of episodes to film, from the first (slows them); 0: none", low=0
    )
    record_failures: int = option(
        20,
        "number of failed episodes that are kept as films (failures/episode_<index>.mp4) of the "
        "model's own images; 0: none",
        low=0,
    )
    model: str = option("", "checkpoint name, for the results only")
    summary: bool = option(True, "print a table at the end")

    @property
    def only(self) -> tuple[int, ...]:
        """The indices in `only_episodes`."""
        words = self.only_episodes.replace(",", " ").split()
        if not all(word.isascii() and word.isdigit() for word in words):
            raise VlaError(
                f"only_episodes is {self.only_episodes!r}", "give indices, such as 3,7,12"
            )
        return tuple(dict.fromkeys(map(int, words)))

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.camera, self.second_camera)))

    @property
    def needs(self) -> Needs:
        """What is seen of the world, as a model's needs."""
        images = len(self.cameras) * (1 + self.history)
        interval = self.history_interval if self.history else 0.0
        return Needs(images, history=self.history, interval=interval)

    @property
    def image_topics(self) -> list[str]:
        """Of the cameras, then of their past images, newest first: as a model takes them."""
        now = ["image", "image_wrist"][: len(self.cameras)]
        past = [f"{name}_past{ago}" for ago in range(1, self.history + 1) for name in now]
        return [*now, *past]

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> SimSettings:
        """From loosely typed values (a ROS integer for a double, say), each one checked."""
        settings = cls()
        for spec in fields(cls):
            if spec.name in values:
                value = _convert(spec.name, values[spec.name], type(getattr(settings, spec.name)))
                setattr(settings, spec.name, value)
        settings.check()
        return settings

    def check(self) -> None:
        task = get_task(self.task)
        self.task = task.name
        if task.package != "robocasa":  # whose worlds know the limit, 0 until they are made
            self.horizon = self.horizon or task.horizon
        task.sentences(self.language)
        if self.episodes < 1:
            raise VlaError(f"{self.episodes} episodes were requested", "ask for at least 1")
        if self.horizon < 0:
            raise VlaError(
                f"horizon is {self.horizon}", "give at least 1, or 0 for the task's own"
            )
        check_options(self, called="parameter {}".format)
        if self.only and self.first_episode:
            raise VlaError(
                f"both first_episode ({self.first_episode}) and only_episodes were given",
                "give one of them",
            )
        if self.history:
            stride_of(self.history_interval, 1.0 / CONTROL_FREQ)
        if self.second_camera == self.camera:
            raise VlaError(f"both cameras are {self.camera}", "name another second_camera")
        if self.state and self.driven_by != "chunks":
            raise VlaError(
                f"state is true, driven_by {self.driven_by}",
                "set state: false; what drives by commands publishes its own",
            )
        if self.driven_by not in ("chunks", "base_twist") and task.robot == "Rover":
            raise VlaError(
                f"{self.task} is driven by {self.driven_by}",
                "a rover has no arm; set driven_by to chunks or base_twist",
            )
        if self.state and task.package == "robocasa":
            raise VlaError(
                f"state is true, {self.task} has a state of its own (16 numbers)",
                "set state: false; models that take RoboCasa's state are not played over ROS yet",
            )
        if self.state and task.robot == "Rover":
            raise VlaError(
                f"state is true, {self.task} has no arm",
                "set state: false; driven by base_twist, a rover publishes odom",
            )
        if self.driven_by == "base_twist" and task.robot != "Rover":
            raise VlaError(
                f"{self.task} is driven by base_twist",
                "only a rover is; name a task such as Rover_D0",
            )
        if self.real_time_factor != 1 and (self.lock_step or self.driven_by == "chunks"):
            raise VlaError(
                f"real_time_factor is {self.real_time_factor:g}",
                "only what is driven by commands in real time has one; set lock_step: false",
            )
        if not self.auto_enable and self.driven_by == "chunks":
            raise VlaError(
                "auto_enable is false",
                "only what is driven by commands can be enabled by people; set driven_by",
            )

    def steps_of(self, chunk: int) -> int:
        """Lock step: number of steps of a chunk to execute; VlaError if it has fewer."""
        if not chunk:
            raise VlaError("the model's chunk has no steps", "have it give at least one")
        if self.execute_steps > chunk:
            raise VlaError(
                f"execute_steps is {self.execute_steps}, but the model's chunks have {chunk}",
                f"give 1 to {chunk}" if chunk > 1 else "give 1, or leave it out",
            )
        return self.execute_steps or min(USUAL_STEPS, chunk)

    def output_folder(self) -> Path:
        """The results folder; refuses one that cannot be made or already contains results."""
        name = self.output or f"results/{self.task}_{datetime.now():%Y-%m-%d_%H-%M-%S}"
        folder = Path(name).expanduser().absolute()
        above = next(p for p in (folder, *folder.parents) if p.exists())
        if not above.is_dir():
            raise VlaError(f"{above} is a file", "choose another output folder")
        if not os.access(above, os.W_OK | os.X_OK):
            raise VlaError(f"{above} cannot be written to", "choose another output folder")
        if (folder / "results.json").exists():
            raise VlaError(f"{folder} contains results already", "choose another output folder")
        return folder


def _convert(name: str, value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, (int, float)):
        return str(value)  # an output folder named 7, say
    if type(value) is not kind:
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        raise VlaError(f"parameter {name} is {value!r}", f"give {words[kind]}")
    return value
