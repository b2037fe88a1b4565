"""Finds plugins by entry-point group and imports them on first use."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from vla_inference.errors import VlaError


def find_plugins(group: str, own: Mapping[str, str] = {}) -> dict[str, EntryPoint]:
    """The entry points of a group by name.

    own: name -> "module:object" of those that need no entry point because they are ours.
    Raises VlaError where two packages bring the same name.
    """
    found = {name: EntryPoint(name, value, group) for name, value in own.items()}
    for point in entry_points(group=group):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise VlaError(
                f"two packages bring '{point.name}' of {group} ({other.value} and {point.value})",
                "remove one of them from the workspace",
            )
    return dict(sorted(found.items()))


def load_plugin(point: EntryPoint) -> Any:
    """Imports an entry point; VlaError if that fails."""
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise VlaError(
            f"{point.value} ('{point.name}' of {point.group}) cannot be imported: {error}",
            "install what its package needs, or remove the package",
        ) from error
