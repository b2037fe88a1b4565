"""The simulation node's parameters, checked in one place."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from vla_inference.errors import VlaError
from vla_sim_bridge.tasks import get_task

USUAL_STEPS = 4  # of a chunk that are executed before the next image


def _say(default: Any, text: str) -> Any:
    return field(default=default, metadata={"description": text})


@dataclass
class SimSettings:
    """Each field is a parameter of the node, with its description in `metadata`."""

    task: str = _say("Stack_D0", "Task, such as Stack_D2 or Stack_L")
    episodes: int = _say(3, "Episodes until the run ends, at least 1")
    first_episode: int = _say(0, "Index of the first one, to play a part of a longer run")
    seed: int = _say(7, "All chance comes from it; episode i of a seed is always the same")
    camera: str = _say("agentview", "Camera whose images are published")
    width: int = _say(224, "Width of the images [pixels]")
    height: int = _say(224, "Height of the images [pixels]")
    horizon: int = _say(0, "Control steps after which an episode has failed; 0: the task's own")
    language: str = _say(
        "train", "Sentences: train, held-out (never generated from), free (as typed)"
    )
    driven_by: str = _say(
        "chunks", "What moves the arm: chunks, or commands to a robot: twist, pose"
    )
    lock_step: bool = _say(True, "Wait for each frame's answer; false: real time")
    execute_steps: int = _say(
        0, "Lock step: how many steps of each chunk are executed; 0: 4, or all where it has fewer"
    )
    control_rate: float = _say(20.0, "Real time: control periods per second [Hz]")
    frame_rate: float = _say(10.0, "Real time: frames per second [Hz]")
    real_time_factor: float = _say(
        1.0, "Real time, driven by commands: seconds of simulation in one of the clock on the wall"
    )
    action_timeout: float = _say(10.0, "How long to wait for a frame's answer [s]")
    command_wait: float = _say(
        1.0, "Driven by commands in lock step: how long to wait for one [s]"
    )
    answer_delay: float = _say(
        0.0, "The same: simulated time that an answer takes, to topic delayed_action [s]"
    )
    start_timeout: float = _say(120.0, "How long to wait for the first answer of all [s]")
    discovery_time: float = _say(1.5, "How long to look for another simulation first [s]")
    output: str = _say("", "Results folder; empty: results/<task>_<time>")
    record_episodes: int = _say(3, "How many episodes to film, from the first; 0: none")
    model: str = _say("", "Checkpoint, for the results only")
    summary: bool = _say(True, "Print a table at the end")

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
        self.task, self.horizon = task.name, self.horizon or task.horizon
        task.sentences(self.language)
        if self.episodes < 1:
            raise VlaError(f"{self.episodes} episodes were asked for", "ask for at least 1")
        lowest = {
            "seed": 0,
            "first_episode": 0,
            "horizon": 1,
            "execute_steps": 0,
            "record_episodes": 0,
            "width": 16,
            "height": 16,
        }
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise VlaError(f"{name} is {getattr(self, name)}", f"give at least {least}")
        for name in ("width", "height"):
            if getattr(self, name) > 4096:
                raise VlaError(f"{name} is {getattr(self, name)}", "give at most 4096 pixels")
        for name in (
            "control_rate",
            "frame_rate",
            "action_timeout",
            "start_timeout",
            "command_wait",
            "real_time_factor",
        ):
            if not 0 < getattr(self, name) < 1e6:
                raise VlaError(f"{name} is {getattr(self, name)}", "give a number above 0")
        if self.driven_by not in ("chunks", "twist", "pose"):
            raise VlaError(f"driven_by is {self.driven_by!r}", "use chunks, twist or pose")
        if self.real_time_factor != 1 and (self.lock_step or self.driven_by == "chunks"):
            raise VlaError(
                f"real_time_factor is {self.real_time_factor:g}",
                "only what is driven by commands in real time has one; set lock_step: false",
            )
        if not 0 <= self.answer_delay < 60:
            raise VlaError(f"answer_delay is {self.answer_delay}", "give 0 to 60 seconds")
        if not 0 <= self.discovery_time < 60:
            raise VlaError(f"discovery_time is {self.discovery_time}", "give 0 to 60 seconds")

    def steps_of(self, chunk: int) -> int:
        """Lock step: how many of a chunk's steps are executed; VlaError if it has fewer."""
        if self.execute_steps > chunk:
            raise VlaError(
                f"execute_steps is {self.execute_steps}, but the model's chunks have {chunk}",
                f"give 1 to {chunk}" if chunk > 1 else "give 1, or leave it out",
            )
        return self.execute_steps or min(USUAL_STEPS, chunk)

    def output_folder(self) -> Path:
        """Where results go; refuses one that cannot be made, or holds some, which are kept."""
        name = self.output or f"results/{self.task}_{datetime.now():%Y-%m-%d_%H-%M-%S}"
        folder = Path(name).expanduser().absolute()
        above = next(p for p in (folder, *folder.parents) if p.exists())
        if not above.is_dir():
            raise VlaError(f"{above} is a file", "choose another output folder")
        if not os.access(above, os.W_OK | os.X_OK):
            raise VlaError(f"{above} cannot be written to", "choose another output folder")
        if (folder / "results.json").exists():
            raise VlaError(f"{folder} holds results already", "choose another output folder")
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
