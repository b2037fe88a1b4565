"""Chooses the topics of a bag to use: by option, by metadata, or by type."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vla_inference.errors import DataError
from vla_training.datasets.bag.cameras import choose_cameras, contents, given_topic
from vla_training.datasets.bag.files.message_types import (
    ARRAY,
    CHUNK,
    DOUBLE,
    EEF_DELTA,
    EPISODE,
    FLOAT,
    JOINTS,
    POSE,
    SOURCE,
    STRING,
    TASK_ESTIMATE,
    TWIST,
)
from vla_training.datasets.bag.files.storage import BagFile
from vla_training.datasets.bag.options import BagOptions

OURS = "vla_episode"  # key of custom_data: JSON, see writer.py
HUMAN_ACTION = "human_action"  # how a topic of a person's chunks is called
ACTIONS = (CHUNK, EEF_DELTA, TWIST, POSE)  # the first type there is
STATES = (ARRAY, JOINTS, POSE)
GRIPPERS = (ARRAY, DOUBLE, FLOAT, JOINTS)
REWARDS = (DOUBLE, FLOAT)
INSTRUCTION_WORDS = ("instruction", "language", "task", "prompt", "command")


@dataclass(frozen=True)
class BagTopics:
    """Names of topics; cameras by name, first the one that sets the steps.

    action: that of `human` where there is no other.
    """

    cameras: Mapping[str, str]
    action: str
    instruction: str | None = None
    state: str | None = None
    gripper: str | None = None
    reward: str | None = None
    episode: str | None = None
    human: str | None = None  # a person's chunks
    source: str | None = None  # who commands
    estimate: str | None = None  # how far the task is
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def small(self) -> list[str]:
        """All topics except the cameras."""
        found = (
            self.action,
            self.instruction,
            self.state,
            self.gripper,
            self.reward,
            self.episode,
            self.human,
            self.source,
            self.estimate,
        )
        return list(dict.fromkeys(t for t in found if t))


def read_about(bag: BagFile) -> dict[str, Any]:
    """Our writers' metadata; {} for bags from others."""
    try:
        about = json.loads(bag.custom.get(OURS, "{}"))
    except ValueError:
        bag.lost.append(f"its metadata {OURS!r} is not JSON")
        return {}
    return about if isinstance(about, dict) else {}


def choose_topics(bag: BagFile, options: BagOptions) -> BagTopics:
    """Raises DataError where an asked topic isn't there, is of another kind, or several could be
    meant; the remedy lists what there is."""
    about = read_about(bag)
    noted = about.get("topics", {})
    human = _last_named(bag, HUMAN_ACTION, CHUNK)
    action = options.action_topic or noted.get("action")
    if action is None and human is not None and not _other_chunks(bag, human):
        action = human
    kinds = (*ACTIONS, *((JOINTS,) if options.robot_model else ()), *((ARRAY,) if about else ()))
    action = _one(bag, "action", "--action-topic", action, kinds, human)
    if action is None:
        raise DataError(
            f"{bag.path} has no actions (none of {', '.join(ACTIONS)})",
            f"name them with --action-topic; joint states need --robot-model; {contents(bag)}",
        )
    gripper = options.gripper_topic or noted.get("gripper")
    if gripper is None and bag.topics[action].type in (TWIST, POSE, JOINTS):
        gripper = next(
            (
                t
                for t in sorted(bag.topics)
                if t.split("/")[-1] == "gripper" and bag.topics[t].type in GRIPPERS
            ),
            None,
        )
    reward = noted.get("reward") or next(
        (
            t
            for t in sorted(bag.topics)
            if t.split("/")[-1] == "reward" and bag.topics[t].type in REWARDS
        ),
        None,
    )
    cameras, notes = choose_cameras(bag, options.image_topic, noted.get("cameras", {}))
    return BagTopics(
        cameras,
        action,
        _instruction(bag, options.instruction_topic or noted.get("instruction")),
        given_topic(bag, "--state-topic", options.state_topic or noted.get("state"), STATES),
        given_topic(bag, "--gripper-topic", gripper, GRIPPERS),
        reward if reward in bag.topics else None,
        next((t for t in sorted(bag.topics) if bag.topics[t].type == EPISODE), None),
        human,
        noted.get("source") or _last_named(bag, "source", SOURCE),
        _last_named(bag, "estimate", TASK_ESTIMATE),
        about,
        tuple(notes),
    )


def _last_named(bag: BagFile, name: str, kind: str) -> str | None:
    """The first topic of this type whose name ends so, and that has messages."""
    found = [n for n, t in sorted(bag.topics.items()) if t.type == kind and t.count]
    return next((n for n in found if n.split("/")[-1] == name), None)


def _other_chunks(bag: BagFile, human: str) -> bool:
    """Whether there are chunks of a model, too."""
    return any(t.type == CHUNK and t.count and n != human for n, t in bag.topics.items())


def says_who_acted(bag: BagFile) -> bool:
    """Whether it has messages on who commands, or no chunks but a person's."""
    human = _last_named(bag, HUMAN_ACTION, CHUNK)
    if human is not None and not _other_chunks(bag, human):
        return True
    return _last_named(bag, "source", SOURCE) is not None


def _instruction(bag: BagFile, given: str | None) -> str | None:
    if given is not None:
        return given_topic(bag, "--instruction-topic", given, (STRING,))
    texts = sorted(n for n, t in bag.topics.items() if t.type == STRING)
    for word in INSTRUCTION_WORDS:
        for name in texts:
            if word in name.split("/")[-1].lower():
                return name
    return None


def _one(
    bag: BagFile,
    what: str,
    option: str,
    given: str | None,
    kinds: tuple[str, ...],
    other: str | None = None,
) -> str | None:
    """The given topic, or the only one of the first type that exists, beside `other`."""
    if given is not None:
        return given_topic(bag, option, given, (*ACTIONS, JOINTS, ARRAY))
    for kind in kinds:
        names = [n for n, t in bag.topics.items() if t.type == kind and n != other]
        if len(names) > 1:
            raise DataError(
                f"{bag.path} has {len(names)} topics that could hold the {what}s "
                f"({', '.join(sorted(names))})",
                f"name one with {option}",
            )
        if names:
            return names[0]
    return None
