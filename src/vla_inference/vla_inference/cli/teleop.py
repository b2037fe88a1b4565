"""`vla teleop`: a person moves the robot, and takes it over from the model and gives it back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated

import typer

from vla_inference.cli.options import takes
from vla_inference.errors import VlaError
from vla_inference.options import check_options, options
from vla_inference.system.workspace import needs_ros
from vla_inference.teleop.mapping import load_keys
from vla_inference.teleop.settings import TeleopSettings
from vla_inference.teleop.terminal import is_terminal
from vla_inference.teleop.wish import AXES


@takes(TeleopSettings)
def teleop(
    settings: TeleopSettings,
    namespace: Annotated[str, typer.Option(help="Namespace of the robot's nodes.")] = "",
) -> int:
    """Move the robot by hand, take it over from the model and give it back."""
    check_options(settings)
    if namespace and not namespace.startswith("/"):
        raise VlaError(f"namespace {namespace}", f"give /{namespace}")
    try:
        from vla_inference.ros.teleop.node import main
    except ImportError as error:
        raise needs_ros(error) from error
    settings = replace(settings, terminal=settings.terminal or is_terminal())
    if settings.terminal:
        print(_help(settings), flush=True)
    said = [f"{f.name}:={json.dumps(getattr(settings, f.name))}" for f, _ in options(settings)]
    arguments = ["--ros-args", *(word for pair in said for word in ("-p", pair))]
    return main([*arguments, *(["-r", f"__ns:={namespace}"] if namespace else [])])


def _help(settings: TeleopSettings) -> str:
    """The terminal's keys, on a line."""
    keyboard = settings.device == "keyboard"
    keys = load_keys(settings.mapping if keyboard else "")
    moves = [
        f"{key} {'+' if sign > 0 else '-'}{AXES[axis]}"
        for key, (axis, sign) in keys.motions.items()
    ]
    acts = [f"{key} {act.replace('_', ' ')}" for key, act in keys.acts.items()]
    holds = [f"{key} hold" for key in sorted(keys.holds)]
    return "; ".join([*(moves if keyboard else ()), *acts, *holds, "Ctrl-C end"])
