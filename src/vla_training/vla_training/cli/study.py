"""`vla study`: compare training sets (also `python -m vla_training.cli.study`)."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vla_inference.cli.config_file import keep_options
from vla_inference.cli.options import takes
from vla_inference.cli.output import JsonOption, print_json
from vla_inference.system import progress
from vla_inference.system.files import writable
from vla_training.study.config import StudyConfig


@takes(StudyConfig)
def study(
    config: StudyConfig,
    dataset: Annotated[
        list[Path] | None,
        typer.Option(
            "--dataset", "--data", help="Dataset of episodes, may be repeated; default: generated."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Train the small model on a grid of episodes and epochs at equal cost, and evaluate each."""
    writable(Path(config.output), "folder")
    progress.report(0, 0, "starting")
    from vla_training.study.study import study as run

    config = replace(config, data=tuple(str(p.resolve()) for p in dataset or ()))
    if config.parallel < 0:
        config = replace(config, parallel=max(1, (os.cpu_count() or 1) - 2))
    try:
        found = run(config, _quiet if as_json else _say)
    finally:
        if Path(config.output).is_dir():  # it began
            keep_options(Path(config.output))
    if as_json:
        print_json(found)
    else:
        report = Path(config.output) / "report.md"
        print(report.read_text())
        print(report)
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


def _quiet(_: str) -> None:
    pass


if __name__ == "__main__":
    from vla_inference.cli.main import run_alone

    sys.exit(run_alone("study", "vla_training.cli.study:study"))
