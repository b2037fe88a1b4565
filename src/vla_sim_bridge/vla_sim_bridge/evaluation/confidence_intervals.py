"""Confidence intervals of success rates and of means."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of these values; infinite for one value."""
    n = len(values)
    if n == 0:
        raise VlaError("an interval of no values", "give at least one")
    if n == 1:
        return -math.inf, math.inf
    from scipy.special import stdtrit

    mean = sum(values) / n
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    spread = float(stdtrit(n - 1, (1 + confidence) / 2)) * deviation / math.sqrt(n)
    return mean - spread, mean + spread
