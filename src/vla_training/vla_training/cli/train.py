"""`vla train`: train the small model."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from vla_inference.cli.config_file import keep_options
from vla_inference.cli.options import takes
from vla_inference.cli.output import JsonOption, print_json
from vla_inference.errors import VlaError
from vla_inference.options import check_options
from vla_inference.system import progress
from vla_inference.system.files import writable
from vla_training.loader.sample_weights import SampleWeights
from vla_training.small_model.average import (
    CONFIG,
    WEIGHTS,
    average,
    check_average,
    check_checkpoint,
)
from vla_training.small_model.config import ResetImagesWanted, TrainConfig


@takes(TrainConfig, SampleWeights)
def train(
    config: TrainConfig,
    weights: SampleWeights,
    dataset: Annotated[
        list[Path],
        typer.Option(
            "--dataset", "--data", help="Dataset (HDF5 or RLDS), file or folder; may be repeated."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for state and checkpoint.")],
    reset_images: Annotated[
        list[str] | None,
        typer.Option(help="TASK:COUNT:SEED of images at the reset to make and train on as well."),
    ] = None,
    parallel: Annotated[
        int, typer.Option(help="Processes that make reset images; -1: one per core.")
    ] = -1,
    average_with: Annotated[
        Path | None,
        typer.Option(help="Checkpoint to average the trained one with, into OUTPUT/averaged."),
    ] = None,
    average_share: Annotated[
        float, typer.Option(help="Share of the trained weights in that average, 0 to 1.")
    ] = 0.75,
    devices: Annotated[int | None, typer.Option(help="GPUs; default: all, 0: the CPU.")] = None,
    processes: Annotated[
        int,
        typer.Option(help="Without GPUs: processes of one thread each that share a batch."),
    ] = 1,
    resume: Annotated[bool, typer.Option(help="Resume from the state in --output.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Train the small model on demonstrations, from scratch or from a checkpoint."""
    check_options(config)
    weights.check()
    if weights.of_datasets(len(dataset))[0] is not None and config.shares:
        raise VlaError("--dataset-weights with --shares", "leave one of them out")
    config = replace(config, weights=weights)
    if parallel < 1 and parallel != -1:
        raise VlaError(f"--parallel is {parallel}", "give at least 1, or -1 for one per core")
    if devices is not None and devices < 0:
        raise VlaError(f"--devices is {devices}", "give a number of GPUs, or 0 for the CPU")
    if processes < 1 or (processes > 1 and devices != 0):
        raise VlaError(
            f"--processes is {processes}", "give at least 1, and more only with --devices 0"
        )
    wanted = [ResetImagesWanted.parse(text) for text in reset_images or ()]
    if not 0 <= average_share <= 1:
        raise VlaError(f"--average-share is {average_share:g}", "give 0 to 1")
    if average_with is not None:
        check_average(average_with, config.layers)
    if config.start:
        check_checkpoint(Path(config.start), (WEIGHTS, CONFIG))
    if (output / "state").exists() and not resume:
        raise VlaError(
            f"{output} contains an earlier run",
            "continue with --resume, or choose another --output",
        )
    writable(output, "folder")
    # Imported late: `--help` and mistakes in the options should not wait for PyTorch.
    from vla_training.small_model.reset_images import make_reset_images
    from vla_training.small_model.train import train as run

    # No closure: with several devices another process calls it.
    tell = partial(_report, 0 if config.minutes else config.steps, as_json)
    count = (os.cpu_count() or 1) if parallel < 0 else parallel
    made = make_reset_images(output / "reset_images", wanted, count, tell)
    paths = [str(p) for p in (*dataset, *made)]
    try:
        checkpoint = run(paths, output, config, devices, resume, tell, processes=processes)
    finally:
        if output.is_dir():  # it began
            keep_options(output)
    if average_with is not None:
        checkpoint = average(average_with, checkpoint, output / "averaged", average_share)
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
    words = [f"step {report['step']}", f"loss {report['loss']:.4f}"]
    if "validation" in report:
        found = report["validation"]
        words.append("nothing held out" if found is None else f"validation {found[0]:.4f}")
    words.append(f"{report['samples_per_s']} frames/s")
    left = f"{seconds * (1 - done) / done:.0f} s left" if done else "time left not known yet"
    print("  ".join([*words, f"{100 * done:.0f} %, {left}"]), flush=True)


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
