"""Parses XML with line numbers, so that each error names file and line."""

from __future__ import annotations

import xml.parsers.expat
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path

from vla_inference.errors import VlaError


class LaunchError(VlaError):
    """An error in a launch file, or a feature that the stand-in does not support."""


@dataclass
class Element:
    """One XML element of a launch file."""

    tag: str
    attributes: dict[str, str]
    file: Path
    line: int
    children: list[Element] = field(default_factory=list)

    def fail(self, problem: str, remedy: str | None = None) -> LaunchError:
        """Raises an error with this element's file and line."""
        return LaunchError(f"{self.file}:{self.line}: {problem}", remedy)

    def check(self, allowed: Set[str], children: Set[str] = frozenset()) -> None:
        """Refuses attributes and children that the stand-in does not support."""
        for name in self.attributes:
            if name not in allowed:
                raise self.fail(
                    f"attribute '{name}' of <{self.tag}> is not supported",
                    f"use one of {', '.join(sorted(allowed))}, or install ros2launch",
                )
        for child in self.children:
            if child.tag not in children:
                raise child.fail(
                    f"<{child.tag}> inside <{self.tag}> is not supported",
                    "leave it out, or install ros2launch",
                )

    def need(self, name: str) -> str:
        if name not in self.attributes:
            raise self.fail(f"<{self.tag}> has no attribute '{name}'", "add it")
        return self.attributes[name]


def parse(path: Path) -> Element:
    """Read a launch file into its root element."""
    stack: list[Element] = []
    roots: list[Element] = []
    parser = xml.parsers.expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = Element(tag, attributes, path, parser.CurrentLineNumber)
        (stack[-1].children if stack else roots).append(element)
        stack.append(element)

    def text(data: str) -> None:
        if data.strip():
            raise stack[-1].fail(
                f"text inside <{stack[-1].tag}>: {data.strip()[:40]!r}",
                "launch files hold elements and attributes only",
            )

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda tag: stack.pop()
    parser.CharacterDataHandler = text
    try:
        parser.Parse(path.read_bytes(), True)
    except OSError as error:
        raise LaunchError(
            f"cannot read launch file {path}: {error.strerror}", "check its path"
        ) from None
    except xml.parsers.expat.ExpatError as error:
        raise LaunchError(
            f"{path}:{error.lineno}: not well-formed XML "
            f"({xml.parsers.expat.errors.messages[error.code]})",
            "fix it there",
        ) from None
    if roots[0].tag != "launch":
        raise roots[0].fail(f"the root element is <{roots[0].tag}>", "make it <launch>")
    return roots[0]
