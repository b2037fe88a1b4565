"""Writes rosbag2 bags, one per episode, that ROS, `mcap` and `rosbags` read.

`/image/compressed` (of further cameras `/<camera>/image/compressed`), `/action`, `/instruction`
(where it changes), `/state`, `/reward`, `/episode`; instruction and outcome stand in the metadata
too. Where an episode says who acted: `/command/source` (where it changes), and a person's chunks
on `/human_action` instead of `/action`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from vla_inference.episodes.estimates import estimates
from vla_inference.episodes.interventions import interventions
from vla_inference.episodes.language import COLUMNS, rows_of
from vla_inference.errors import DataError, VlaError
from vla_inference.options import option
from vla_inference.policies.action_specs import check_si, spec_to_json
from vla_inference.types import OPEN, ActionSpec, Episode
from vla_training.datasets.action_form import is_eef_delta
from vla_training.datasets.bag.episode_bag import STORAGES, EpisodeBag
from vla_training.datasets.bag.files import message_types as types
from vla_training.datasets.bag.streams import NS
from vla_training.datasets.bag.takeover import HUMAN, MODEL
from vla_training.datasets.bag.topics import HUMAN_ACTION
from vla_training.datasets.images import encode_image
from vla_training.datasets.writers import EpisodeWriter

HUMAN_TOPIC, SOURCE_TOPIC = f"/{HUMAN_ACTION}", "/command/source"
QUALITY = 95
FIRST_STAMP, APART = 1_000_000_000 * NS, 3600 * NS  # of episodes that have no stamps of their own


@dataclass(frozen=True)
class BagEncoder:
    """Compresses the images of an episode; can be pickled."""

    cameras: tuple[str, ...]
    images: str

    def __call__(self, episode: Episode) -> tuple[Episode, dict[str, list[bytes]]]:
        encoded = {
            c: [encode_image(s.observation.images[c], self.images, QUALITY) for s in episode.steps]
            for c in self.cameras
        }
        steps = [replace(s, observation=replace(s.observation, images={})) for s in episode.steps]
        return replace(episode, steps=steps), encoded


@dataclass(frozen=True)
class BagWriterOptions:
    storage: str = option("mcap", "mcap or sqlite3", choices=tuple(STORAGES))
    images: str = option("png", "png (lossless) or jpeg (quality 95)", choices=("png", "jpeg"))
    action: str = option(
        "chunk",
        "chunk (our own message), twist (TwistStamped) or pose (PoseStamped targets)",
        choices=("chunk", "twist", "pose"),
    )


class BagWriter(EpisodeWriter):
    """Writes a folder with a bag for each episode."""

    Options = BagWriterOptions

    def begin(self) -> None:
        types.our_types()
        action, spec = self.options.action, self.form.spec
        self.si = _is_si(spec)
        if action != "chunk" and not (self.si and is_eef_delta(spec)):
            raise DataError(
                f"the actions are {', '.join(spec.names)} in units "
                f"{', '.join(d.unit for d in spec.dims)}: no {action} can be made of them",
                "leave --action out",
            )
        if not self.si:
            self.notes.append("actions, of which no SI can be made, are stored as plain numbers")
        elif action != "chunk" and spec.rotation != "rotvec":
            self.notes.append(f"rotations ({spec.rotation}) are stored as angular {action}s")
        if self.options.images == "jpeg":
            self.notes.append(f"images are compressed with loss (JPEG, quality {QUALITY})")
        self.topics = {
            c: "/image/compressed" if i == 0 else f"/{c}/image/compressed"
            for i, c in enumerate(self.form.cameras)
        }
        self._bag: EpisodeBag | None = None
        self.partial.mkdir()

    def encoder(self) -> BagEncoder:
        return BagEncoder(tuple(self.form.cameras), self.options.images)

    def add(self, encoded: tuple[Episode, dict[str, list[bytes]]]) -> None:
        episode, images = encoded
        stamps = episode_stamps(episode, self.count, self.form.spacing)
        acted, told = interventions(episode), estimates(episode)
        self._bag = bag = EpisodeBag(
            self.partial / f"episode_{self.count:06d}", self.options.storage
        )
        instruction = None
        self._put_status(bag, episode, stamps[0], 0)
        for t, (step, stamp) in enumerate(zip(episode.steps, stamps, strict=True)):
            seen = step.observation
            if seen.instruction != instruction:
                instruction = seen.instruction
                bag.put(
                    "/instruction",
                    types.STRING,
                    stamp,
                    bag.make(types.STRING, data=instruction),
                    latched=True,
                )
            for camera, topic in self.topics.items():
                image = bag.make(
                    types.COMPRESSED,
                    header=_header(bag, stamp, f"{camera}_optical"),
                    format=f"rgb8; {self.options.images} compressed bgr8",
                    data=np.frombuffer(images[camera][t], np.uint8),
                )
                bag.put(topic, types.COMPRESSED, stamp, image)
            if self.form.state:
                self._put_array(bag, "/state", stamp, seen.state)
            if told is not None:  # -1, not known, as well: or the one before would hold
                self._put_estimate(bag, stamp, seen.instruction, told[t])
            person = acted is not None and bool(acted[t])
            if acted is not None and (t == 0 or acted[t] != acted[t - 1]):
                self._put_source(bag, stamp, HUMAN if person else MODEL)
            self._put_action(bag, stamp, step.action, instruction, t == 0, person)
            bag.put("/reward", types.DOUBLE, stamp, bag.make(types.DOUBLE, data=step.reward))
        self._put_status(bag, episode, stamps[-1], len(episode))
        bag.close(*self._about(episode, set(bag.messages)))
        self._bag = None

    def release(self) -> None:
        if self._bag is not None:
            bag, self._bag = self._bag, None
            bag.abort()

    # -- messages -----------------------------------------------------------------------------

    def _put_array(self, bag: EpisodeBag, topic: str, stamp: int, values: Any) -> None:
        data = np.asarray(values, np.float64)
        bag.put(topic, types.ARRAY, stamp, bag.make(types.ARRAY, data=data))

    def _put_action(
        self,
        bag: EpisodeBag,
        stamp: int,
        action: np.ndarray,
        instruction: str,
        first: bool,
        person: bool,
    ) -> None:
        spec, values = self.form.spec, np.asarray(action, np.float64)
        if not np.isfinite(values).all():
            raise DataError("an action is not finite", "fix the data")
        if not self.si:
            self._put_array(bag, "/action", stamp, values)
            return
        if self.options.action == "chunk":
            chunk = bag.make(
                types.CHUNK,
                header=_header(bag, stamp, spec.frame),
                instruction=instruction,
                model=HUMAN if person else "",
                parts=_parts(bag, spec),
                dt=spec.dt,
                actions=values,
            )
            bag.put(HUMAN_TOPIC if person else "/action", types.CHUNK, stamp, chunk)
            return
        turn = _turn(values[3:6], spec)
        if self.options.action == "twist":
            linear, angular = values[:3] / spec.dt, turn.as_rotvec() / spec.dt
            twist = bag.make(
                "geometry_msgs/msg/Twist",
                linear=_vector(bag, *linear),
                angular=_vector(bag, *angular),
            )
            message = bag.make(types.TWIST, header=_header(bag, stamp, spec.frame), twist=twist)
            bag.put("/delta_twist", types.TWIST, stamp, message)
        else:
            if first:  # where the first delta begins; only differences count
                self._place, self._turn = np.zeros(3), Rotation.identity()
                self._put_pose(bag, stamp - round(spec.dt * NS / 2))
            if spec.frame == "tool":
                raise DataError("the deltas are in the tool's axes", "use chunk or twist")
            self._place, self._turn = self._place + values[:3], turn * self._turn
            self._put_pose(bag, stamp)
        self._put_array(bag, "/gripper", stamp, values[6:])

    def _put_source(self, bag: EpisodeBag, stamp: int, who: str) -> None:
        message = bag.make(types.SOURCE, header=_header(bag, stamp, ""), source=who)
        bag.put(SOURCE_TOPIC, types.SOURCE, stamp, message, latched=True)

    def _put_estimate(
        self, bag: EpisodeBag, stamp: int, instruction: str, told: np.ndarray
    ) -> None:
        """told: [2], progress and how likely it is done."""
        progress, done = told.tolist()
        message = bag.make(
            types.TASK_ESTIMATE,
            header=_header(bag, stamp, ""),
            instruction=instruction,
            progress=progress,
            done=done,
        )
        bag.put("/estimate", types.TASK_ESTIMATE, stamp, message)

    def _put_pose(self, bag: EpisodeBag, stamp: int) -> None:
        x, y, z, w = self._turn.as_quat().tolist()
        pose = bag.make(
            "geometry_msgs/msg/Pose",
            position=bag.make(
                "geometry_msgs/msg/Point", **dict(zip("xyz", self._place.tolist(), strict=True))
            ),
            orientation=bag.make("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w),
        )
        header = _header(bag, stamp, self.form.spec.frame)
        bag.put("/target_pose", types.POSE, stamp, bag.make(types.POSE, header=header, pose=pose))

    def _put_status(self, bag: EpisodeBag, episode: Episode, stamp: int, step: int) -> None:
        """Writes EpisodeStatus before the first step and after the last."""
        about, done = episode.metadata, step > 0
        last = episode.steps[max(0, step - 1)]
        message = bag.make(
            types.EPISODE,
            header=_header(bag, stamp, ""),
            task=str(about.get("task", "")),
            seed=_natural(about.get("seed"), 64),
            index=self.count,
            step=step,
            horizon=len(episode),
            reward=float(last.reward) if done else 0.0,
            success=done and bool(about.get("success")),
            done=done,
            outcome=outcome(about) if done else "running",
            instruction=last.observation.instruction,
        )
        bag.put("/episode", types.EPISODE, stamp, message)

    def _about(self, episode: Episode, written: set[str]) -> tuple[dict[str, Any], dict[str, str]]:
        named = {"chunk": "/action", "twist": "/delta_twist", "pose": "/target_pose"}
        topics: dict[str, Any] = {
            "cameras": self.topics,
            "action": named[self.options.action],
            "instruction": "/instruction",
            "reward": "/reward",
        }
        if self.form.state:
            topics["state"] = "/state"
        if self.options.action != "chunk":
            topics["gripper"] = "/gripper"
        if topics["action"] not in written:
            topics["action"] = HUMAN_TOPIC
        if SOURCE_TOPIC in written:
            topics["source"] = SOURCE_TOPIC
        flags = "".join(str(s.is_first + 2 * s.is_last + 4 * s.is_terminal) for s in episode.steps)
        about = {
            "episodes": 1,
            "steps": len(episode),
            "topics": topics,
            "flags": flags,
            "spec": spec_to_json(self.form.spec),
            "metadata": episode.metadata | checked_rows(episode),
        }
        readable = {
            "dataset": self.form.name,
            "instruction": episode.instructions[0],
            "outcome": outcome(episode.metadata),
        }
        return about, readable


def episode_stamps(episode: Episode, number: int, spacing: float) -> list[int]:
    """Stamps in ns of each step: its own if they increase, else `spacing` s apart."""
    own = [round(s.observation.stamp * NS) for s in episode.steps]
    if own[0] > 0 and all(a < b for a, b in pairwise(own)):
        return own
    start = FIRST_STAMP + number * APART
    return [start + round(t * spacing * NS) for t in range(len(own))]


def checked_rows(episode: Episode) -> dict[str, Any]:
    """The episode's language rows, as other formats have them."""
    where = str(episode.metadata.get("source", "an episode"))
    found = {name: rows_of(episode.metadata, name, where) for name in COLUMNS}
    return {name: rows for name, rows in found.items() if rows}


def outcome(metadata: dict[str, Any]) -> str:
    """The episode's outcome from its metadata; empty if missing."""
    if metadata.get("outcome"):
        return str(metadata["outcome"])
    return "success" if metadata.get("success") else ""


def _natural(value: Any, bits: int) -> int:
    good = isinstance(value, int) and 0 <= value < 2**bits
    return value if good else 0


def _turn(angles: np.ndarray, spec: ActionSpec) -> Rotation:
    if spec.rotation == "rpy":
        return Rotation.from_euler("xyz", angles)
    return Rotation.from_rotvec(angles)


def _is_si(spec: ActionSpec) -> bool:
    """Whether an ActionChunk can say it: SI, and grippers 1 open."""
    grippers = [d for p in spec.parts if p.kind == "gripper" for d in p.dims]
    try:
        return all(d.polarity in ("", OPEN) for d in grippers) and (check_si(spec) == 1).all()
    except VlaError:
        return False


def _parts(bag: EpisodeBag, spec: ActionSpec) -> list[Any]:
    return [
        bag.make(
            types.PART,
            name=p.name,
            kind=p.kind,
            dims=[d.name for d in p.dims],
            units=[d.unit for d in p.dims],
            frame_id=p.frame,
            rotation_convention=p.rotation,
        )
        for p in spec.parts
    ]


def _vector(bag: EpisodeBag, x: float, y: float, z: float) -> Any:
    return bag.make("geometry_msgs/msg/Vector3", x=float(x), y=float(y), z=float(z))


def _header(bag: EpisodeBag, stamp: int, frame: str) -> Any:
    time = bag.make("builtin_interfaces/msg/Time", sec=stamp // NS, nanosec=stamp % NS)
    return bag.make("std_msgs/msg/Header", stamp=time, frame_id=frame)
