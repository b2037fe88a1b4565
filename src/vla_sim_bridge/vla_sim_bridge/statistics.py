"""Intervals for counted successes."""

from __future__ import annotations

import math

from vla_inference.errors import VlaError


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval (95 % by default) of a proportion, as fractions in [0, 1]."""
    if not 0 <= successes <= trials:
        raise VlaError(f"{successes} successes in {trials} trials", "count again")
    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    centre = p + z * z / (2 * trials)
    spread = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
