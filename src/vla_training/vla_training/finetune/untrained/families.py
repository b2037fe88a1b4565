"""The families of which untrained checkpoints can be written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from vla_inference.errors import VlaError
from vla_inference.options import check_options
from vla_training.finetune.untrained.act import UntrainedACT
from vla_training.finetune.untrained.octo import UntrainedOcto
from vla_training.finetune.untrained.openvla import UntrainedOpenVLA
from vla_training.finetune.untrained.robot import Robot, Untrained
from vla_training.finetune.untrained.smolvla import UntrainedSmolVLA

UNTRAINED: dict[str, Any] = {
    "act": UntrainedACT,
    "octo": UntrainedOcto,
    "openvla": UntrainedOpenVLA,
    "smolvla": UntrainedSmolVLA,
}


class Sizes(Protocol):
    """Of a family's new checkpoint."""

    def check(self) -> None: ...

    def write(self, folder: Path, robot: Robot, common: Untrained) -> None: ...


def check_sizes(sizes: Sizes, common: Untrained) -> None:
    """Refuses what no checkpoint can be written of."""
    for part in (common, sizes):
        check_options(part)
    sizes.check()


def write_untrained(folder: Path, sizes: Sizes, robot: Robot, common: Untrained) -> None:
    """Into an empty folder."""
    sizes.write(folder, robot, common)
    common.store(folder)


def find_untrained(family: str) -> Any:
    """The class of a family's sizes."""
    if family not in UNTRAINED:
        raise VlaError(f"no untrained {family!r} can be written", f"known: {', '.join(UNTRAINED)}")
    return UNTRAINED[family]
