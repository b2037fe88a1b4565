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
    from vla_inference.estimate.estimator import Eyes
    from vla_sim_bridge.cli.rollout import find_model
    from vla_training.datasets.views import open_datasets
    from vla_training.estimate.train import train as run

    data = open_datasets(dataset, dataset_type)
    found = run(data, Eyes(find_model(model), device), config, _quiet if as_json else print)
    found.save(output)
    if as_json:
        print_json({"output": str(output), **found.figures})
    else:
        ends, off = found.figures["held_out"], found.figures["progress_error"]
        told = "" if off is None else f"progress off by {off:.3f}, "
        print(
            f"held out: {told}{ends['verdicts_right']} of {ends['episodes']} verdicts right, "
            f"{ends['falsely_done']} of {ends['failures']} failures called a success"
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
    from vla_inference.estimate.estimator import Estimator
    from vla_training.datasets.views import open_datasets
    from vla_training.estimate.train import cameras_of, look_at

    found, data = Estimator.load(estimator, device), open_datasets(dataset, dataset_type)
    cameras = cameras_of(data, found.eyes, camera.split(",") if camera else ())
    rows = []
    for number, episode in enumerate(data):
        (end,) = found(look_at(found.eyes, episode, cameras, [len(episode) - 1]))
        rows.append(
            {"episode": number, "suggested": end.suggested, "progress": round(end.progress, 3)}
        )
        if not as_json:
            print(f"{data.where(number)}: {end.suggested}, progress {end.progress:.2f}")
    if as_json:
        print_json({"episodes": rows})


def _quiet(_: str) -> None:
    pass
