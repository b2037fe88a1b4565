"""Progress of a command, reported to the process that started it.

A program that wants to know sets VLA_PROGRESS_FILE in a command's environment and reads that file:
one JSON object, replaced as a whole, so that it is never half written. Commands call `report`;
where nobody asked it does nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time

from vla_inference.system.files import write_whole

VARIABLE = "VLA_PROGRESS_FILE"
PERIOD = 0.2  # seconds between two writings at least; the last step is always written

_first: tuple[float, int] | None = None  # when this process first reported, and at which step
_written = -math.inf


def report(
    step: int,
    total: int = 0,
    message: str = "",
    *,
    fraction: float | None = None,
    rate: float | None = None,
    seconds_left: float | None = None,
) -> None:
    """`step` of `total` (0: not known) is done.

    What is left out is worked out: the fraction from step and total, steps per second and the
    seconds left from the time since the first report.
    """
    global _first, _written
    path = os.environ.get(VARIABLE)
    if not path:
        return
    now = time.monotonic()
    _first = _first or (now, step)
    if fraction is None:
        fraction = step / total if total else 0.0
    if now - _written < PERIOD and fraction < 1 and step < (total or math.inf):
        return
    _written = now
    if rate is None:
        seconds, steps = now - _first[0], step - _first[1]
        rate = steps / seconds if seconds > 0 and steps > 0 else 0.0
    if seconds_left is None and rate > 0 and total:
        seconds_left = max(0, total - step) / rate
    if seconds_left is not None and not math.isfinite(seconds_left):
        seconds_left = None
    values = {
        "step": step,
        "total": total,
        "fraction": min(1.0, max(0.0, fraction)),
        "rate": rate,
        "seconds_left": seconds_left,
        "message": message,
    }
    if os.path.isdir(os.path.dirname(path) or "."):
        with contextlib.suppress(OSError):  # a full disk must not end the work
            write_whole(path, json.dumps(values), sync=False)
