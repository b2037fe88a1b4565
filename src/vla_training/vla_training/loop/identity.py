"""Checks that a resumed run has the settings of the saved one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_inference.errors import VlaError


def check_identity(state: Path, saved: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Refuses to resume with settings that change the samples or the meaning of numbers.

    Values are compared as JSON has them. Raises VlaError that names the first difference.
    """
    mine = json.loads(json.dumps(mine))
    for key in {**mine, **saved}:
        before, now = (d.get(key, "not noted") for d in (saved, mine))
        if before != now:
            raise VlaError(
                f"{state} was saved with {key} {before!r}, now it is {now!r}",
                "resume with the saved settings (batch x accumulation x devices must be equal)",
            )
