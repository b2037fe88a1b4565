"""Options that several commands share, and their checks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vla_inference.errors import VlaError
from vla_inference.options import Holds, option
from vla_inference.system.files import writable

if TYPE_CHECKING:
    from vla_training.datasets import EpisodeSet

# Of a dataset.
FORMATS = ("rlds", "hdf5", "lerobot", "bag")
DatasetTypeOption = Annotated[
    str | None,
    typer.Option(help="Its format; default: detected from the path.", metavar="|".join(FORMATS)),
]
InstructionOption = Annotated[
    str | None, typer.Option(help="Instruction for every step, replacing the dataset's.")
]
# Of a model and what it sees.
ModelOption = Annotated[
    str | None,
    typer.Option(help="Checkpoint; default: the shipped small model."),
    Holds.PATH,
]
CameraOption = Annotated[
    str | None,
    typer.Option(
        "--camera", "--cameras", help="Camera(s) that the model sees, separated by commas."
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda ...; default: CUDA if available.")
]
DtypeOption = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
# Of what is written.
ReportOption = Annotated[
    Path | None, typer.Option(help="Folder for report.html, plot and metrics.")
]


@dataclass(frozen=True)
class DatasetOptions:
    """How to read a dataset."""

    dataset_type: str | None = option(
        None, "Its format; default: detected from the path.", choices=FORMATS
    )
    split: str | None = option(None, "Split of an RLDS dataset; default: train.")
    conventions: str | None = option(
        None, "Action convention of an RLDS dataset, by name; default: the dataset's name."
    )
    read: list[str] | None = option(  # noqa: RUF009
        None,
        "NAME=VALUE for the reader, such as action_topic=/servo/twist.",
        holds=Holds.LOCAL,
    )
    GROUPS = {"How the dataset is read": ()}

    def reading(self) -> dict[str, Any]:
        """What a reader takes beside the path."""
        given = {"split": self.split, "conventions": self.conventions}
        return given | parse_reading(self.read or ())

    def open(self, path: Path, instruction: str | None = None) -> EpisodeSet:
        """Opens a dataset; `instruction` takes the place of its own."""
        from vla_training.datasets import open_dataset

        return open_dataset(
            path, self.dataset_type, **{"instruction": instruction} | self.reading()
        )


def check_report(folder: Path | None) -> None:
    if folder is not None:
        writable(folder, "folder")


def names(text: str | None) -> tuple[str, ...]:
    """Splits a comma-separated list."""
    return tuple(text.replace(",", " ").split()) if text else ()


def parse_reading(pairs: Sequence[str]) -> dict[str, Any]:
    """Parses --read: numbers and lists as JSON, everything else as text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise VlaError(f"--read is {pair!r}", "give NAME=VALUE")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
