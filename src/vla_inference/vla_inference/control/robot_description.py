"""What a URDF says of its joints' limits."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

from vla_inference.errors import VlaError

MOVING = ("revolute", "prismatic", "continuous")
REMEDY = "give a valid URDF: its text or its path"


class JointRange(NamedTuple):
    """[rad, m; rad/s, m/s]; infinite where the description says nothing."""

    lower: float = -math.inf
    upper: float = math.inf
    velocity: float = math.inf


def joint_ranges(description: str) -> dict[str, JointRange]:
    """Of all joints with one axis, by name. description: a URDF's text, or its file's path."""
    text = description
    try:
        if not description.lstrip().startswith("<"):
            text = Path(description).read_text("utf-8")
        root = ElementTree.fromstring(text)
        if root.tag != "robot":
            raise ValueError(f"it is a <{root.tag}>, not a <robot>")
        joints = [j for j in root.iter("joint") if j.get("type") in MOVING]
        return {j.get("name", ""): _range(j) for j in joints}
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise VlaError(f"cannot read the robot description: {error}", REMEDY) from None


def _range(joint: ElementTree.Element) -> JointRange:
    limit = joint.find("limit")
    numbers = {} if limit is None else {k: float(x) for k, x in limit.items()}
    velocity = numbers.get("velocity", 0.0) or math.inf
    if joint.get("type") == "continuous":
        return JointRange(velocity=velocity)
    if not {"lower", "upper"} <= set(numbers):
        # URDF's default is 0 to 0, with which nothing can move.
        raise ValueError(f"joint {joint.get('name')!r} has no limits")
    return JointRange(numbers["lower"], numbers["upper"], velocity)
