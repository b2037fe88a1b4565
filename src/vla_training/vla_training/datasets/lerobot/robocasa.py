"""RoboCasa in LeRobot's form: meta/modality.json says where the parts of its actions stand."""

from __future__ import annotations

import json
from pathlib import Path

from vla_inference.episodes.robocasa import COLUMNS
from vla_inference.errors import DataError

MODALITY = "meta/modality.json"
# In the order of the environments' actions, and how many numbers each has
PARTS = {
    "end_effector_position": 3,
    "end_effector_rotation": 3,
    "gripper_close": 1,
    "base_motion": 4,
    "control_mode": 1,
}


def robocasa_order(folder: Path, size: int) -> list[int] | None:
    """The dataset's columns in the environments' order; None where it is not RoboCasa's."""
    file = folder / MODALITY
    if size != COLUMNS or not file.is_file():
        return None
    try:
        parts = dict(json.loads(file.read_text(encoding="utf-8"))["action"])
        if set(parts) != set(PARTS):
            return None
        order = [i for name in PARTS for i in range(parts[name]["start"], parts[name]["end"])]
        sizes = [parts[name]["end"] - parts[name]["start"] for name in PARTS]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file} cannot be read ({error})", "copy the dataset again") from error
    if sorted(order) != list(range(COLUMNS)) or sizes != list(PARTS.values()):
        raise DataError(
            f"{file} names columns {order} of {COLUMNS}",
            "each part has its own: copy the dataset again",
        )
    return order
