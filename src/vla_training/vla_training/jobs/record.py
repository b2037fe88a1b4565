"""The record of a job, in memory and on disk."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from vla_inference.errors import DataError
from vla_inference.system.files import write_whole

QUEUED, RUNNING = "queued", "running"
SUCCEEDED, FAILED, CANCELLED = "succeeded", "failed", "cancelled"
MOST = 2**63 - 1  # what a message can hold
STATES = (QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED)


@dataclass
class Job:
    """One job: a run of a command.

    step, total, rate: done and wanted in the command's own count (total 0: not known), per second.
    seconds_left: -1 where not known.
    exit_code: below 0 the negative number of the signal that ended it; None while it runs and
        where nobody saw it end.
    cancel_asked, started, ended: seconds since 1970, 0 for not yet.
    """

    job_id: str
    kind: str
    arguments: list[str]
    folder: str
    state: str = QUEUED
    step: int = 0
    total: int = 0
    fraction: float = 0.0
    rate: float = 0.0
    seconds_left: float = -1.0
    message: str = ""
    exit_code: int | None = None
    started: float = 0.0
    ended: float = 0.0
    cancel_asked: float = 0.0
    pid: int = 0  # leader of its process group
    command: list[str] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.state in (SUCCEEDED, FAILED, CANCELLED)

    @property
    def log_file(self) -> Path:
        return Path(self.folder, "log.txt")

    @property
    def exit_file(self) -> Path:
        return Path(self.folder, "exit_code")

    @property
    def lock_file(self) -> Path:
        return Path(self.folder, "lock")

    @property
    def progress_file(self) -> Path:
        return Path(self.folder, "progress.json")

    def save(self) -> None:
        write_whole(Path(self.folder, "job.json"), json.dumps(dataclasses.asdict(self), indent=2))


def load_job(folder: Path) -> Job:
    """The job recorded in `folder`, even if the folder was moved."""
    path = folder / "job.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name for f in dataclasses.fields(Job)}
        job = Job(**{k: v for k, v in values.items() if k in known})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = f"job record {path} cannot be read ({error})"
        raise DataError(reason, "remove its folder") from error
    if job.job_id != folder.name or job.state not in STATES:
        raise DataError(f"job record {path} is not of this job", "remove its folder")
    job.folder = str(folder)
    return job


def read_progress(path: Path) -> dict | None:
    """The command's last progress report (see vla_inference.system.progress), or None."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        left = values.get("seconds_left")
        return {
            "step": _within(int(values["step"]), MOST),
            "total": _within(int(values.get("total", 0)), MOST),
            "fraction": _within(float(values.get("fraction", 0)), 1.0),
            "rate": _within(float(values.get("rate") or 0), 1e30),
            "seconds_left": -1.0 if left is None else _within(float(left), 1e30),
            "message": " ".join(str(values.get("message", "")).split())[:500],
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def _within(value, most):
    """0 to `most`; NaN becomes 0."""
    return min(most, max(type(most)(0), value))


def tail(path: Path, lines: int = 0, limit: int = 64 * 1024) -> str:
    """The end of a text file: at most `limit` bytes and, if not 0, `lines` lines."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            text = file.read(limit).decode("utf-8", "replace").replace("\0", "")
    except OSError:
        return ""
    kept = text.splitlines(keepends=True)
    if size > limit and len(kept) > 1:
        del kept[0]  # cut in the middle
    return "".join(kept[-lines:] if lines else kept)
