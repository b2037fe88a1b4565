"""`vla studio`: the page beside a graph that runs, or with what a preset starts."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import typer

from vla_inference.cli.options import takes
from vla_inference.options import options
from vla_inference.system.interrupts import end_with_parent
from vla_inference.system.workspace import needs_ros
from vla_studio.presets import Preset, load_preset
from vla_studio.settings import StudioSettings

PATIENCE = 20.0  # s for what was started to end


@takes(StudioSettings)
def studio(
    settings: StudioSettings,
    namespace: Annotated[str, typer.Option(help="Namespace of the robot's nodes.")] = "",
) -> int:
    """Watch and operate a robot from a browser."""
    settings.check()
    preset = load_preset(settings.preset)
    unsaid = {f.name for f, _ in options(settings) if getattr(settings, f.name) == f.default}
    speeds: dict[str, Any] = {k: v for k, v in preset.speeds.items() if k in unsaid}
    settings = replace(settings, **speeds)
    try:
        from vla_studio.ros.node import main
    except ImportError as error:
        raise needs_ros(error) from error

    said = [f"{f.name}:={_word(getattr(settings, f.name))}" for f, _ in options(settings)]
    said += ["use_sim_time:=true"] if preset.sim_time else []
    arguments = ["--ros-args", *(word for pair in said for word in ("-p", pair))]
    with _started(preset):
        return main([*arguments, *(["-r", f"__ns:={namespace}"] if namespace else [])])


@contextlib.contextmanager
def _started(preset: Preset) -> Iterator[None]:
    """The preset's commands, which end with the block or with this process."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "vla_inference.cli.main", *words],
            start_new_session=True,
            preexec_fn=partial(end_with_parent, signal.SIGINT),
        )
        for words in preset.run
    ]
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGINT)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
                continue
            process.kill()


def _word(value: Any) -> str:
    """As a node's arguments say it: YAML."""
    return json.dumps((value or ("",)) if isinstance(value, tuple) else value)
