"""Options that several commands share, and their checks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vla_inference.errors import VlaError
from vla_inference.options import Holds
from vla_inference.system.files import writable

# Of a dataset.
DatasetTypeOption = Annotated[
    str | None, typer.Option(help="rlds, hdf5, lerobot or bag; default: detected from the path.")
]
SplitOption = Annotated[str | None, typer.Option(help="Split of an RLDS dataset; default: train.")]
ConventionsOption = Annotated[
    str | None,
    typer.Option(
        help="Action convention of an RLDS dataset, by name; default: the dataset's name."
    ),
]
ReadOption = Annotated[
    list[str] | None,
    typer.Option(help="NAME=VALUE for the reader, such as action_topic=/servo/twist."),
    Holds.LOCAL,
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
    str | None, typer.Option(help="Camera(s) that the model sees, separated by commas.")
]
DtypeOption = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
# Of what is written.
ReportOption = Annotated[
    Path | None, typer.Option(help="Folder for report.html, plot and metrics.")
]


def check_counts(**counts: int | None) -> None:
    """Checks counts by option name; None: not given."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise VlaError(f"--{name.replace('_', '-')} is {value}", "give at least 1")


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
