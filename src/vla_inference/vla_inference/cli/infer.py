"""`vla infer`: actions for the images of a folder, a video, a camera or a stream."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated

import numpy as np
import typer

from vla_inference.cli.options import takes
from vla_inference.cli.output import JsonOption, plain
from vla_inference.errors import VlaError
from vla_inference.inputs.video_sources import SourceFrame, open_source
from vla_inference.policies.base import LoadOptions
from vla_inference.types import ActionChunk, Observation, check_instruction


def line(frame: SourceFrame, chunk: ActionChunk) -> str:
    """One line with a frame's first action."""
    values = "  ".join(
        f"{d.name} {v:+.4f}" for d, v in zip(chunk.spec.dims, chunk.actions[0], strict=True)
    )
    more = f"  (+{len(chunk) - 1} steps)" if len(chunk) > 1 else ""
    return f"{frame.name:>8}  {values}{more}  {chunk.timing['total']:.1f} ms"


def record(frame: SourceFrame, chunk: ActionChunk) -> str:
    """One line of JSON with the whole chunk."""
    content = {
        "frame": frame.name,
        "stamp": frame.stamp,
        "names": chunk.spec.names,
        "actions": chunk.actions,
        "tokens": chunk.tokens,
        "timing_ms": chunk.timing,
    }
    return json.dumps(plain(content), ensure_ascii=False)


@takes(LoadOptions)
def infer(
    options: LoadOptions,
    model: Annotated[str, typer.Option(help="Checkpoint folder or Hub id.")],
    source: Annotated[
        str, typer.Option(help="Folder of images, video file, /dev/videoN or rtsp:// address.")
    ],
    instruction: Annotated[str, typer.Option(help="What the robot is to do.")],
    max_frames: Annotated[
        int, typer.Option(help="Stop after this many frames; 0: at the end.", min=0)
    ] = 0,
    rate: Annotated[
        float | None, typer.Option(help="Images per second to request from a camera.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict actions for each image of a folder, video file, camera or stream.

    With --json each image gives one line with a JSON object of its own.
    """
    from vla_inference.policies.registry import load_policy

    check_instruction(instruction)
    with open_source(source, rate=rate) as frames:
        policy = load_policy(model, options)
        policy.action_spec()
        if unknown := policy.unknown_words(instruction):
            print(f"the model was trained without: {', '.join(unknown)}", file=sys.stderr)
        needs = policy.needs
        if needs.images > 1 or needs.state:
            raise VlaError(
                f"model {policy.name} takes {needs.images} image(s) and {needs.state} numbers of "
                "state, and a source has one image alone",
                "measure it on a dataset with `vla eval`, or call act() from Python with an "
                "Observation",
            )
        times: list[float] = []
        begin = time.perf_counter()
        for frame in frames:
            chunk = policy.act(Observation({"image": frame.image}, instruction))
            times.append(chunk.timing["total"])
            print(record(frame, chunk) if as_json else line(frame, chunk), flush=True)
            if len(times) == max_frames:
                break
        seconds = time.perf_counter() - begin
    print(
        f"{len(times)} images, {np.median(times):.1f} ms each (median), "
        f"{len(times) / seconds:.1f} per second with reading",
        file=sys.stderr,
    )
