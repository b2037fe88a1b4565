"""`vla launch`: run a launch file with ROS's own launch, or the stand-in where that is missing."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from vla_inference.cli.launch_standin.description import Declared, read_launch_file
from vla_inference.cli.launch_standin.runner import STOPPING, run
from vla_inference.errors import VlaError
from vla_inference.system import interrupts
from vla_inference.system.prefixes import prefixes, share_folders
from vla_inference.system.workspace import or_build


def find_launch_file(package: str, name: str) -> Path:
    """The launch file of that name in a package's share folder."""
    for share in share_folders(package):
        found = sorted(p for p in share.rglob(name) if p.is_file())
        if len(found) == 1:
            return found[0]
        if found:
            raise VlaError(
                f"package '{package}' has {len(found)} files named {name}",
                f"give the path of one, such as {found[0]}",
            )
        problem = f"package '{package}' has no launch file '{name}'"
        raise VlaError(problem, or_build(_instead(share, name)))
    raise VlaError(
        f"there is no package '{package}' in AMENT_PREFIX_PATH",
        "build the workspace and source it, or correct the name",
    )


def _instead(share: Path, name: str) -> str:
    """Where else the launch file exists, otherwise which launch files the package has."""
    found = ((p / "share").glob(f"*/launch/{name}") for p in prefixes())
    if others := sorted(path.parts[-3] for paths in found for path in paths):
        return f"'{others[0]}' has it: vla launch {others[0]} {name}"
    names = sorted(p.name for p in share.rglob("*.launch.xml"))
    return f"it has {', '.join(names)}" if names else "it has none at all"


def split_arguments(words: list[str]) -> tuple[Path, dict[str, str]]:
    """FILE or PACKAGE FILE, and the name:=value pairs that follow."""
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name.isidentifier() and not Path(word).exists():
            raise VlaError(f"{word} is not a launch argument", f"write {name}:={value}")
    targets = [w for w in words if ":=" not in w]
    pairs = [w.partition(":=") for w in words if ":=" in w]
    for name, _, value in pairs:
        if not name:
            raise VlaError(f"argument ':={value}' has no name", "write name:=value")
    if len(targets) == 2:
        path = find_launch_file(*targets)
    elif len(targets) == 1:
        path = Path(targets[0])
        if not path.is_file():
            raise VlaError(
                f"there is no launch file {path}", "give its path, or package and file name"
            )
    else:
        raise VlaError(
            f"{len(targets)} words instead of FILE or PACKAGE FILE: {' '.join(targets)}",
            "give one of these, then name:=value pairs",
        )
    return path, {name: value for name, _, value in pairs}


def has_ros_launch() -> bool:
    return all(map(importlib.util.find_spec, ("launch", "launch_xml", "launch_ros")))


def run_ros_launch(path: Path, given: Mapping[str, str]) -> int:
    """ROS's own launch, in a process of its own; 128 + n where signal n ended it.

    Whatever signal asks us to stop reaches it as one SIGINT: at SIGTERM it would leave its nodes
    behind. It is out of the terminal's reach, so that Ctrl-C does not come twice.
    """
    words = [str(path), *(f"{k}:={v}" for k, v in given.items())]
    process = subprocess.Popen(
        [sys.executable, "-m", "vla_inference.cli.launch_standin.ros_launch", *words],
        start_new_session=True,
        preexec_fn=partial(interrupts.end_with_parent, signal.SIGINT),
    )
    asked: list[int] = []

    def stop(number: int, _: object) -> None:
        if not asked:
            process.send_signal(signal.SIGINT)
        asked.append(number)

    with interrupts.handled(stop, STOPPING):
        code = process.wait()
    if asked:
        return 128 + asked[0]
    return 128 - code if code < 0 else code


def start(
    words: list[str], *, stand_in: bool = False, heard: Callable[[str], object] = lambda _: None
) -> int:
    """Launch FILE (or PACKAGE FILE) with name:=value words; returns the exit status.

    heard: is called with the nodes' lines of standard error, by the stand-in alone.
    """
    if importlib.util.find_spec("rclpy") is None:
        raise VlaError(
            "ROS 2, over which nodes run, is not installed here",
            "run `make setup` in the workspace, or source it; without ROS see docs/how-to.md, "
            "'Use the library without ROS'",
        )
    path, given = split_arguments(words)
    if has_ros_launch() and not stand_in:
        return run_ros_launch(path, given)
    return run(read_launch_file(path, given), heard)


def describe(argument: Declared) -> str:
    choices = f" (one of {', '.join(argument.choices)})" if argument.choices else ""
    default = "required" if argument.default is None else f"default: {argument.default!r}"
    return f"  {argument.name}:=   {argument.description or '-'}{choices}; {default}"


def launch(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[PACKAGE] FILE [NAME:=VALUE]...",
            help="A launch file by path, or by package and name, and its arguments.",
            show_default=False,
        ),
    ],
    show_args: Annotated[
        bool, typer.Option("--show-args", "-s", help="Print the file's arguments and exit.")
    ] = False,
    stand_in: Annotated[
        bool,
        typer.Option("--stand-in", help="Use the stand-in even if ROS's own launch is installed."),
    ] = False,
) -> int:
    """Start nodes from a launch file, with or without a ROS installation."""
    if not show_args:
        return start(words, stand_in=stand_in)
    path, given = split_arguments(words)
    declared = read_launch_file(path, given, show_only=True).declared.values()
    print(f"arguments of {path.name}:")
    print("\n".join(map(describe, declared)) if declared else "  none")
    return 0
