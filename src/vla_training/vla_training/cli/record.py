"""`vla record`: record episodes from topics into bags."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from vla_inference.errors import VlaError
from vla_inference.system.workspace import needs_ros


def record(
    output: Annotated[Path, typer.Option(help="Folder that gets a bag for each episode.")],
    episodes: Annotated[
        int, typer.Option(help="Stop after this many episodes; 0: at Ctrl-C.")
    ] = 0,
    split: Annotated[
        str,
        typer.Option(
            help="Episodes by status (EpisodeStatus), service (~/record), or off.",
            metavar="status|service|off",
        ),
    ] = "status",
    storage: Annotated[
        str, typer.Option(help="Format of the bags.", metavar="mcap|sqlite3")
    ] = "mcap",
    images: Annotated[
        str,
        typer.Option(help="How raw images are stored; png is lossless.", metavar="png|jpeg|raw"),
    ] = "png",
    image_transport: Annotated[
        str, typer.Option(help="How images come.", metavar="raw|compressed")
    ] = "raw",
    topic: Annotated[
        list[str] | None, typer.Option(help="Additional topic; may be repeated.")
    ] = None,
    remap: Annotated[
        list[str] | None,
        typer.Option(help="image:=/camera/image_raw and the like; may be repeated."),
    ] = None,
    use_sim_time: Annotated[
        bool, typer.Option("--use-sim-time", help="Time is a simulation's, from /clock.")
    ] = False,
) -> int:
    """Record topics, one bag per episode."""
    values = {
        "output": str(output.expanduser().absolute()),
        "split": split,
        "storage": storage,
        "images": images,
        "image_transport": image_transport,
    }
    words = [w for k, v in values.items() for w in ("-p", f"{k}:='{_plain(k, v)}'")]
    words += ["-p", f"episodes:={episodes}", "-p", f"use_sim_time:={use_sim_time}".lower()]
    if topic:
        listed = ", ".join(f"'{_plain('topic', t)}'" for t in topic)
        words += ["-p", f"topics:=[{listed}]"]
    for pair in remap or ():
        if ":=" not in pair:
            raise VlaError(f"--remap {pair!r}", "give OLD:=NEW")
        words += ["-r", pair]
    os.environ.setdefault("RCUTILS_LOGGING_USE_STDOUT", "0")
    try:
        from vla_training.ros.record_node import main
    except ImportError as error:
        raise needs_ros(error) from error
    return main(["vla", "--ros-args", *words])


def _plain(name: str, value: str) -> str:
    if "'" in value or "\n" in value:
        raise VlaError(f"--{name} is {value!r}", "leave out quotes and line breaks")
    return value
