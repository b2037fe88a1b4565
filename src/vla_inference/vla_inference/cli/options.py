"""Builds a command's options from a config dataclass, and reads those a command declares."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer.main

from vla_inference.errors import VlaError
from vla_inference.options import Holds, options


def takes(config: type) -> Callable[[Callable], Callable]:
    """The first parameter of the decorated function, a `config`, becomes its fields as options.

    Its tuples are given as words between commas.
    """

    def decorate(function: Callable) -> Callable:
        hints = typing.get_type_hints(config)
        own = [_parameter(f, about, hints[f.name]) for f, about in options(config)]
        said = typing.get_type_hints(function, include_extras=True)
        _, *others = inspect.signature(function).parameters.values()
        keyword = inspect.Parameter.KEYWORD_ONLY
        others = [p.replace(annotation=said[p.name], kind=keyword) for p in others]
        tuples = {p.name: hints[p.name] for p in own if typing.get_origin(hints[p.name]) is tuple}

        @functools.wraps(function)
        def command(**given: Any) -> Any:
            values = {p.name: given.pop(p.name, p.default) for p in own}
            for name, kind in tuples.items():
                values[name] = _words(name, values[name], typing.get_args(kind)[0])
            return function(config(**values), **given)

        everything = [*own, *others]
        command.__signature__ = inspect.Signature(everything)
        command.__annotations__ = {p.name: p.annotation for p in everything}
        return command

    return decorate


def _parameter(f: Any, about: Any, kind: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if f.default is MISSING else f.default
    if typing.get_origin(kind) is tuple:
        kind, default = str, ",".join(map(str, default))
    names = about.names
    if kind is bool and default is False and not names:
        names = ("--" + f.name.replace("_", "-"),)  # a flag that is off needs no way to be off
    marks = [typer.Option(*names, help=about.help), *([about.holds] if about.holds else [])]
    return inspect.Parameter(
        f.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[(kind, *marks)],
    )


def _words(name: str, text: str, kind: type) -> tuple:
    words = text.replace(",", " ").split()
    try:
        return tuple(kind(word) for word in words)
    except ValueError:
        option = "--" + name.replace("_", "-")
        raise VlaError(f"{option} is {text!r}", "give numbers, separated by commas") from None


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
