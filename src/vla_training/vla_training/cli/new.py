"""`vla new`: write an untrained checkpoint for a dataset's robot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vla_inference.cli.options import takes
from vla_inference.cli.output import JsonOption, print_json
from vla_inference.errors import VlaError
from vla_inference.system.files import replaceable
from vla_training.cli.options import CameraOption, DatasetOptions, names
from vla_training.finetune.untrained import UntrainedACT, write_act


@takes(UntrainedACT, DatasetOptions)
def new(
    options: UntrainedACT,
    reading: DatasetOptions,
    family: Annotated[str, typer.Argument(help="Policy family: act.", metavar="FAMILY")],
    output: Annotated[Path, typer.Argument(help="Folder to write.", metavar="OUTPUT")],
    dataset: Annotated[Path, typer.Option(help="Dataset of the robot: a folder or file.")],
    camera: CameraOption = None,
    overwrite: Annotated[bool, typer.Option(help="Replace OUTPUT if it exists.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Write an untrained checkpoint, which `vla finetune` trains from scratch."""
    if family != "act":
        raise VlaError(f"no untrained {family!r} can be written", "known: act")
    replaceable(output, overwrite, "config.json", "checkpoint folder")
    write_act(options, reading.open(dataset), names(camera), output)
    if as_json:
        print_json({"output": str(output)})
    else:
        print(output)
    return 0
