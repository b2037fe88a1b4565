"""`vla train`: train the small model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from vla_inference.cli.output import JsonOption, print_json
from vla_inference.errors import VlaError
from vla_inference.system import progress
from vla_inference.system.files import writable


def train(
    data: Annotated[
        list[Path], typer.Option(help="Dataset (HDF5 or RLDS), file or folder; may be repeated.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for state and checkpoint.")],
    batch_size: Annotated[int, typer.Option(help="Frames per step, over all devices.")] = 1024,
    steps: Annotated[int, typer.Option(help="Optimiser steps of the schedule.")] = 15000,
    minutes: Annotated[
        float | None, typer.Option(help="Let the schedule follow the clock instead of --steps.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Peak of the cosine schedule.")] = 1.5e-3,
    devices: Annotated[
        int | None, typer.Option(help="GPUs; all there are if left out, 0 for the CPU.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of initial weights and of the order of data.")] = 0,
    compile: Annotated[bool, typer.Option(help="Use torch.compile.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on from the state in --output.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Train the small model from scratch on generated demonstrations."""
    for name, value in (("--batch-size", batch_size), ("--steps", steps)):
        if value < 1:
            raise VlaError(f"{name} is {value}", "give at least 1")
    if not 0 < learning_rate < float("inf"):
        raise VlaError(f"--learning-rate is {learning_rate:g}", "give more than 0")
    if minutes is not None and minutes <= 0:
        raise VlaError(f"--minutes is {minutes}", "give more than 0")
    if (output / "state").exists() and not resume:
        raise VlaError(
            f"{output} holds an earlier run", "go on with --resume, or choose another --output"
        )
    writable(output, "folder")
    from vla_training.small_model.train import TrainConfig, train

    config = TrainConfig(
        batch_size=batch_size,
        steps=steps,
        minutes=minutes,
        learning_rate=learning_rate,
        seed=seed,
        compile=compile,
    )
    # No closure: with several devices another process calls it.
    tell = partial(_report, 0 if minutes else steps, as_json)
    checkpoint = train([str(p) for p in data], output, config, devices, resume, tell)
    if as_json:
        print_json({"checkpoint": str(checkpoint)})
    else:
        print(f"checkpoint {checkpoint}")
    return 0


def _tell(report: dict) -> None:
    if "message" in report:
        print(report["message"], flush=True)
        return
    done, seconds = report["progress"], report["seconds"]
    left = seconds * (1 - done) / done if done else float("inf")
    held_out = report["validation"]
    seen = "nothing held out" if held_out is None else f"validation {held_out[0]:.4f}"
    print(
        f"step {report['step']}  loss {report['loss']:.4f}  {seen}  "
        f"{report['samples_per_s']} frames/s  "
        f"{100 * done:.0f} %, {left:.0f} s left",
        flush=True,
    )


def _report(total: int, quiet: bool, report: dict) -> None:
    if not quiet:
        _tell(report)
    if "message" in report:
        progress.report(0, total, report["message"])
        return
    done, seconds = report["progress"], report["seconds"]
    progress.report(
        report["step"],
        total,
        f"loss {report['loss']:.4f}",
        fraction=done,
        rate=report["step"] / seconds if seconds else None,
        seconds_left=seconds * (1 - done) / done if done else None,
    )
