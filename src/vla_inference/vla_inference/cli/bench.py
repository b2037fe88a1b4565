"""`vla bench`: how fast a model runs here, by every way of running it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from vla_inference.cli.output import JsonOption, VisionOption, print_json
from vla_inference.errors import VlaError
from vla_inference.system.files import writable, write_whole


def bench(
    model: Annotated[
        str, typer.Option(help="Checkpoint folder or Hub id; random weights, if left out.")
    ] = "",
    size: Annotated[
        str, typer.Option(help="Of random weights: openvla-7b (the usual on a GPU), small ...")
    ] = "",
    head: Annotated[str, typer.Option(help="Of random weights; the size's usual.")] = "",
    paths: Annotated[
        str,
        typer.Option(
            help="ENGINE[:QUANTISATION], separated by commas: reference,plain,torch,torch:int4; "
            "the device's usual ones."
        ),
    ] = "",
    vision: VisionOption = "",
    device: Annotated[str, typer.Option(help="cpu, cuda; CUDA where there is one.")] = "",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "",
    repeats: Annotated[int, typer.Option(help="Observations to time.", min=1)] = 50,
    pause: Annotated[float, typer.Option(help="Seconds between two observations.", min=0)] = 0.0,
    method: Annotated[str, typer.Option(help="Rounding of random weights: rtn or hqq.")] = "rtn",
    profile: Annotated[int, typer.Option(help="Kernels to list for each path, CUDA.")] = 0,
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Time observation to action by every engine and quantisation: medians, stages, floor."""
    from vla_inference.bench.speed import Plan, lines, run, table
    from vla_inference.checkpoints.random_weights import SIZES

    if size and size not in SIZES:
        raise VlaError(f"unknown size {size!r}", f"known: {', '.join(SIZES)}")
    if output is not None:
        writable(output)
    several = paths.replace(",", " ").split()
    plan = Plan(size, model, head, device, dtype, several, repeats, pause, method, profile, vision)
    report = run(plan, lambda text: print(text, file=sys.stderr, flush=True))
    if output is not None:
        write_whole(output, json.dumps(report, indent=1) + "\n")
    if as_json:
        print_json(report)
    else:
        print("\n".join(lines(table(report))))
