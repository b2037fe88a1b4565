"""Finds bags: rosbag2 folders, single storage files, ROS 1 .bag files."""

from __future__ import annotations

from pathlib import Path

METADATA = "metadata.yaml"
ROS2, ROS1 = (".mcap", ".db3"), ".bag"
PACKED = ".zstd"  # what `ros2 bag record --compression-mode file` adds


def storage(path: Path) -> str:
    """The kind of a storage file: ".mcap", ".db3" or ".bag", compressed or not; empty: none of
    them."""
    if path.suffix == PACKED:
        path = Path(path.stem)
        return path.suffix if path.suffix in ROS2 else ""
    return path.suffix if path.suffix in (*ROS2, ROS1) else ""


def is_bag(path: Path) -> bool:
    """Whether this is one bag: a rosbag2 folder or a storage file."""
    if path.is_dir():
        return any(storage(f) in ROS2 or f.name == METADATA for f in files_of(path))
    return bool(storage(path))


def files_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file())


def find_bags(path: Path) -> list[Path]:
    """The bags at `path`: itself or those in its folders, by name."""
    if is_bag(path):
        return [path]
    if not path.is_dir():
        return []
    found = [f for f in files_of(path) if storage(f) == ROS1]
    for folder in sorted(p for p in path.iterdir() if p.is_dir() and p.name[0] != "."):
        found += find_bags(folder)
    return found


def holds_bags(path: Path, depth: int = 1) -> bool:
    """Whether `path` looks like a bag, or like a folder of them."""
    if is_bag(path) or not path.is_dir():
        return is_bag(path)
    if any(storage(f) for f in files_of(path)):
        return True
    return depth > 0 and any(holds_bags(p, depth - 1) for p in path.iterdir() if p.is_dir())
