"""A folder holds results of one set of options: the first call keeps them, others are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_inference.errors import DataError, VlaError
from vla_inference.system.files import write_whole


def claimed(path: Path) -> dict[str, Any]:
    """The options that are kept in `path`; none before the first call."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error})", "choose another folder") from error


def claim(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Keeps the options in `path`, or checks that they are those kept; returns them as JSON has
    them."""
    wanted: dict[str, Any] = json.loads(json.dumps(options))
    if path.is_file():
        check_same(path.parent, claimed(path), wanted)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(wanted, indent=2) + "\n")
    return wanted


def check_same(folder: Path, kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Both as JSON has them."""
    for key in {**wanted, **kept}:
        before, now = kept.get(key), wanted.get(key)
        if before != now:
            raise VlaError(
                f"{folder} was begun with {key} {before!r}, now it is {now!r}",
                "continue with the same options, or choose another folder",
            )
