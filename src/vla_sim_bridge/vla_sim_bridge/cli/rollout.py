"""`vla rollout` and `vla demo`: closed-loop evaluation of a model in simulation."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from vla_inference.cli.output import (
    DeviceOption,
    EngineOption,
    JsonOption,
    QuantizationOption,
    VisionOption,
    print_json,
)
from vla_inference.errors import VlaError
from vla_sim_bridge.ros.sim_settings import SimSettings
from vla_sim_bridge.tasks.mimicgen_package import PREFIX

SHIPPED_MODEL = "models/stack-small"

Task = Annotated[str, typer.Option(help="Task, such as Stack_D2; docs/reference.md lists them.")]
Episodes = Annotated[int, typer.Option(help="Episodes to run.")]
Seed = Annotated[int, typer.Option(help="Random seed; the same seed gives the same run.")]
Model = Annotated[
    str | None,
    typer.Option(help="Checkpoint folder; default: the shipped small model."),
]
Horizon = Annotated[
    int | None,
    typer.Option(help="Control steps (0.05 s) until an episode fails; default: the task's own."),
]
Language = Annotated[
    str,
    typer.Option(
        help="Sentences: train, held-out (known words in new sentences), free (as people type)."
    ),
]
ExecuteSteps = Annotated[
    int | None,
    typer.Option(
        help="Lock step: executed steps of each chunk; default: 4, or all if there are fewer.",
        show_default=False,
    ),
]
LockStep = Annotated[
    bool,
    typer.Option("--lock-step/--real-time", help="Wait for each answer, or run at 20 Hz."),
]
Output = Annotated[Path | None, typer.Option(help="Results folder; default: results/TASK_TIME.")]
UnnormKey = Annotated[
    str | None, typer.Option(help="Name of the action statistics, if a model has several.")
]
Record = Annotated[int, typer.Option(help="Episodes to film, from the first; 0 for none.")]
Camera = Annotated[str, typer.Option(help="Camera that the model sees.")]
Width = Annotated[int, typer.Option(help="Width of its images, pixels.")]
Height = Annotated[int, typer.Option(help="Height of its images, pixels.")]
MimicgenPython = Annotated[
    str | None,
    typer.Option(help="For tasks mimicgen/...: the Python that has the package installed."),
]
MinSuccess = Annotated[
    float | None,
    typer.Option(help="Exit status 1 below this share of settled successes, 0 to 1."),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        help="ROS namespace of the run, to listen or publish from outside; / for none. Default: "
        "one of its own, so that runs beside each other never mix.",
        show_default=False,
    ),
]


def rollout(
    task: Task = "Stack_D0",
    episodes: Episodes = 100,
    seed: Seed = 7,
    model: Model = None,
    horizon: Horizon = None,
    language: Language = "train",
    execute_steps: ExecuteSteps = None,
    lock_step: LockStep = True,
    output: Output = None,
    device: DeviceOption = None,
    unnorm_key: UnnormKey = None,
    engine: EngineOption = "",
    vision: VisionOption = "",
    quantization: QuantizationOption = None,
    record: Record = 3,
    camera: Camera = "agentview",
    width: Width = 224,
    height: Height = 224,
    mimicgen_python: MimicgenPython = None,
    min_success: MinSuccess = None,
    namespace: Namespace = None,
    as_json: JsonOption = False,
) -> int:
    """Evaluate a model in closed loop over ROS 2: success over N episodes, report and video."""
    if min_success is not None and not 0 <= min_success <= 1:
        raise VlaError(f"--min-success is {min_success}", "give a share, 0 to 1")
    if horizon is not None and horizon < 1:
        raise VlaError(f"--horizon is {horizon}", "give at least 1")
    if execute_steps is not None and execute_steps < 1:
        raise VlaError(f"--execute-steps is {execute_steps}", "give at least 1")
    if execute_steps is not None and not lock_step:
        raise VlaError("--execute-steps is of lock step", "leave it out, or --real-time")
    if mimicgen_python and not task.lower().startswith(PREFIX):
        raise VlaError(f"--mimicgen-python is for tasks mimicgen/..., not {task}", "leave it out")
    if mimicgen_python:
        os.environ["VLA_MIMICGEN_PYTHON"] = mimicgen_python  # the node reads it, too
    settings = SimSettings(
        task=task,
        episodes=episodes,
        seed=seed,
        camera=camera,
        width=width,
        height=height,
        horizon=horizon or 0,
        language=language,
        lock_step=lock_step,
        execute_steps=execute_steps or 0,
        record_episodes=record,
        output=str(output or ""),
        model=find_model(model),
        summary=False,
    )
    how = {
        "device": device,
        "unnorm_key": unnorm_key,
        "engine": engine,
        "vision": vision,
        "quantization": quantization,
        "namespace": namespace,
    }
    settings.check()
    check_model(settings, how)
    reason = Reason()
    status, results = play(settings, how, as_json, reason)
    if results is None:
        why = reason.text or "for a reason that stands above"
        print(f"vla rollout: there are no results: {why}", file=sys.stderr)
        return status or 1
    if as_json:
        print_json(results)
    else:
        show(results, Path(settings.output))
    if status or not results["complete"]:
        return status or 1
    if min_success is not None and results["success_rate"] < min_success:
        print(
            f"vla rollout: success {results['success_rate']:.3f} is below {min_success:g}",
            file=sys.stderr,
        )
        return 1
    return 0


def demo(
    task: Task = "Stack_D0",
    episodes: Episodes = 3,
    seed: Seed = 7,
    model: Model = None,
    language: Language = "train",
    output: Output = None,
    device: DeviceOption = None,
    engine: EngineOption = "",
    vision: VisionOption = "",
    quantization: QuantizationOption = None,
    as_json: JsonOption = False,
) -> int:
    """Watch a model stack blocks over ROS 2: three episodes, a video and a report."""
    return rollout(
        task,
        episodes,
        seed,
        model,
        language=language,
        output=output,
        device=device,
        engine=engine,
        vision=vision,
        quantization=quantization,
        record=episodes,
        as_json=as_json,
    )


def find_model(given: str | None) -> str:
    """Absolute path of a checkpoint folder, by default the shipped one. For a model served
    elsewhere (NAME:ADDRESS) the address unchanged."""
    if given is None:
        prefixes = [p for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
        for prefix in prefixes:
            folder = Path(prefix, "share", "vla_inference", SHIPPED_MODEL)
            if (folder / "config.json").is_file():
                return str(folder)
        raise VlaError(
            f"the model that ships ({SHIPPED_MODEL}) is not among the installed files",
            "build the workspace again, or give --model FOLDER",
        )
    if "://" in given:
        return given
    folder = Path(given).expanduser().absolute()
    if not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "does not exist"
        raise VlaError(f"checkpoint folder {folder} {what}", "give --model FOLDER")
    return str(folder)


def check_model(settings: SimSettings, how: Mapping[str, str | None]) -> None:
    """Refuses whatever the model's node would refuse, before anything starts."""
    from vla_inference.policies.base import LoadOptions
    from vla_inference.policies.registry import check_policy

    options = LoadOptions.given(
        **{name: how[name] for name in ("device", "engine", "vision", "quantization")},
        action_space=how["unnorm_key"],
    )
    contract = check_policy(settings.model, options)
    if settings.lock_step:
        settings.steps_of(contract.chunk)


class Reason:
    """The first error that a node reports; later ones are usually its consequences."""

    PATTERN = re.compile(r"(?:^error: |\bcannot (?:configure|activate): )(.+)")

    def __init__(self) -> None:
        self.text = ""

    def __call__(self, line: str) -> None:
        found = self.PATTERN.search(line)
        if found and not self.text:
            self.text = found[1]


def play(
    settings: SimSettings,
    how: Mapping[str, str | None],
    quiet: bool,
    heard: Callable[[str], object] = lambda _: None,
) -> tuple[int, dict | None]:
    """Runs the launch file with these settings; returns exit status and results.json, if any.

    how: more arguments of the launch file, of the model's node.
    """
    from vla_inference.cli.launch import start

    folder = settings.output_folder()
    settings.output = str(folder)
    given = {
        name: getattr(settings, name)
        for name in (
            "task",
            "episodes",
            "seed",
            "camera",
            "width",
            "height",
            "horizon",
            "language",
            "lock_step",
            "execute_steps",
            "output",
            "record_episodes",
            "model",
            "summary",
        )
    }
    # ros2 launch refuses an argument without a value: what is empty is left to its default.
    given.update({k: v for k, v in how.items() if v})
    words = [f"{k}:={str(v).lower() if isinstance(v, bool) else v}" for k, v in given.items()]
    with _stdout_to_stderr() if quiet else contextlib.nullcontext():
        status = start(["vla_sim_bridge", "sim_eval.launch.xml", *words], heard=heard)
    path = folder / "results.json"
    if not path.exists():
        return status, None
    return status, json.loads(path.read_text())


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Redirects our stdout and our children's, so that stdout contains one JSON object only."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


def show(results: dict, folder: Path) -> None:
    """Prints the final table and the output paths."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from vla_sim_bridge.evaluation.report import summary_rows

    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, value in summary_rows(results):
        table.add_row(name, escape(value), style="bold" if name.startswith("success") else None)
    console = Console(highlight=False)
    console.print()
    console.print(table)
    console.print()
    for what, name in (
        ("report", "report.html"),
        ("video", "episodes.mp4"),
        ("metrics", "results.json"),
    ):
        path = folder / name
        if path.exists():
            print(f"{what:<8} {_short(path)}", flush=True)


def _short(path: Path) -> Path:
    with contextlib.suppress(ValueError):
        return path.relative_to(Path.cwd())
    return path
