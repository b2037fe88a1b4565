"""Who acted in each step of an episode: the column "intervention", 1 where a person did.

An episode without the column does not say; one in which the model did all has a column of zeros.
LeRobot has the same name for it.
"""

from __future__ import annotations

import numpy as np

from vla_inference.errors import DataError
from vla_inference.types import Episode

INTERVENTION = "intervention"


def interventions(episode: Episode) -> np.ndarray | None:
    """bool [T], whether a person acted; None where the episode does not say."""
    column = episode.columns.get(INTERVENTION)
    return None if column is None else read_interventions(column, len(episode))


def read_interventions(column: np.ndarray, length: int, where: str = "an episode") -> np.ndarray:
    """A stored column [T] or [T, 1] of numbers or truth values as bool [T]; raises DataError."""
    values = np.asarray(column)
    if values.dtype.kind not in "biuf" or values.size != length or len(values) != length:
        raise DataError(
            f"{where}: {INTERVENTION} is {values.dtype} of shape {values.shape}, {length} numbers "
            "are expected",
            "write 1 for each step in which a person acted, 0 for the others",
        )
    values = values.reshape(-1)
    if not np.isin(values, (0, 1)).all():
        wrong = values[~np.isin(values, (0, 1))][0]
        raise DataError(f"{where}: {INTERVENTION} is {wrong}", "write 1 for a person, else 0")
    return values.astype(bool)


def by_larger_part(acted: np.ndarray, starts: np.ndarray, size: int) -> np.ndarray:
    """bool [K]: of windows of `size` steps of acted [T], who acted in the larger part; a tie is
    the person's. The last window may be shorter."""
    shares = [acted[start : start + size].mean() for start in starts]
    return np.array(shares, float) >= 0.5
