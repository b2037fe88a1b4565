"""Assigns streams to action, gripper and state; rejects options that have no effect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from vla_inference.errors import DataError
from vla_inference.inputs.joint_memory import MAX_APART
from vla_training.datasets.bag.actions import digest_action
from vla_training.datasets.bag.files.message_types import (
    CHUNK,
    EEF_DELTA,
    EPISODE,
    JOINTS,
    POSE,
    SOURCE,
    TASK_ESTIMATE,
    TWIST,
)
from vla_training.datasets.bag.joints import ForwardKinematics, JointStream, read_joints
from vla_training.datasets.bag.options import BagOptions
from vla_training.datasets.bag.streams import Stream
from vla_training.datasets.bag.topics import BagTopics

CONTINUOUS = (TWIST, POSE, JOINTS)  # actions of any length, beside which the gripper has a topic
RANGE = BagOptions().gripper_range


class Roles:
    """The streams of a bag by what they are used for.

    action: values as `episode_actions` takes them. gripper: values are numbers. state: values are
    rows of numbers, of joints in the order of `state_names`.
    """

    def __init__(
        self,
        where: str,
        options: BagOptions,
        topics: BagTopics,
        kinds: Mapping[str, str],
        streams: Mapping[str, Stream],
    ):
        """where: the bag, for messages. kinds, streams: by topic.

        Raises DataError where the streams do not fit the options.
        """
        self._where, self._options, self._topics = where, options, topics
        self._kinds, self._streams = kinds, streams
        self._joints = {
            t: JointStream(t, streams[t])
            for t in topics.small
            if kinds[t] == JOINTS and t in streams
        }
        self.notes = [
            f"{count} messages of {topic} left out: {fault}"
            for topic, stream in self._joints.items()
            for fault, count in stream.faults.items()
        ]
        self.action = self._action()
        self.gripper = self._gripper()
        self.state_names: tuple[str, ...] = ()
        self.state = None if topics.state is None else self._state(topics.state)

    def _action(self) -> Stream:
        topic, options = self._topics.action, self._options
        if self._kinds[topic] != JOINTS:
            return self._streams[topic]
        assert options.robot_model is not None  # refused by `read_bag`
        joints = self._joints[topic]
        arm = ForwardKinematics(options.robot_model, options.robot_tip)
        if still := [n for n in arm.chain() if n not in joints.names]:
            self.notes.append(f"no message names {', '.join(still)} of the arm: taken for 0")
        return joints.poses(arm)

    def _gripper(self) -> Stream | None:
        topic, actions = self._topics.gripper, self._topics.action
        name = self._options.gripper_joint
        if topic is None and self._kinds[actions] == JOINTS and name:
            topic = actions
        if topic is None or self._kinds[actions] not in CONTINUOUS:
            return None
        if self._kinds[topic] != JOINTS:
            stream = self._streams[topic]
            return replace(stream, values=[_first(v) for v in stream.values])
        names = self._joints[topic].names
        if name is None:
            if len(names) != 1:
                raise DataError(
                    f"{self._where}: {topic} has {len(names)} joints ({', '.join(names)})",
                    "name the gripper's with --gripper-joint",
                )
            name = names[0]
        return self._joints[topic].position(name)

    def _state(self, topic: str) -> Stream:
        kind, stream = self._kinds[topic], self._streams[topic]
        if kind != JOINTS:
            values = [v[0] if kind == POSE else v for v in stream.values]
            return replace(stream, values=[np.ravel(v).tolist() for v in values])
        found, asked = self._joints[topic], self._options.joints_of_state
        self.state_names = tuple(asked or found.names)
        if found.partial and not asked:
            self.notes.append(
                f"the state is {', '.join(self.state_names)}, which {topic} tells in several "
                "messages (--state-joints chooses and orders them)"
            )
        state, stale = found.vectors(self.state_names)
        self.notes += [
            f"{count} messages of {topic} left out: joint {name} was last heard of more than "
            f"{MAX_APART:g} s before"
            for name, count in sorted(stale.items())
        ]
        return state


def digest(kind: str, msg: Any) -> Any:
    """The part to keep of a message that is not an image."""
    if kind == JOINTS:
        return read_joints(msg)
    if kind in (CHUNK, EEF_DELTA, TWIST, POSE):
        return digest_action(kind, msg)
    if kind == EPISODE:
        return msg
    if kind == SOURCE:
        return str(msg.source)
    if kind == TASK_ESTIMATE:
        return float(msg.progress), float(msg.done), str(msg.instruction)
    return np.array(msg.data, np.float64) if np.ndim(msg.data) else msg.data


def _first(value: Any) -> float:
    flat = np.ravel(value)
    return float(flat[0]) if flat.size else float("nan")


# -- options that would change nothing --------------------------------------------------------


def check_used(
    where: str, options: BagOptions, topics: BagTopics, kinds: Mapping[str, str]
) -> None:
    """Raises DataError for an option that has no effect on this bag."""
    kind = kinds[topics.action]
    told = f"{where}: the actions are those of {topics.action} ({kind.replace('/msg/', '/')})"
    joints = {topics.action, topics.gripper, topics.state} & {
        t for t, k in kinds.items() if k == JOINTS
    }
    rules = {
        "--robot-model": (options.robot_model, kind == JOINTS),
        "--robot-tip": (options.robot_tip, kind == JOINTS),
        "--gripper-topic": (options.gripper_topic, kind in CONTINUOUS),
        "--gripper-joint": (
            options.gripper_joint,
            kind in CONTINUOUS and joints & {topics.action, topics.gripper},
        ),
        "--gripper-range": (
            options.gripper_range != RANGE,
            kind in CONTINUOUS and (topics.gripper or options.gripper_joint),
        ),
        "--state-joints": (options.state_joints, topics.state in joints),
        "--frame tool": (options.frame == "tool", kind not in (POSE, JOINTS)),
        "step_length": (
            options.step_length,
            kind in CONTINUOUS or topics.action == topics.human,
        ),
    }
    for option, (given, used) in rules.items():
        if given and not used:
            raise DataError(f"{told}, so {option} changes nothing", "leave it out")
