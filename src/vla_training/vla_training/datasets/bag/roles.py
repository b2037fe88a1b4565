"""Assigns streams to action, gripper and state; rejects options that have no effect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vla_inference.errors import DataError
from vla_inference.inputs.joint_memory import MAX_APART
from vla_training.datasets.bag.actions import digest_action
from vla_training.datasets.bag.joints import ForwardKinematics, JointStream, read_joints
from vla_training.datasets.bag.message_types import CHUNK, EEF_DELTA, EPISODE, JOINTS, POSE, TWIST
from vla_training.datasets.bag.streams import Stream
from vla_training.datasets.bag.topics import BagOptions, BagTopics

CONTINUOUS = (TWIST, POSE, JOINTS)  # actions of any length, beside which the gripper has a topic
RANGE = BagOptions().gripper_range


@dataclass
class Roles:
    """The streams of a bag by what they are used for.

    action: values as `episode_actions` takes them. gripper: values are numbers. state: values are
    rows of numbers, of joints in the order of `state_names`.
    """

    action: Stream
    gripper: Stream | None = None
    state: Stream | None = None
    state_names: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


def digest(kind: str, msg: Any) -> Any:
    """The part to keep of a message that is not an image."""
    if kind == JOINTS:
        return read_joints(msg)
    if kind in (CHUNK, EEF_DELTA, TWIST, POSE):
        return digest_action(kind, msg)
    if kind == EPISODE:
        return msg
    return np.array(msg.data, np.float64) if np.ndim(msg.data) else msg.data


def read_roles(
    where: str,
    options: BagOptions,
    topics: BagTopics,
    kinds: Mapping[str, str],
    streams: Mapping[str, Stream],
) -> Roles:
    """Assigns the streams of a bag; raises DataError where they do not fit the options.

    where: the bag, for messages. kinds, streams: by topic.
    """
    joints = {
        t: JointStream(t, streams[t]) for t in topics.small if kinds[t] == JOINTS and t in streams
    }
    roles = Roles(streams[topics.action])
    for topic, stream in joints.items():
        for fault, count in stream.faults.items():
            roles.notes.append(f"{count} messages of {topic} left out: {fault}")
    if kinds[topics.action] == JOINTS:
        assert options.robot_model is not None  # refused by `read_bag`
        arm = ForwardKinematics(options.robot_model, options.robot_tip)
        roles.action = joints[topics.action].poses(arm)
        if still := [n for n in arm.chain() if n not in joints[topics.action].names]:
            roles.notes.append(f"no message names {', '.join(still)} of the arm: taken for 0")
    roles.gripper = _gripper(where, options, topics, kinds, streams, joints)
    _add_state(roles, options, topics, kinds, streams, joints)
    return roles


def _gripper(
    where: str,
    options: BagOptions,
    topics: BagTopics,
    kinds: Mapping[str, str],
    streams: Mapping[str, Stream],
    joints: Mapping[str, JointStream],
) -> Stream | None:
    topic = topics.gripper
    if topic is None and kinds[topics.action] == JOINTS and options.gripper_joint:
        topic = topics.action
    if topic is None or kinds[topics.action] not in CONTINUOUS:
        return None
    if kinds[topic] != JOINTS:
        return replace(streams[topic], values=[_first(v) for v in streams[topic].values])
    name, names = options.gripper_joint, joints[topic].names
    if name is None:
        if len(names) != 1:
            raise DataError(
                f"{where}: {topic} has {len(names)} joints ({', '.join(names)})",
                "name the gripper's with --gripper-joint",
            )
        name = names[0]
    return joints[topic].position(name)


def _first(value: Any) -> float:
    flat = np.ravel(value)
    return float(flat[0]) if flat.size else float("nan")


def _add_state(
    roles: Roles,
    options: BagOptions,
    topics: BagTopics,
    kinds: Mapping[str, str],
    streams: Mapping[str, Stream],
    joints: Mapping[str, JointStream],
) -> None:
    if topics.state is None:
        return
    stream = streams[topics.state]
    if kinds[topics.state] != JOINTS:
        values = [v[0] if kinds[topics.state] == POSE else v for v in stream.values]
        roles.state = replace(stream, values=[np.ravel(v).tolist() for v in values])
        return
    found = joints[topics.state]
    roles.state_names = tuple(options.joints_of_state or found.names)
    if found.partial and not options.joints_of_state:
        roles.notes.append(
            f"the state is {', '.join(roles.state_names)}, which {topics.state} tells in several "
            "messages (--state-joints chooses and orders them)"
        )
    roles.state, stale = found.vectors(roles.state_names)
    for name, count in sorted(stale.items()):
        roles.notes.append(
            f"{count} messages of {topics.state} left out: joint {name} was last heard of more "
            f"than {MAX_APART:g} s before"
        )


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
        "step_length": (options.step_length, kind in CONTINUOUS),
    }
    for option, (given, used) in rules.items():
        if given and not used:
            raise DataError(f"{told}, so {option} changes nothing", "leave it out")
