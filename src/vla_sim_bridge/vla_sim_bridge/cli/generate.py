"""`vla generate`: generate demonstrations, with a progress bar on a terminal."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vla_inference.cli.config_file import keep_options
from vla_inference.cli.options import takes
from vla_inference.cli.output import JsonOption, print_json
from vla_inference.errors import VlaError
from vla_inference.options import Holds
from vla_inference.system import progress
from vla_sim_bridge.generation.config import GenerateConfig

ALIASES = {"wrist": "robot0_eye_in_hand"}


@takes(GenerateConfig)
def generate(
    config: GenerateConfig,
    tasks: Annotated[
        list[str],
        typer.Option("--task", "--tasks", help="Task; repeat it or separate by commas."),
    ] = ["Stack_D2"],  # noqa: B006
    output: Annotated[
        Path | None,
        typer.Option(
            help="Output folder, with a folder per task if there are several; "
            "default: datasets/TASK."
        ),
    ] = None,
    parallel: Annotated[int, typer.Option(help="Workers; -1: one per core.")] = -1,
    randomize_ranges: Annotated[
        Path | None,
        typer.Option(help="YAML file with ranges that replace those in docs/reference.md."),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to use; local: one on this machine."),
        Holds.LOCAL,
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Generate demonstrations in simulation; the same command resumes a stopped run."""
    from vla_sim_bridge.tasks import get_task

    asked = [word for words in tasks for word in words.replace(",", " ").split()]
    if of_package := [n for n in asked if get_task(n).package in ("mimicgen", "robocasa")]:
        raise VlaError(
            f"{of_package[0]} can be rolled out, not generated from",
            "generate with the package's own tools, or name one of our tasks",
        )
    names = list(dict.fromkeys(get_task(n).name for n in asked))
    if not names:
        raise VlaError("no task was given", "give --task Stack_D2")
    if parallel < 1 and parallel != -1:
        raise VlaError(f"--parallel is {parallel}", "give at least 1, or -1 for one per core")
    config = replace(
        config,
        cameras=tuple(dict.fromkeys(ALIASES.get(c, c) for c in config.cameras)),
        randomize_ranges=_ranges(randomize_ranges),
    )
    configs = [replace(config, task=name) for name in names]
    for config in configs:  # a mistake is told before hours of work on the tasks before it
        config.check()
    made = []
    for config in configs:
        folder = Path("datasets") / config.task if output is None else output
        if output is not None and len(names) > 1:
            folder = output / config.task
        try:
            path = _generate_one(config, folder, parallel, ray_address)
        except KeyboardInterrupt:
            told = f"{folder} keeps what was made; the same command goes on from there"
            print(f"vla generate: stopped; {told}", file=sys.stderr, flush=True)
            raise
        keep_options(path.parent)
        statistics = json.loads((path.parent / "statistics.json").read_text())
        made.append({"path": str(path), **statistics})
        if not as_json:
            print(f"{path}: {summary(statistics)}", flush=True)
    if as_json:
        print_json(made[0] if len(made) == 1 else {"data_sets": made})
    return 0


# See `vla_inference.cli.main.join_words`.
vars(generate)["several"] = {"--task", "--tasks", "--cameras"}


def summary(statistics: dict) -> str:
    """One line with the number of episodes, the time, the success rate and the failures."""
    low, high = statistics["success_rate_wilson95"]
    failures = ", ".join(f"{n} {reason}" for reason, n in statistics["failures"].items())
    return (
        f"{statistics['episodes']} episodes, {statistics['frames']} frames (an episode: median "
        f"{statistics['length_median']:.0f}, 5th to 95th percentile "
        f"{statistics['length_p5']:.0f} to {statistics['length_p95']:.0f}); "
        f"{100 * statistics['success_rate']:.1f} % of {statistics['attempts']} attempts (95 % "
        f"interval {100 * low:.0f} to {100 * high:.0f})"
        + (f"; failed: {failures}" if failures else "")
    )


def _ranges(path: Path | None) -> dict:
    if path is None:
        return {}
    import yaml

    try:
        ranges = yaml.safe_load(path.read_text()) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise VlaError(f"{path} cannot be read ({error})", "correct --randomize-ranges") from error
    if not isinstance(ranges, dict):
        raise VlaError(f"{path} does not map names to ranges", "write lines like mass: [0.8, 1.2]")
    return ranges


def _generate_one(config, folder: Path, parallel: int, ray_address: str | None) -> Path:
    """Generates with a progress bar on a terminal, else with a line every 10 s."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    from vla_sim_bridge.generation.generate import generate

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        told = [time.monotonic()]

        def line(p) -> None:
            report_progress(config, p)
            if time.monotonic() - told[0] >= 10:
                told[0] = time.monotonic()
                print(f"{config.task}: {progress_text(p)}", file=sys.stderr, flush=True)

        return generate(config, folder, parallel, line, ray_address)
    columns = TextColumn(config.task), BarColumn(), TextColumn("{task.fields[text]}")
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=config.episodes, text="starting")

        def move(p) -> None:
            report_progress(config, p)
            done = config.episodes - p.wanted + p.successes
            bar.update(task, completed=done, text=progress_text(p))

        return generate(config, folder, parallel, move, ray_address)


def report_progress(config, p) -> None:
    done = config.episodes - p.wanted + p.successes
    progress.report(
        min(done, config.episodes),
        config.episodes,
        f"{config.task}: {p.attempts} attempts",
        rate=p.rate,
        seconds_left=p.seconds_left,
    )


def progress_text(p) -> str:
    """Counts, rate and time left from a generation's `Progress`."""
    left = "-" if p.seconds_left == float("inf") else f"{max(0, p.seconds_left):.0f} s"
    return (
        f"{p.successes}/{p.wanted} episodes, {p.attempts} attempts, "
        f"{60 * p.rate:.1f} per minute, {left} left"
    )
