"""`vla estimate`: how far a task is, and whether it is done, from images and sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vla_inference.cli.options import command_group, takes
from vla_inference.cli.output import JsonOption, print_json
from vla_inference.options import Holds
from vla_inference.system.files import writable
from vla_training.cli.options import DatasetTypeOption, DeviceOption, ModelOption
from vla_training.estimate.train import EstimateConfig

estimate = command_group("Train and use an estimate of progress and success.")


@estimate.command()
@takes(EstimateConfig)
def train(
    config: EstimateConfig,
    dataset: Annotated[list[Path], typer.Option(help="Dataset of episodes with rewards.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    model: ModelOption = None,
    dataset_type: DatasetTypeOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train an estimator on episodes whose rewards say when they succeeded."""
    config.check()
    writable(output, "new folder")
    from vla_sim_bridge.cli.rollout import find_model
    from vla_training.datasets.views import open_datasets
    from vla_training.estimate.estimator import Eyes
    from vla_training.estimate.train import train as run

    data = open_datasets(dataset, dataset_type)
    found = run(data, Eyes(find_model(model), device), config, _quiet if as_json else print)
    found.save(output)
    if as_json:
        print_json({"output": str(output), **found.figures})
    else:
        print(
            f"held out: progress off by {found.figures['progress_error']:.3f}, "
            f"{100 * found.figures['verdicts_right']:.0f} % of "
            f"{found.figures['held_out_episodes']} verdicts right"
        )
        print(output)


@estimate.command()
def judge(
    estimator: Annotated[Path, typer.Argument(help="Folder of an estimator.")],
    dataset: Annotated[list[Path], typer.Option(help="Episodes to judge.")],
    camera: Annotated[
        str, typer.Option(help="Camera(s) in the model's order, by commas; default: the first.")
    ] = "",
    dataset_type: DatasetTypeOption = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda ..."), Holds.VALUE] = None,
    as_json: JsonOption = False,
) -> None:
    """Suggest a verdict for each episode; a person confirms it."""
    from vla_training.datasets.views import open_datasets
    from vla_training.estimate.estimator import LAST, Estimator, suggested
    from vla_training.estimate.train import observed

    found, data = Estimator.load(estimator, device), open_datasets(dataset, dataset_type)
    cameras = camera.split(",") if camera else data.cameras()[: found.eyes.policy.needs.images]
    rows = []
    for number, episode in enumerate(data):
        last = range(max(0, len(episode) - LAST), len(episode))
        estimates = [found(observed(episode, cameras, t)) for t in last]
        verdict, progress = suggested(estimates), estimates[-1].progress
        rows.append({"episode": number, "suggested": verdict, "progress": round(progress, 3)})
        if not as_json:
            print(f"{data.where(number)}: {verdict}, progress {progress:.2f}")
    if as_json:
        print_json({"episodes": rows})


def _quiet(_: str) -> None:
    pass
