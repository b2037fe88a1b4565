"""Command output: text for people, or one JSON object with `--json`."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vla_inference.options import Holds

# Use as the type of a command's argument: `def info(..., as_json: JsonOption = False)`.
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead of text."), Holds.LOCAL
]


def plain(value: Any) -> Any:
    """`value` as JSON types: data classes, arrays and paths; NaN and infinity become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy arrays and scalars, tensors
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_json(value: Any) -> None:
    """Prints one JSON object, the only output on stdout."""
    json.dump(plain(value), sys.stdout, indent=2, ensure_ascii=False)
    print(flush=True)
