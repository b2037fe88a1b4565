"""`vla study`; where no workspace is built, `python -m vla_training.cli.study`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from vla_inference.cli.output import JsonOption, print_json
from vla_inference.errors import VlaError
from vla_inference.system import progress
from vla_inference.system.files import writable


def study(
    output: Annotated[Path, typer.Option(help="The study's folder; the same call goes on in it.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Dataset of episodes, may be repeated; generated if left out."),
    ] = None,
    task: Annotated[str, typer.Option(help="Task of the closed loop.")] = "Stack_D2",
    episodes: Annotated[
        str, typer.Option(help="Numbers of episodes, by commas.")
    ] = "250,500,1000,2000",
    passes: Annotated[
        str, typer.Option(help="Episodes times epochs, by commas: what training costs.")
    ] = "8000",
    minutes: Annotated[
        float | None, typer.Option(help="For all training; takes the place of --passes.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Models of each kind.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Frames per step.")] = 256,
    learning_rate: Annotated[float, typer.Option(help="Peak of the cosine schedule.")] = 1.5e-3,
    start: Annotated[
        Path | None, typer.Option(help="Checkpoint to begin with; from scratch if left out.")
    ] = None,
    eval_episodes: Annotated[int, typer.Option(help="Episodes played with each model.")] = 100,
    eval_seed: Annotated[int, typer.Option(help="Theirs; the same ones for all models.")] = 1000,
    horizon: Annotated[
        int | None, typer.Option(help="Control steps until one has failed; the task's own.")
    ] = None,
    execute_steps: Annotated[int, typer.Option(help="Steps executed of each chunk.")] = 4,
    devices: Annotated[
        int | None, typer.Option(help="GPUs, a model on each; all, 0 for the CPU.")
    ] = None,
    compile: Annotated[bool, typer.Option(help="Use torch.compile.")] = False,
    parallel: Annotated[
        int, typer.Option(help="Processes that play; -1: the cores less 2. 0: no other process.")
    ] = -1,
    as_json: JsonOption = False,
) -> int:
    """Episodes or epochs: train the small model on a grid of both at equal cost, and play."""
    writable(output, "folder")
    progress.report(0, 0, "starting")
    from vla_training.study.config import StudyConfig
    from vla_training.study.study import study as run

    if parallel < 0:
        parallel = max(1, (os.cpu_count() or 1) - 2)
    config = StudyConfig(
        str(output),
        tuple(str(p.resolve()) for p in data or ()),
        task,
        _numbers("--episodes", episodes),
        _numbers("--passes", passes),
        seeds,
        minutes,
        batch_size,
        learning_rate,
        str(start) if start else "",
        eval_episodes,
        eval_seed,
        horizon,
        execute_steps,
        devices,
        compile,
        parallel,
    )
    found = run(config, _quiet if as_json else _say)
    if as_json:
        print_json(found)
    else:
        print((output / "report.md").read_text())
        print(output / "report.md")
    return 0


def _numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(t) for t in text.replace(",", " ").split())
    except ValueError:
        raise VlaError(f"{name} is {text!r}", "give whole numbers, separated by commas") from None


def _say(text: str) -> None:
    print(text, flush=True)


def _quiet(_: str) -> None:
    pass


if __name__ == "__main__":
    from vla_inference.cli.main import run_alone

    sys.exit(run_alone("study", "vla_training.cli.study:study"))
