"""`vla launch`: a launch file through `ros2 launch` where it exists, else the stand-in."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from vla_inference.errors import VlaError
from vla_inference.launch_standin.description import Declared, read_launch_file
from vla_inference.launch_standin.runner import run


def find_launch_file(package: str, name: str) -> Path:
    """The launch file of that name in a package's share folder."""
    prefixes = [p for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    for prefix in prefixes:
        share = Path(prefix, "share", package)
        if not share.is_dir():
            continue
        found = sorted(p for p in share.rglob(name) if p.is_file())
        if len(found) == 1:
            return found[0]
        if found:
            raise VlaError(
                f"package '{package}' has {len(found)} files named {name}",
                f"give the path of one, such as {found[0]}",
            )
        names = sorted(p.name for p in share.rglob("*.launch.xml"))
        raise VlaError(
            f"package '{package}' has no launch file '{name}'",
            f"it has {', '.join(names)}" if names else "it has none at all",
        )
    raise VlaError(
        f"there is no package '{package}' in AMENT_PREFIX_PATH",
        "build the workspace and source it, or correct the name",
    )


def split_arguments(words: list[str]) -> tuple[Path, dict[str, str]]:
    """FILE or PACKAGE FILE, and the name:=value pairs that follow."""
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
            f"{len(targets)} words that are no argument: {' '.join(targets)}",
            "give FILE or PACKAGE FILE, then name:=value pairs",
        )
    return path, {name: value for name, _, value in pairs}


def has_ros2_launch() -> bool:
    return shutil.which("ros2") is not None and importlib.util.find_spec("ros2launch") is not None


def run_ros2_launch(words: list[str]) -> int:
    """`ros2 launch`, which gets the terminal's Ctrl-C itself and SIGTERM through us."""
    process = subprocess.Popen(["ros2", "launch", *words])
    previous = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda n, _: process.send_signal(n)),
    }
    try:
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code


def start(words: list[str], *, stand_in: bool = False) -> int:
    """Launch FILE (or PACKAGE FILE) with name:=value words; returns the exit status."""
    path, given = split_arguments(words)
    if has_ros2_launch() and not stand_in:
        return run_ros2_launch([str(path), *(f"{k}:={v}" for k, v in given.items())])
    return run(read_launch_file(path, given))


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
        bool, typer.Option("--show-args", "-s", help="Print the file's arguments and end.")
    ] = False,
    stand_in: Annotated[
        bool, typer.Option("--stand-in", help="Don't use ros2 launch even where it is installed.")
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
