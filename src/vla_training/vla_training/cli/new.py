"""`vla new`: write an untrained checkpoint for a dataset's robot."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from vla_inference.cli.options import takes
from vla_inference.cli.output import JsonOption, print_json
from vla_inference.errors import VlaError
from vla_inference.system.files import Staged, replaceable
from vla_training.cli.options import CameraOption, DatasetOptions, names
from vla_training.finetune.untrained.act import UntrainedACT
from vla_training.finetune.untrained.families import (
    UNTRAINED,
    check_sizes,
    find_untrained,
    write_untrained,
)
from vla_training.finetune.untrained.octo import UntrainedOcto
from vla_training.finetune.untrained.openvla import UntrainedOpenVLA
from vla_training.finetune.untrained.robot import Robot, Untrained
from vla_training.finetune.untrained.smolvla import UntrainedSmolVLA


@takes(Untrained, UntrainedACT, UntrainedOcto, UntrainedOpenVLA, UntrainedSmolVLA, DatasetOptions)
def new(
    common: Untrained,
    act: UntrainedACT,
    octo: UntrainedOcto,
    openvla: UntrainedOpenVLA,
    smolvla: UntrainedSmolVLA,
    reading: DatasetOptions,
    family: Annotated[
        str, typer.Argument(help=f"Policy family: {', '.join(UNTRAINED)}.", metavar="FAMILY")
    ],
    output: Annotated[Path, typer.Argument(help="Folder to write.", metavar="OUTPUT")],
    dataset: Annotated[Path, typer.Option(help="Dataset of the robot: a folder or file.")],
    camera: CameraOption = None,
    overwrite: Annotated[bool, typer.Option(help="Replace OUTPUT if it exists.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Write an untrained checkpoint, which `vla finetune` trains from scratch."""
    find_untrained(family)
    families: dict[str, Any] = {
        "act": act,
        "octo": octo,
        "openvla": openvla,
        "smolvla": smolvla,
    }
    sizes = families.pop(family)
    for other, given in families.items():
        if told := [f.name for f in fields(given) if getattr(given, f.name) != f.default]:
            option = told[0].replace("_", "-")
            raise VlaError(f"--{option} is of {other}, not of {family}", "leave it out")
    check_sizes(sizes, common)
    replaceable(output, overwrite, "config.json", "checkpoint folder")
    robot = Robot.of(reading.open(dataset), names(camera))
    with Staged(output) as staged:
        write_untrained(staged, sizes, robot, common)
    if as_json:
        print_json({"output": str(output)})
    else:
        print(output)
    return 0
