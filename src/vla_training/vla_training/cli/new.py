"""`vla new`: write an untrained checkpoint for a dataset's robot."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from vla_inference.cli.options import takes
from vla_inference.cli.output import JsonOption, print_json
from vla_inference.errors import VlaError
from vla_inference.options import check_options
from vla_inference.system.files import Staged, replaceable
from vla_training.cli.options import CameraOption, DatasetOptions, names
from vla_training.finetune.untrained.act import UntrainedACT
from vla_training.finetune.untrained.robot import Robot, Untrained
from vla_training.finetune.untrained.smolvla import UntrainedSmolVLA


@takes(Untrained, UntrainedACT, UntrainedSmolVLA, DatasetOptions)
def new(
    common: Untrained,
    act: UntrainedACT,
    smolvla: UntrainedSmolVLA,
    reading: DatasetOptions,
    family: Annotated[
        str, typer.Argument(help="Policy family: act or smolvla.", metavar="FAMILY")
    ],
    output: Annotated[Path, typer.Argument(help="Folder to write.", metavar="OUTPUT")],
    dataset: Annotated[Path, typer.Option(help="Dataset of the robot: a folder or file.")],
    camera: CameraOption = None,
    overwrite: Annotated[bool, typer.Option(help="Replace OUTPUT if it exists.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Write an untrained checkpoint, which `vla finetune` trains from scratch."""
    families: dict[str, Any] = {"act": act, "smolvla": smolvla}
    if family not in families:
        raise VlaError(f"no untrained {family!r} can be written", "known: act, smolvla")
    sizes = families.pop(family)
    for other, given in families.items():
        if told := [f.name for f in fields(given) if getattr(given, f.name) != f.default]:
            option = told[0].replace("_", "-")
            raise VlaError(f"--{option} is of {other}, not of {family}", "leave it out")
    for part in (common, sizes):
        check_options(part)
    sizes.check()
    replaceable(output, overwrite, "config.json", "checkpoint folder")
    robot = Robot.of(reading.open(dataset), names(camera))
    with Staged(output) as staged:
        sizes.write(staged, robot, common)
    if as_json:
        print_json({"output": str(output)})
    else:
        print(output)
    return 0
