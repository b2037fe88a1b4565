"""Builds a command's options from a config dataclass, and reads those a command declares."""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer.core
import typer.main

from vla_inference.errors import VlaError
from vla_inference.options import Holds, Option, command_names, group_of, options

SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 99,
    # --batch_size is --batch-size: tutorials of the field write either.
    "token_normalize_func": lambda name: name.replace("_", "-"),
}


class Command(typer.core.TyperCommand):
    """A command whose help lists options by group, in plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            argument = parameter.param_type_name == "argument"
            group = getattr(parameter, "rich_help_panel", None) or "Options"
            sections.setdefault("Arguments" if argument else group, []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def command_group(about: str = "") -> typer.Typer:
    """A command, or several under one name, with the settings of all."""
    return typer.Typer(
        help=about,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings=SETTINGS,
    )


def takes(*configs: type) -> Callable[[Callable], Callable]:
    """The decorated function's first parameters, one of each config, become their options.

    Tuples of any length are given as words separated by commas; numbers by spaces too.
    """

    def decorate(function: Callable) -> Callable:
        made = [[_Made.of(config, f, about) for f, about in options(config)] for config in configs]
        said = typing.get_type_hints(function, include_extras=True)
        keyword = inspect.Parameter.KEYWORD_ONLY
        others = list(inspect.signature(function).parameters.values())[len(configs) :]
        everything = [
            *(one.parameter for several in made for one in several),
            *(p.replace(annotation=said[p.name], kind=keyword) for p in others),
        ]
        everything.sort(key=lambda p: p.default is not p.empty)  # what is required comes first

        @functools.wraps(function)
        def command(**given: Any) -> Any:
            filled = [
                config(**{one.field: one.read(given) for one in several})
                for config, several in zip(configs, made, strict=True)
            ]
            return function(*filled, **given)

        vars(command)["__signature__"] = inspect.Signature(everything)
        command.__annotations__ = {p.name: p.annotation for p in everything}
        return command

    return decorate


@dataclass(frozen=True)
class _Made:
    """A command's parameter made of a config's field. words: type of a tuple's elements."""

    field: str
    parameter: inspect.Parameter
    words: type | None

    @classmethod
    def of(cls, config: type, f: Field, about: Option) -> _Made:
        kind, words = _type_of(config, f), None
        default: Any = inspect.Parameter.empty if f.default is MISSING else f.default
        if typing.get_origin(kind) is tuple and typing.get_args(kind)[-1] is Ellipsis:
            words = typing.get_args(kind)[0]
            kind, default = str, ",".join(map(str, default))
        names = command_names(f, about)
        name = names[0].removeprefix("--").replace("-", "_")
        if kind is bool and default is True:  # a flag that is off needs no way to be off
            names = (f"{names[0]}/--no-{names[0].removeprefix('--')}",)
        declared = typer.Option(
            *names,
            help=about.help,
            metavar="|".join(about.choices) or None,
            rich_help_panel=group_of(config, f.name) or None,
        )
        marks = kind, declared, *filter(None, (about.holds,))
        annotated: Any = Annotated
        parameter = inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=annotated[marks],
        )
        return cls(f.name, parameter, words)

    def read(self, given: dict[str, Any]) -> Any:
        """The field's value, taken out of what the command was given."""
        value = given.pop(self.parameter.name, self.parameter.default)
        if value is inspect.Parameter.empty:
            raise TypeError(f"{self.parameter.name} is missing")
        if self.words is None:
            return value
        if self.words is str:  # which may have spaces, as instructions do
            return tuple(word.strip() for word in value.split(",") if word.strip())
        try:
            return tuple(self.words(word) for word in value.replace(",", " ").split())
        except ValueError:
            option = "--" + self.parameter.name.replace("_", "-")
            raise VlaError(f"{option} is {value!r}", "give numbers, separated by commas") from None


@dataclass(frozen=True)
class CommandOption:
    """An option as the command line takes it.

    names: with their dashes; an argument's in capitals. off: those that turn a flag off.
    default: None if there is none. choices: all values, where they are few.
    """

    names: tuple[str, ...]
    off: tuple[str, ...]
    help: str
    default: Any
    required: bool
    flag: bool
    holds: Holds
    choices: tuple[str, ...] = ()


def options_of(function: Callable) -> list[CommandOption]:
    """The options and arguments of a command's function, in its order, without --help."""
    app = typer.Typer(add_completion=False)
    app.command()(function)
    hints = typing.get_type_hints(function, include_extras=True)
    return [
        CommandOption(
            names=_names(parameter),
            off=tuple(parameter.secondary_opts),
            help=getattr(parameter, "help", None) or "",
            default=None if parameter.required else parameter.default,
            required=parameter.required,
            flag=getattr(parameter, "is_flag", False),
            holds=_holds(hints[parameter.name]),
            choices=_choices(parameter.metavar, hints[parameter.name]),
        )
        for parameter in typer.main.get_command(app).params
        if parameter.name in hints
    ]


def _names(parameter: Any) -> tuple[str, ...]:
    argument = parameter.param_type_name == "argument"
    return (parameter.name.upper(),) if argument else tuple(parameter.opts)


def _choices(metavar: str | None, hint: Any) -> tuple[str, ...]:
    """The values that help shows as "one|two", or an enumeration's."""
    if metavar and "|" in metavar:
        return tuple(metavar.split("|"))
    kind = next(iter(typing.get_args(hint)), hint)
    enumeration = isinstance(kind, type) and issubclass(kind, Enum)
    return tuple(member.value for member in kind) if enumeration else ()


def _type_of(config: type, f: Field) -> Any:
    """A field's type; those of the other fields may be imported for type checkers alone."""
    if not isinstance(f.type, str):
        return f.type
    return eval(f.type, vars(sys.modules[config.__module__]))


def _holds(hint: Any) -> Holds:
    said = [mark for mark in typing.get_args(hint) if isinstance(mark, Holds)]
    return said[0] if said else Holds.PATH if _is_path(hint) else Holds.VALUE


def _is_path(kind: Any) -> bool:
    """Whether a type is a path, perhaps one of several, or nothing."""
    return kind is Path or any(_is_path(part) for part in typing.get_args(kind))
