"""Options as dataclass fields: type, default, range and help are declared once.

`cli.options.takes` makes the command's options of such fields, and what is read off the command
(help, what a job may name, docs/options.md) follows. `ros.parameters` makes a node's parameters
of them (docs/parameters.md). `check_options` holds values to what the fields say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from typing import Any

from vla_inference.errors import VlaError

KEY = "option"


class Holds(Enum):
    """What kind of value an option has. A `Path` needs no mark to be a PATH."""

    VALUE = "a number, a name, a sentence"
    PATH = "a path"
    NAME_OR_PATH = "a name, or a path"
    ENGINE_FOLDER = "a name, or NAME:FOLDER"
    LOCAL = "what only the user of this machine may say, no job"


@dataclass(frozen=True)
class Option:
    """The metadata of a field that is an option.

    low, high: least and greatest value. above: a number that it must exceed. choices: all values.
    names: with dashes; the field's own name if empty. live: as a parameter of a node, it may be
    set while the node is configured. unit: of the bounds, for messages.
    """

    help: str
    low: float | None = None
    above: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    holds: Holds | None = None
    live: bool = False
    unit: str = ""


def option(default: Any = MISSING, help: str = "", **about: Any) -> Any:
    """A field of a dataclass that is an option; `about` as in `Option`."""
    return field(default=default, metadata={KEY: Option(help, **about)})


def options(kind: Any) -> Iterator[tuple[Field, Option]]:
    """The fields of a dataclass, or of one of its objects, that are options."""
    return ((f, f.metadata[KEY]) for f in fields(kind) if KEY in f.metadata)


def group_of(kind: type, name: str) -> str:
    """The heading in a command's help that a field stands under; empty: the command's own.

    A dataclass says so by GROUPS: field names by heading; no names are all others.
    """
    groups: Mapping[str, tuple[str, ...]] = getattr(kind, "GROUPS", {})
    named = [title for title, names in groups.items() if name in names]
    others = [title for title, names in groups.items() if not names]
    return (named or others or [""])[0]


def command_names(f: Field, about: Option) -> tuple[str, ...]:
    """What the command line calls a field."""
    return about.names or ("--" + f.name.replace("_", "-"),)


def check_options(
    config: Any,
    called: Callable[[str], str] | None = None,
    error: type[VlaError] = VlaError,
) -> None:
    """Raises `error` if a value is not allowed by its field; None is always allowed.

    called: the caller's name for a field; the command line's if left out.
    """
    for f, about in options(config):
        value = getattr(config, f.name)
        if value is None:
            continue
        if remedy := _remedy(value, about):
            name = called(f.name) if called else command_names(f, about)[0]
            raise error(f"{name} is {value!r}", remedy)


def _remedy(value: Any, about: Option) -> str:
    """What to give instead; empty: the value will do."""
    if about.choices and value not in about.choices:
        return f"use {', '.join(about.choices[:-1])} or {about.choices[-1]}"
    if isinstance(value, float) and not math.isfinite(value):
        return "give a finite number"
    bounded = (about.low, about.above, about.high) != (None, None, None)
    if bounded and not isinstance(value, (int, float)):
        return f"give a number {about.unit}".rstrip()
    bounds = _bounds(value, about)
    return f"give {bounds} {about.unit}".rstrip() if bounds else ""


def _bounds(value: Any, about: Option) -> str:
    """The range that the value is not in; empty: it is."""
    if about.low is not None and about.high is not None and not about.low <= value <= about.high:
        return f"{about.low:g} to {about.high:g}"
    if about.low is not None and value < about.low:
        return f"at least {about.low:g}"
    if about.above is not None and not value > about.above:
        return f"more than {about.above:g}"
    if about.high is not None and value > about.high:
        return f"at most {about.high:g}"
    return ""
