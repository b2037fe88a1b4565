"""`vla COMMAND ...`: the root of the command line.

Commands are functions with typer annotations, or groups of them (`command_group`), that packages
name in the entry point group `vla.commands`. Only the module of the chosen command is imported, so
that `vla --help` stays quick.
"""

from __future__ import annotations

import ast
import difflib
import importlib.machinery
import os
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from importlib import metadata
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vla_inference.errors import VlaError
from vla_inference.system.plugins import find_plugins
from vla_inference.system.workspace import or_build, stale_build, unexpected, without_ros

GROUP = "vla.commands"
OTHERS = ("vla_sim_bridge", "vla_training")  # packages that bring commands without ROS, too
USAGE = "usage: vla COMMAND [options]      (vla COMMAND --help tells about one)"


def find_subcommands() -> dict[str, EntryPoint]:
    """Name -> entry point of every installed command, by name."""
    return find_plugins(GROUP)


def summary(point: EntryPoint) -> str:
    """First docstring line of a command's function, read from the source without running it."""
    package, *inner = point.module.split(".")
    path: Sequence[str] | None = None
    for name in [package, *(".".join([package, *inner[: i + 1]]) for i in range(len(inner)))]:
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None:
            return "(not there: run `make setup`)"
        path = spec.submodule_search_locations
    try:
        path = (spec and spec.origin) or ""
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, TypeError, SyntaxError):
        return "(its source cannot be read)"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == point.attr:
            return (ast.get_docstring(node) or "").split("\n")[0]
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == point.attr:
            words = [n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant)]
            return str(words[0]) if words else ""
    return ""


def help_text(subcommands: dict[str, EntryPoint]) -> str:
    """All commands with one line each, grouped by package."""
    by_package: dict[str, list[EntryPoint]] = {}
    for point in subcommands.values():
        by_package.setdefault(point.module.split(".")[0], []).append(point)
    width = max(map(len, subcommands), default=0)
    lines = [USAGE]
    for package, points in sorted(by_package.items()):
        lines += ["", package]
        lines += [f"  {p.name:<{width}}  {summary(p)}".rstrip() for p in points]
    if not subcommands:
        lines += ["", "No commands are installed: build and source the workspace."]
    return "\n".join(lines)


def complain(where: str, text: str) -> None:
    print(f"{where}: {' '.join(text.split())}", file=sys.stderr, flush=True)


def run_subcommand(point: EntryPoint, arguments: list[str]) -> int:
    """Imports a command, runs it with its arguments and returns the exit status."""
    import typer.main

    from vla_inference.cli.config_file import with_config_file
    from vla_inference.cli.options import Command, command_group

    function = app = point.load()
    if not isinstance(app, typer.Typer):
        app = command_group()
        app.command(name=point.name, cls=Command)(with_config_file(function))
    command = typer.main.get_command(app)
    arguments = join_words(arguments, getattr(function, "several", ()))
    result = command.main(arguments, prog_name=f"vla {point.name}", standalone_mode=False)
    return result if isinstance(result, int) else 0


def join_words(words: Sequence[str], several: Collection[str]) -> list[str]:
    """`--tasks A B` -> `--tasks A,B` for the options in `several`, an attribute of the command.

    Tutorials of the field write lists so. The command splits them at commas.
    """
    joined: list[str] = []
    values = None  # how many the list at the end has; None: there is no such list
    for word in words:
        if word.startswith("-"):
            values = 0 if word.replace("_", "-") in several else None
        elif values is not None:
            values += 1
            if values > 1:
                joined[-1] += f",{word}"
                continue
        joined.append(word)
    return joined


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line. 0: success, 2: user error, 130: Ctrl-C, 1: internal error."""
    return _status("vla", _choose, list(sys.argv[1:] if arguments is None else arguments))


def run_alone(name: str, function: str) -> int:
    """What `main` returns, of one command (MODULE:FUNCTION): `python -m` without a workspace."""
    return _status(f"vla {name}", run_subcommand, EntryPoint(name, function, GROUP), sys.argv[1:])


def _choose(arguments: list[str]) -> int:
    subcommands = find_subcommands()
    if arguments == ["--version"]:
        print(f"vla {metadata.version('vla_inference')}")
        return 0
    if arguments[:1] == ["help"] and len(arguments) == 2:
        arguments = [arguments[1], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text(subcommands))
        return 0 if arguments else 2
    subcommand = arguments[0]
    if subcommand not in subcommands:
        hint = or_build(_instead(subcommand, subcommands))
        complain("vla", f"there is no command '{subcommand}'; {hint}")
        return 2
    return _status(f"vla {subcommand}", run_subcommand, subcommands[subcommand], arguments[1:])


def _instead(name: str, known: Collection[str]) -> str:
    """What to do about a command that is not installed."""
    if name == "studio":
        return "the studio is part of the workspace: run `make setup`"
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hints = [f"did you mean {' or '.join(close)}?"] if close else []
    if absent := [p for p in OTHERS if find_spec(p) is None]:
        come = f"commands come with {', '.join(absent)}: pip install ./src/{absent[0]} ..."
        hints.append(f"{'Other' if close else 'other'} {come}")
    return " ".join(hints) or "vla --help lists all"


def _status(where: str, function: Callable[..., int], *arguments: Any) -> int:
    """The function's return value, or the exit status of its exception, reported in one line."""
    try:
        return function(*arguments)
    except VlaError as error:
        if os.environ.get("VLA_DEBUG") == "1":
            traceback.print_exc()
        complain(where, str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; keep Python from complaining once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # a command may raise anything: it becomes a line and a status
        return _handle(error, where)


def _handle(error: Exception, where: str) -> int:
    """Exit status for what typer raises, told by its shape (its home moved between versions)."""
    if type(error).__name__ == "Abort":
        return 130
    if type(error).__name__ == "Exit":
        return int(getattr(error, "exit_code", 0))
    if hasattr(error, "format_message"):
        complain(
            where, f"{error.format_message().rstrip('.')}; '{where} --help' lists what it takes"
        )
        return int(getattr(error, "exit_code", 2))
    if isinstance(error, OSError) and error.filename is not None:
        if os.environ.get("VLA_DEBUG") == "1":
            traceback.print_exc()
        told = f"{error.filename}: {error.strerror}; look at the path, its rights and the disk"
        complain(where, told)
        return 2
    if told := without_ros(error) or stale_build(error):
        complain(where, told)
        return 2
    traceback.print_exc()
    complain(where, f"{unexpected(error)} with the above")
    return 1


if __name__ == "__main__":
    sys.exit(main())
