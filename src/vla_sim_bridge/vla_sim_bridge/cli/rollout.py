"""`vla rollout` and `vla demo`: closed-loop evaluation of a model in simulation."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from vla_inference.checkpoints.hub import HUB_ID
from vla_inference.cli.config_file import keep_options
from vla_inference.cli.options import takes
from vla_inference.cli.output import JsonOption, print_json
from vla_inference.errors import VlaError
from vla_inference.options import Holds
from vla_inference.policies.base import Contract, LoadOptions, Needs, RunOptions
from vla_inference.system.prefixes import share_folders
from vla_sim_bridge.ros.sim_settings import SimSettings
from vla_sim_bridge.tasks import get_task
from vla_sim_bridge.tasks.mimicgen_package import PREFIX

WRIST, STATE = "robot0_eye_in_hand", 8  # the second camera; numbers of a world's state
FINGERS = ["finger_joint1", "finger_joint2"]  # as the simulation names them
SHIPPED_MODEL = "models/stack-small"

Task = Annotated[str, typer.Option(help="Task, such as Stack_D2; docs/reference.md lists them.")]
Episodes = Annotated[int, typer.Option(help="Episodes to run.")]
Seed = Annotated[int, typer.Option(help="Random seed; the same seed gives the same run.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "--policy",
        help="Checkpoint folder or openpi:ws://HOST:PORT, for LIBERO a Hub id too; default: the "
        "shipped small model.",
    ),
]
Horizon = Annotated[
    int | None,
    typer.Option(help="Control steps (0.05 s) until an episode fails; default: the task's own."),
]
Language = Annotated[
    str,
    typer.Option(
        help="Sentences: train, held-out (known words in new sentences), free (as people type).",
        metavar="train|held-out|free",
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
RecordFailures = Annotated[
    int,
    typer.Option(help="Failed episodes to keep as films of what the model saw; 0 for none."),
]
First = Annotated[int, typer.Option(help="Index of the first episode.", min=0)]
Only = Annotated[
    str,
    typer.Option(
        help="Indices of the episodes to run, separated by commas, as reports have them."
    ),
]
Camera = Annotated[str, typer.Option(help="Camera that the model sees.")]
Width = Annotated[
    int | None, typer.Option(help="Width of its images, pixels; default: 224, LIBERO's 256.")
]
Height = Annotated[
    int | None, typer.Option(help="Height of its images, pixels; default: 224, LIBERO's 256.")
]
Ros = Annotated[
    bool | None,
    typer.Option(
        "--ros/--processes",
        help="Over ROS 2, or in worker processes (LIBERO's tasks only, their default).",
        show_default=False,
    ),
]
ObservationMapName = Annotated[
    str,
    typer.Option(
        "--map",
        help="LIBERO: observation map, such as libero (images upright), libero_oft or libero_pi "
        "(mirrored, as released models want them); default: libero_pi for a model that is "
        "served elsewhere, else libero_oft.",
        show_default=False,
    ),
    Holds.NAME_OR_PATH,
]
Parallel = Annotated[
    int, typer.Option(help="LIBERO: workers; -1: as many as cores and memory allow.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="LIBERO: Ray cluster to use; local: one on this machine."),
    Holds.LOCAL,
]
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


@takes(RunOptions)
def rollout(
    run: RunOptions,
    task: Task = "Stack_D0",
    episodes: Episodes = 100,
    seed: Seed = 7,
    model: Model = None,
    horizon: Horizon = None,
    language: Language = "train",
    execute_steps: ExecuteSteps = None,
    lock_step: LockStep = True,
    output: Output = None,
    unnorm_key: UnnormKey = None,
    record: Record = 3,
    record_failures: RecordFailures = 20,
    first: First = 0,
    only: Only = "",
    camera: Camera = "agentview",
    width: Width = None,
    height: Height = None,
    mimicgen_python: MimicgenPython = None,
    min_success: MinSuccess = None,
    namespace: Namespace = None,
    ros: Ros = None,
    observation_map: ObservationMapName = "",
    parallel: Parallel = -1,
    ray_address: RayAddress = None,
    as_json: JsonOption = False,
) -> int:
    """Evaluate a model in closed loop over ROS 2: success over N episodes, report and video."""
    from vla_sim_bridge.envs.protocol import check_installed

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
    if get_task(task).package == "libero" and not ros:
        from vla_sim_bridge.libero import command

        if not lock_step:
            raise VlaError("--real-time is over ROS 2", "give --ros as well")
        indices = SimSettings(task=task, only_episodes=only).only
        if first and indices:
            raise VlaError("both --first and --only were given", "leave one out")
        found, folder = command.run(
            task,
            find_model(model, hub=True),
            LoadOptions.of(run, unnorm_key or ""),
            episodes=episodes,
            seed=seed,
            horizon=horizon or 0,
            execute_steps=execute_steps or 0,
            observation_map=observation_map,
            width=width or 0,
            height=height or 0,
            parallel=parallel,
            ray=ray_address or "",
            films=record,
            failures=record_failures,
            first=first,
            only=indices,
            output=output,
        )
        return finish(0, found, folder, as_json, min_success)
    if ros is False or observation_map or parallel != -1 or ray_address:
        raise VlaError(
            "--processes, --map, --parallel and --ray-address are for LIBERO without ROS",
            "leave them out",
        )
    if mimicgen_python:
        os.environ["VLA_MIMICGEN_PYTHON"] = mimicgen_python  # the node reads it, too
    usual = 256 if get_task(task).package == "libero" else 224
    settings = SimSettings(
        task=task,
        episodes=episodes,
        seed=seed,
        camera=camera,
        width=width or usual,
        height=height or usual,
        horizon=horizon or 0,
        language=language,
        lock_step=lock_step,
        execute_steps=execute_steps or 0,
        first_episode=first,
        only_episodes=only,
        record_episodes=record,
        record_failures=record_failures,
        output=str(output or ""),
        model=find_model(model),
        summary=False,
    )
    how = {**asdict(run), "unnorm_key": unnorm_key, "namespace": namespace}
    settings.check()
    check_installed(get_task(settings.task))
    contract = check_model(settings, LoadOptions.of(run, unnorm_key or ""))
    if get_task(task).package == "libero" and lock_step and not execute_steps:
        from vla_inference.serving.openpi.observation_maps import ObservationMap
        from vla_sim_bridge.libero.command import steps_of, usual_map

        published = ObservationMap.load(usual_map(settings.model))
        settings.execute_steps = steps_of(contract, published, 0)
    reason = Reason()
    with tempfile.TemporaryDirectory() as temporary:
        more = give_what_it_needs(settings, contract.needs, Path(temporary))
        status, results = play(settings, {**how, **more}, as_json, reason)
    if results is None:
        why = reason.text or "for a reason that stands above"
        print(f"vla rollout: there are no results: {why}", file=sys.stderr)
        return status or 1
    return finish(status, results, Path(settings.output), as_json, min_success)


def finish(
    status: int, results: dict, folder: Path, as_json: bool, min_success: float | None
) -> int:
    """Tells the results; returns the exit status."""
    keep_options(folder)
    if as_json:
        print_json(results)
    else:
        show(results, folder)
    if status or not results["complete"]:
        return status or 1
    if min_success is not None and results["success_rate"] < min_success:
        print(
            f"vla rollout: success {results['success_rate']:.3f} is below {min_success:g}",
            file=sys.stderr,
        )
        return 1
    return 0


@takes(RunOptions)
def demo(
    run: RunOptions,
    task: Task = "Stack_D0",
    episodes: Episodes = 3,
    seed: Seed = 7,
    model: Model = None,
    language: Language = "train",
    output: Output = None,
    as_json: JsonOption = False,
) -> int:
    """Watch a model stack blocks over ROS 2: three episodes, a video and a report."""
    return rollout(
        task=task,
        episodes=episodes,
        seed=seed,
        model=model,
        language=language,
        output=output,
        record=episodes,
        as_json=as_json,
        **asdict(run),
    )


def find_model(given: str | None, hub: bool = False) -> str:
    """Absolute path of a checkpoint folder, by default the shipped one. For a model served
    elsewhere (NAME:ADDRESS) the address unchanged, and for one of the Hub its id, if `hub`."""
    if given is None:
        for folder in share_folders("vla_inference", SHIPPED_MODEL):
            if (folder / "config.json").is_file():
                return str(folder)
        raise VlaError(
            f"the model that ships ({SHIPPED_MODEL}) is not among the installed files",
            "build the workspace again, or give --model FOLDER",
        )
    if "://" in given:
        return given
    if hub and HUB_ID.fullmatch(given) and not Path(given).exists():
        return given
    folder = Path(given).expanduser().absolute()
    if not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "does not exist"
        raise VlaError(f"checkpoint folder {folder} {what}", "give --model FOLDER")
    return str(folder)


def check_model(settings: SimSettings, options: LoadOptions) -> Contract:
    """Refuses whatever the model's node would refuse, before anything starts."""
    from vla_inference.policies.registry import check_policy

    contract = check_policy(settings.model, options)
    kinds = [part.kind for part in contract.spec.parts]
    if get_task(settings.task).robot == "Rover" and kinds != ["base_twist"]:
        raise VlaError(
            f"{settings.model} moves by {', '.join(kinds)}, {settings.task} is a rover's",
            "train one on its demonstrations, and give --model FOLDER",
        )
    if settings.lock_step:
        settings.steps_of(contract.chunk)
    return contract


def give_what_it_needs(settings: SimSettings, needs: Needs, folder: Path) -> dict[str, str]:
    """Has the simulation publish a second camera and the state, where the model takes them.

    Returns more arguments of the launch file: the model's parameters, written to `folder`.
    """
    import yaml

    if needs.views == 2:
        settings.second_camera = WRIST
    if needs.history:
        if not needs.interval:
            raise VlaError(
                "the model takes past images, and does not say how far apart",
                "set action_head.history_interval in its config.json [s]",
            )
        settings.history, settings.history_interval = needs.history, needs.interval
    settings.state = needs.state == STATE
    heard: dict[str, list[str]] = {}
    if len(settings.image_topics) > 1:
        heard["cameras"] = settings.image_topics
    if settings.state:
        heard |= {"state": ["position", "axis_angle", "joints"], "joint_names": FINGERS}
    if not heard:
        return {}
    path = share_folders("vla_bringup", "config")[0] / "inference.yaml"
    parameters = yaml.safe_load(path.read_text())
    parameters["/**"]["ros__parameters"] |= heard
    (folder / path.name).write_text(yaml.safe_dump(parameters))
    return {"inference_config": str(folder / path.name)}


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
    how: Mapping[str, Any],
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
            "first_episode",
            "only_episodes",
            "seed",
            "camera",
            "second_camera",
            "history",
            "history_interval",
            "state",
            "width",
            "height",
            "horizon",
            "language",
            "lock_step",
            "execute_steps",
            "output",
            "record_episodes",
            "record_failures",
            "model",
            "summary",
        )
    }
    # ros2 launch refuses an argument without a value: what is empty is left to its default.
    given = {k: v for k, v in given.items() if v != ""} | {k: v for k, v in how.items() if v}
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
