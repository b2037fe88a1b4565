"""Relative actions: the network's numbers are offsets from the state that a chunk begins at.

Source: behaviour of huggingface/lerobot 0.6.1, `RelativeActionsProcessorStep`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_inference.errors import CheckpointError
from vla_inference.policies.lerobot.settings import Settings

STEPS = ("relative_actions_processor", "absolute_actions_processor")


def relative_numbers(
    folder: Path, processors: Mapping[str, Mapping[str, Any]], state: int, action: int
) -> tuple[bool, ...]:
    """Of each number of an action: whether it is an offset from the state's number in its place.

    All are, in a checkpoint that has relative actions, but for those whose name contains one of
    `exclude_joints`.
    """
    first, last = (
        Settings(f"{folder}: {name}", processors.get(name, {}).get("config", {})) for name in STEPS
    )
    there = first.flag("enabled", False)
    if there != last.flag("enabled", False):
        raise CheckpointError(
            f"{folder}: one of {' and '.join(STEPS)} is enabled without the other",
            "copy policy_preprocessor.json and policy_postprocessor.json of one checkpoint",
        )
    if not there:
        return (False,) * action
    excluded = [joint.lower() for joint in first.texts("exclude_joints", [])]
    names = first.texts("action_names", [""] * action)
    if len(names) != action:
        raise CheckpointError(
            f"{folder}: action_names of {STEPS[0]} are not the names of {action} numbers",
            "name each number of an action",
        )
    relative = tuple(not any(e in n.lower() for e in excluded) for n in names)
    if state < action:
        raise CheckpointError(
            f"{folder}: actions of {action} numbers are relative to a state of {state}",
            "it must have a number for each of them",
        )
    return relative
