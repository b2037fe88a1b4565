"""How far the task was at each step, as it was estimated: the column "estimate".

float32 [T, 2]: progress, and how likely the task is done, 0 to 1 each; -1 where nothing was
estimated.
"""

from __future__ import annotations

import numpy as np

from vla_inference.errors import DataError
from vla_inference.types import Episode

ESTIMATE, UNKNOWN = "estimate", -1.0


def estimates(episode: Episode) -> np.ndarray | None:
    """float32 [T, 2]; None where the episode has none."""
    column = episode.columns.get(ESTIMATE)
    return None if column is None else read_estimates(column, len(episode))


def read_estimates(column: np.ndarray, length: int, where: str = "an episode") -> np.ndarray:
    """A stored column as float32 [T, 2]; raises DataError."""
    values = np.asarray(column)
    if values.dtype.kind not in "iuf" or values.size != 2 * length:
        raise DataError(
            f"{where}: {ESTIMATE} is {values.dtype} of shape {values.shape}, [{length}, 2] "
            "numbers are expected",
            "write progress and success of each step, 0 to 1, or -1 for not known",
        )
    values = values.reshape(length, 2).astype(np.float32)
    return np.where((values >= 0) & (values <= 1), values, np.float32(UNKNOWN))
