"""Memory, threads and open files of a process, and how far they grow."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path


def sample(pid: int) -> dict[str, float]:
    """Resident memory [MB], threads and open files of a process."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return {
        "mb": round(int(status["VmRSS"].split()[0]) / 1024, 1),
        "threads": int(status["Threads"]),
        "files": len(os.listdir(f"/proc/{pid}/fd")),
    }


def growth(values: Sequence[float], warm_up: float = 0.2) -> float:
    """The median of the last tenth of the values less that of the first tenth after warm-up.

    warm_up: share of the values that are left out.
    """
    warm = values[int(warm_up * len(values)) :]
    tenth = max(1, len(warm) // 10)
    if not warm:
        return 0.0
    return statistics.median(warm[-tenth:]) - statistics.median(warm[:tenth])
