"""Refuses unknown parameters, so that a misspelt limit is an error instead of being ignored.

rcl drops what a node does not declare, and sections of parameter files that name no such node.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rclpy.node import Node

from vla_inference.errors import VlaError

# rclpy's own; which of them it declares depends on its version.
RCLPY = ("use_sim_time", "start_type_description_service")
QOS = "qos_overrides."  # declared with each topic, some only when the node is configured
SECTION = "ros__parameters"


def refuse_undeclared(node: Node) -> None:
    """Raises VlaError if the node was given a parameter that it does not have."""
    given = sorted(node._parameter_overrides)
    unknown = [n for n in given if not (n in RCLPY or n.startswith(QOS) or node.has_parameter(n))]
    if not unknown:
        return
    known = sorted(n for n in node._parameters if not n.startswith(QOS))
    hints = {n: difflib.get_close_matches(n, known, 1) for n in unknown}
    near = [f"{found[0]} instead of {n}" for n, found in hints.items() if found]
    names = ", ".join(map(repr, unknown))
    raise VlaError(
        f"{node.get_fully_qualified_name()} has no parameter {names}",
        f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(known)}",
    )


def refuse_misaddressed(node: Node, words: Sequence[str]) -> None:
    """Checks a command line's parameter files for sections meant for another node.

    Raises VlaError where a file has nothing for this node but something for one of nearly its
    name, or of its name in another namespace; warns where there is nothing else at all.
    """
    name = node.get_fully_qualified_name()
    for flag, path in itertools.pairwise(words):
        if flag != "--params-file":
            continue
        sections = list(_sections(_read(path)))
        if not sections or any(matches(s, name) for s in sections):
            continue
        last = {s.rpartition("/")[2]: s for s in sections}
        near = difflib.get_close_matches(node.get_name(), last, 1)
        problem = f"{path} has nothing for node {name}, but for {', '.join(sections)}"
        if near:
            raise VlaError(problem, f"did you mean {name} (or /**) instead of {last[near[0]]}?")
        node.get_logger().warning(problem)


def matches(section: str, name: str) -> bool:
    """Whether a section such as /robot/*, /** or /robot/command applies to this node name."""
    return _matches(section.strip("/").split("/"), name.strip("/").split("/"))


def _matches(pattern: Sequence[str], name: Sequence[str]) -> bool:
    if not pattern:
        return not name
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        return any(_matches(rest, name[i:]) for i in range(len(name) + 1))
    return bool(name) and first in ("*", name[0]) and _matches(rest, name[1:])


def _read(path: str) -> Any:
    try:
        return yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None  # rcl has read it before us: then it is of a form that only rcl takes


def _sections(given: Any, at: str = "") -> Iterator[str]:
    """Node names in a parameter file."""
    if not isinstance(given, Mapping):
        return
    for key, value in given.items():
        if key == SECTION:
            yield at or "/**"
        else:
            yield from _sections(value, f"{at}/{str(key).strip('/')}")
