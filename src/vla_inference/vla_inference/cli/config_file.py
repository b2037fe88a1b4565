"""`--config FILE`: a command's options out of a YAML file, and a run's own beside its results.

A file has a line per option, named as on the command line (`batch_size: 32`), which overrides it.
Paths stand as they were written: they start where the command is started.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from vla_inference.cli.output import plain
from vla_inference.errors import VlaError
from vla_inference.options import Holds
from vla_inference.system.files import write_whole

NAME = "options.yaml"
CONTEXT, FILE = "config_context", "config_file"  # parameters beside the command's own
# What a repetition does not repeat: how it is told, and what it may continue or replace.
NOT_KEPT = ("config", "json", "resume", "overwrite")

_resolved: ContextVar[tuple[str, dict[str, Any]] | None] = ContextVar("resolved", default=None)


def with_config_file(function: Callable) -> Callable:
    """The command with the option --config; while it runs, `keep_options` knows its options."""
    signature = inspect.signature(function)
    if "config" in signature.parameters:
        return function
    keyword = inspect.Parameter.KEYWORD_ONLY
    file = typer.Option(
        "--config",
        metavar="FILE",
        is_eager=True,  # before the options that it stands for are looked for
        callback=_read,
        help=f"YAML file of options, such as a run's {NAME}; the command line overrides it.",
    )
    said = typing.get_type_hints(function, include_extras=True)
    annotated: Any = Annotated
    marks: Any = (Path | None, file, Holds.LOCAL)
    more = [
        inspect.Parameter(CONTEXT, keyword, annotation=typer.Context),
        inspect.Parameter(FILE, keyword, default=None, annotation=annotated[marks]),
    ]
    own = [
        p.replace(kind=keyword, annotation=said.get(p.name, p.annotation))
        for p in signature.parameters.values()
    ]

    @functools.wraps(function)
    def command(**given: Any) -> Any:
        context = given.pop(CONTEXT)
        del given[FILE]
        token = _resolved.set((context.command_path, resolved(context)))
        try:
            return function(**given)
        finally:
            _resolved.reset(token)

    everything = [*own, *more]
    vars(command)["__signature__"] = inspect.Signature(
        sorted(everything, key=lambda p: p.default is not p.empty)
    )
    command.__annotations__ = {p.name: p.annotation for p in everything}
    return command


def keep_options(results: Path) -> None:
    """Writes the options of the command that runs beside its results, where there is one.

    results: a folder, which gets options.yaml, or a file: NAME.json gets NAME.options.yaml.
    """
    import yaml

    said = _resolved.get()
    if said is None:  # called as a function
        return
    command, values = said
    path = results / NAME if results.is_dir() else results.with_suffix(f".{NAME}")
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    write_whole(path, f"# {command} --config THIS_FILE\n{text}")


def resolved(context: Any) -> dict[str, Any]:
    """The options of a command that was called, by name, without those that are left open."""
    values = {_name(p): context.params.get(p.name) for p in context.command.params}
    return {
        name: _plain(value)
        for name, value in values.items()
        if value is not None and value != [] and name not in NOT_KEPT
    }


def _plain(value: Any) -> Any:
    return plain(value.value if isinstance(value, Enum) else value)


def _read(context: typer.Context, path: Path | None) -> Path | None:
    """Gives the options of a file to the command line's parser, as what is not said there."""
    if path is not None and not context.resilient_parsing:
        given = read_options(path, context.command.params)
        context.default_map = {**(context.default_map or {}), **given}
    return path


def read_options(path: Path, parameters: list[Any]) -> dict[str, Any]:
    """A file's options, by the names of a command's parameters; VlaError where it has others."""
    known = {name: p for p in parameters for name in _names(p) if name != "config"}
    found: dict[str, Any] = {}
    for key, value in _load(path).items():
        name = str(key).replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "--help lists the options"
            raise VlaError(f"{path} has an unknown option {key!r}", hint)
        parameter = known[name]
        if parameter.name in found:
            raise VlaError(f"{path} gives {_name(parameter)} twice", "keep one of its names")
        if value is not None:
            found[parameter.name] = _as_words(path, name, value, parameter)
    return found


def _load(path: Path) -> Mapping[Any, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise VlaError(f"{path} cannot be read ({reason})", "correct --config") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise VlaError(f"{path} does not name options", "write lines like batch_size: 32")
    return content


def _as_words(path: Path, name: str, value: Any, parameter: Any) -> Any:
    """A value as the command line's parser takes it."""
    flag = getattr(parameter, "is_flag", False)
    several = parameter.multiple or parameter.nargs != 1
    inner = value if isinstance(value, list) else [value]
    if any(isinstance(v, (dict, list)) for v in inner):
        raise VlaError(f"{path}: {name} is {value!r}", "give a value, or a list of values")
    if not flag and any(isinstance(v, bool) for v in inner):
        raise VlaError(f"{path}: {name} is {value!r}", "write words such as 'off' in quotes")
    if several:
        return [str(v) for v in inner]
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value if flag else str(value)


def _name(parameter: Any) -> str:
    return _names(parameter)[0]


def _names(parameter: Any) -> list[str]:
    """How a file may call a parameter: its option names, without dashes at the start."""
    if parameter.param_type_name == "argument":
        return [parameter.name]
    return [name.lstrip("-").replace("-", "_") for name in parameter.opts if name[:2] == "--"] or [
        parameter.name
    ]
