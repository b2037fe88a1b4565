"""ROS messages as plain data: what JSON can say."""

from __future__ import annotations

import math
from typing import Any

MOST = 4096  # elements of a sequence that are passed on


def plain(value: Any) -> Any:
    """A message's fields by name; times as seconds; numbers that are not finite as None."""
    if hasattr(value, "get_fields_and_field_types"):
        names = value.get_fields_and_field_types()
        if set(names) == {"sec", "nanosec"}:
            return value.sec + 1e-9 * value.nanosec
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (bytes, bytearray)):
        return value[0] if len(value) == 1 else list(value[:MOST])
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return [plain(element) for element in value[:MOST]]
