"""The options of a command, read from its function: for help, jobs and the reference alike."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import typer.main


class Holds(Enum):
    """What an option's value holds. Beside `typer.Option` in an annotation; a `Path` is a PATH."""

    VALUE = "a number, a name, a sentence"
    PATH = "a path"
    NAME_OR_PATH = "a name, or a path"
    ENGINE_FOLDER = "a name, or NAME:FOLDER"
    LOCAL = "what only the user of this machine may say, no job"


@dataclass(frozen=True)
class CommandOption:
    """An option as the command line takes it.

    names: with their dashes; an argument's in capitals. off: those that turn a flag off.
    default: None if there is none.
    """

    names: tuple[str, ...]
    off: tuple[str, ...]
    help: str
    default: Any
    required: bool
    flag: bool
    holds: Holds


def options_of(function: Callable) -> list[CommandOption]:
    """The options and arguments of a command's function, in its order, without --help."""
    app = typer.Typer(add_completion=False)
    app.command()(function)
    hints = typing.get_type_hints(function, include_extras=True)
    return [
        CommandOption(
            names=_names(parameter),
            off=tuple(parameter.secondary_opts),
            help=parameter.help or "",
            default=None if parameter.required else parameter.default,
            required=parameter.required,
            flag=getattr(parameter, "is_flag", False),
            holds=_holds(hints[parameter.name]),
        )
        for parameter in typer.main.get_command(app).params
        if parameter.name in hints
    ]


def _names(parameter: Any) -> tuple[str, ...]:
    argument = parameter.param_type_name == "argument"
    return (parameter.name.upper(),) if argument else tuple(parameter.opts)


def _holds(hint: Any) -> Holds:
    said = [mark for mark in typing.get_args(hint) if isinstance(mark, Holds)]
    return said[0] if said else Holds.PATH if _is_path(hint) else Holds.VALUE


def _is_path(kind: Any) -> bool:
    """Whether a type is a path, perhaps one of several, or nothing."""
    return kind is Path or any(_is_path(part) for part in typing.get_args(kind))
