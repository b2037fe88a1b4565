"""Confines the paths given to jobs to one folder."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from vla_inference.errors import VlaError

ROOT = "VLA_JOB_ROOT"  # in a job's environment: the folder that all it opens lies in
RECORDS = ".vla_jobs"  # in the root: the jobs' own records, which no job may touch


def check_root(root: str | os.PathLike) -> Path:
    """The absolute, resolved root folder; raises if it is invalid."""
    if not os.fspath(root):
        raise VlaError("there is no root folder for jobs", "set root to the folder they work in")
    path = Path(os.path.realpath(os.path.expanduser(root)))
    if path == Path(path.anchor):
        raise VlaError(f"root {root} is the whole file system", "set root to a folder below it")
    if not path.is_dir():
        if path.exists():
            raise VlaError(f"root folder {path} is not a folder", "set root to another")
        remedy = f"mkdir -p {shlex.quote(str(path))}, or set root to another"
        raise VlaError(f"root folder {path} does not exist", remedy)
    return path


def confine(root: Path, value: str, name: str = "path") -> Path:
    """The path of `value` in `root` (from `check_root`), with links and ".." resolved.

    Raises where that is not in `root`. The file need not exist.
    """
    if not value or "\0" in value:
        raise VlaError(f"{name} is empty or no path", "give a path inside the root folder")
    # Resolved link by link as the kernel does it: "link/.." is the parent of the link's target.
    path = Path(os.path.realpath(os.path.join(root, value)))
    if path != root and root not in path.parents:
        raise VlaError(
            f"{name} {value} leads out of the root folder {root}",
            f"it is {path}; choose a path inside, or start the node with another root",
        )
    records = root / RECORDS
    if path == records or records in path.parents:
        raise VlaError(f"{name} {value} is where the jobs' records are", "choose another path")
    return path
