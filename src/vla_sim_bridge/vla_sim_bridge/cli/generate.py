"""`vla generate`: demonstrations, with a bar on a terminal and lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from vla_inference.cli.options import Holds
from vla_inference.cli.output import JsonOption, print_json
from vla_inference.errors import VlaError
from vla_inference.system import progress

ALIASES = {"wrist": "robot0_eye_in_hand"}


def generate(
    tasks: Annotated[
        list[str],
        typer.Option("--task", "--tasks", help="Task; repeat it or separate by commas."),
    ] = ["Stack_D2"],  # noqa: B006
    episodes: Annotated[int, typer.Option(help="Successful episodes per task.")] = 100,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder, a folder per task in it if several; datasets/TASK if not set."),
    ] = None,
    cameras: Annotated[
        str, typer.Option(help="Cameras, separated by commas: agentview,wrist,frontview.")
    ] = "agentview",
    camera_width: Annotated[int, typer.Option(help="Width of the images, pixels.")] = 224,
    camera_height: Annotated[int, typer.Option(help="Height of the images, pixels.")] = 224,
    seed: Annotated[int, typer.Option(help="All chance comes from it.")] = 0,
    parallel: Annotated[int, typer.Option(help="Workers; -1: one per core.")] = -1,
    method: Annotated[str, typer.Option(help="scripted, or mimicgen.")] = "scripted",
    source: Annotated[
        Path | None,
        typer.Option(help="HDF5 with sources for mimicgen; the human's that ships."),
    ] = None,
    select_source: Annotated[
        str,
        typer.Option(
            help="mimicgen: random, nearest_neighbor_object, nearest_neighbor_robot_distance."
        ),
    ] = "nearest_neighbor_object",
    nearest: Annotated[int, typer.Option(help="mimicgen: chance decides among so many.")] = 3,
    noise: Annotated[
        float, typer.Option(help="scripted: most executed noise, full actions, 0 to 1.")
    ] = 0.2,
    horizon: Annotated[
        int | None,
        typer.Option(
            help="Steps until an attempt has failed, the task's own; mimicgen: 10 times."
        ),
    ] = None,
    randomize: Annotated[
        str, typer.Option(help="Any of colours,camera,light,dynamics; nothing, if left out.")
    ] = "",
    randomize_every: Annotated[
        str, typer.Option(help="episode, or frame; dynamics always hold for an episode.")
    ] = "episode",
    randomize_ranges: Annotated[
        Path | None, typer.Option(help="YAML with other ranges than docs/reference.md lists.")
    ] = None,
    recovery: Annotated[
        float, typer.Option(help="Share of episodes where the arm or an object is pushed off.")
    ] = 0.0,
    keep_failures: Annotated[
        bool, typer.Option("--keep-failures", help="Keep failed attempts in failed.hdf5.")
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to work on; local: one on this machine."),
        Holds.LOCAL,
    ] = None,
    images: Annotated[bool, typer.Option(help="Render the cameras; leave out for speed.")] = True,
    as_json: JsonOption = False,
) -> int:
    """Generate demonstrations in simulation; the same call resumes one that was stopped."""
    from vla_sim_bridge.generation.generate import GenerateConfig
    from vla_sim_bridge.tasks import get_task
    from vla_sim_bridge.tasks.mimicgen_package import PREFIX

    asked = _words(",".join(tasks))
    if of_package := [n for n in asked if n.lower().startswith(PREFIX)]:
        raise VlaError(
            f"{of_package[0]} can be rolled out, not generated from",
            "generate with the package's own tools, or name one of our tasks",
        )
    names = list(dict.fromkeys(get_task(n).name for n in asked))
    if not names:
        raise VlaError("no task was given", "give --task Stack_D2")
    _check(camera_width, camera_height, noise, horizon, parallel, source)
    views = tuple(dict.fromkeys(ALIASES.get(c, c) for c in _words(cameras)))
    if images and not views:
        raise VlaError("no camera was given", "give --cameras agentview, or --no-images")
    configs = [
        GenerateConfig(
            name,
            episodes,
            views,
            camera_width,
            camera_height,
            seed,
            method,
            None if source is None else str(source),
            noise,
            horizon or get_task(name).horizon,
            images=images,
            selection=select_source,
            nearest=nearest,
            randomize=_words(randomize),
            randomize_every=randomize_every,
            randomize_ranges=_ranges(randomize_ranges),
            recovery=recovery,
            keep_failures=keep_failures,
        )
        for name in names
    ]
    for config in configs:  # a mistake is told before hours of work on the tasks before it
        config.check()
    made = []
    for config in configs:
        folder = Path("datasets") / config.task if output is None else output
        if output is not None and len(names) > 1:
            folder = output / config.task
        path = _generate_one(config, folder, parallel, ray_address)
        statistics = json.loads((path.parent / "statistics.json").read_text())
        made.append({"path": str(path), **statistics})
        if not as_json:
            print(f"{path}: {summary(statistics)}", flush=True)
    if as_json:
        print_json(made[0] if len(made) == 1 else {"data_sets": made})
    return 0


generate.several = {"--task", "--tasks", "--cameras"}  # see `vla_inference.cli.main.join_words`


def summary(statistics: dict) -> str:
    """One line: how many, how long, how often it worked and why it did not."""
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


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.replace(",", " ").split())


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


def _check(width, height, noise, horizon, parallel, source) -> None:
    for name, value in (("--camera-width", width), ("--camera-height", height)):
        if not 16 <= value <= 4096:
            raise VlaError(f"{name} is {value}", "give 16 to 4096 pixels")
    if not 0 <= noise <= 1:
        raise VlaError(f"--noise is {noise}", "give 0 to 1")
    if horizon is not None and horizon < 1:
        raise VlaError(f"--horizon is {horizon}", "give at least 1")
    if parallel < 1 and parallel != -1:
        raise VlaError(f"--parallel is {parallel}", "give at least 1, or -1 for one per core")
    if source is not None and not source.is_file():
        raise VlaError(f"there is no source file {source}", "correct --source")


def _generate_one(config, folder: Path, parallel: int, ray_address: str | None) -> Path:
    """Generate with a progress bar on a terminal, a line every 10 s elsewhere."""
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
    """Counts, rate and time left of a generation's `Progress`."""
    left = "-" if p.seconds_left == float("inf") else f"{max(0, p.seconds_left):.0f} s"
    return (
        f"{p.successes}/{p.wanted} episodes, {p.attempts} attempts, "
        f"{60 * p.rate:.1f} per minute, {left} left"
    )
