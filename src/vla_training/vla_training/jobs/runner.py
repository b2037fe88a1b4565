"""Runs `vla` commands as jobs, one of a kind at a time.

A job is a process group of its own with a folder for its record, log and progress under
ROOT/.vla_jobs. Nothing here waits and there are no threads: `poll` looks at what goes on and is
to be called a few times a second. Jobs outlive us where we are killed; the next runner on the
same root finds those that still run and goes on watching, and marks the others as lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from vla_inference.errors import DataError, VlaError
from vla_inference.system.progress import VARIABLE
from vla_training.jobs.kinds import KINDS, Kind, command_words, get_kind
from vla_training.jobs.paths import RECORDS, ROOT, check_root
from vla_training.jobs.record import (
    CANCELLED,
    FAILED,
    RUNNING,
    SUCCEEDED,
    Job,
    load_job,
    read_progress,
    tail,
)

CONFINED = (sys.executable, "-m", "vla_training.jobs.confined")  # `vla`, within the root
SUPERVISE = str(Path(__file__).with_name("supervise.py"))
TERM_GRACE = 5.0  # seconds from SIGTERM to SIGKILL
KILL_GRACE = 5.0  # seconds that a killed process may take to go, before it is left
LOG_MOST, LOG_KEPT = 64 << 20, 1 << 20  # bytes; a log that grows beyond is cut to its end


class JobRunner:
    """The jobs of one root folder. Only one runner may serve a root at a time.

    root: every path a job is given is confined to it; its working directory, too.
    command: what a command and its options are appended to.
    per_kind: how many jobs of a kind may run at once.
    cancel_grace: seconds from SIGINT to SIGTERM when a job is cancelled.
    nice: 0 to 19, how far jobs give way to others on this machine, such as a control loop.
    keep: how many jobs that are over are remembered, with their logs; the oldest go.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        kinds: Mapping[str, Kind] = KINDS,
        command: Sequence[str] = CONFINED,
        per_kind: int = 1,
        cancel_grace: float = 10.0,
        nice: int = 10,
        keep: int = 200,
    ):
        self.root = check_root(root)
        self.kinds, self.command = kinds, list(command)
        self.per_kind, self.cancel_grace, self.nice = per_kind, cancel_grace, nice
        self.keep = keep
        self.warnings: list[str] = []  # records that could not be read
        self._asked: dict[str, float] = {}  # when a job was asked to end, by the steady clock
        self._jobs: dict[str, Job] = {}
        self._processes: dict[str, subprocess.Popen] = {}
        self._ending: list[subprocess.Popen] = []  # of jobs that are over
        self._signalled: dict[str, int] = {}
        self._records = self.root / RECORDS
        self._lock: int | None = self._claim()
        try:
            self._recall()
        except BaseException:
            os.close(self._lock)
            raise

    # -- what may be asked --------------------------------------------------------------------

    def start(self, kind: str, arguments: Sequence[str]) -> Job:
        """Starts a job and returns at once; raises VlaError if it is refused."""
        words = command_words(get_kind(kind, self.kinds), arguments, self.root)
        running = [j.job_id for j in self.running() if j.kind == kind]
        if len(running) >= self.per_kind:
            raise VlaError(
                f"{' and '.join(running)} {'is' if len(running) == 1 else 'are'} running",
                "wait for it or cancel it",
            )
        stamp = time.strftime("%Y%m%d-%H%M%S")
        job_id = f"{kind}-{stamp}-{secrets.token_hex(2)}"
        job = Job(job_id, kind, list(arguments), str(self._records / job_id), started=time.time())
        job.command = [*self.command, *words]
        try:
            Path(job.folder).mkdir()
            job.save()
            self._spawn(job)
            job.state = RUNNING
            job.save()
        except OSError as error:
            if job.pid:
                self._kill(job, signal.SIGKILL)
            raise VlaError(
                f"the job cannot be started: {error}", "check disk and memory"
            ) from error
        self._jobs[job_id] = job
        return job

    def cancel(self, job_id: str) -> Job:
        """Cancels a job: SIGINT now, SIGTERM and SIGKILL later by `poll`."""
        job = self.get(job_id)
        if job.over:
            raise VlaError(f"job {job_id} is over ({job.state})", "there is nothing to cancel")
        if not job.cancel_asked:
            job.cancel_asked = time.time()
            self._asked[job.job_id] = time.monotonic()
            job.message = "asked to end"
            self._save(job)
            self._escalate(job)
        return job

    def get(self, job_id: str) -> Job:
        if job_id not in self._jobs:
            raise VlaError(f"there is no job {job_id!r}", "list them to see their ids")
        return self._jobs[job_id]

    def all(self) -> list[Job]:
        """All jobs, newest first."""
        return sorted(self._jobs.values(), key=lambda j: j.started, reverse=True)

    def running(self) -> list[Job]:
        return [j for j in self._jobs.values() if not j.over]

    def log(self, job_id: str, lines: int = 0) -> str:
        """The end of a job's output: 64 KiB or `lines` lines, whichever is less."""
        return tail(self.get(job_id).log_file, lines)

    def poll(self) -> list[Job]:
        """Checks the running jobs; returns those that changed."""
        self._ending = [p for p in self._ending if p.poll() is None]
        return [job for job in self.running() if self._look(job)]

    def close(self, keep_running: bool = False) -> list[Job]:
        """Cancels running jobs and waits for them, or leaves them to the next runner.

        Returns the jobs that did not end although they were killed (a disk that hangs): they are
        left to the next runner too.
        """
        if self._lock is None:
            return []
        if not keep_running:
            for job in self.running():
                self.cancel(job.job_id)
            end = time.monotonic() + self.cancel_grace + TERM_GRACE + KILL_GRACE
            while self.running() and time.monotonic() < end:
                self.poll()
                time.sleep(0.05)
        os.close(self._lock)
        self._lock = None
        return [] if keep_running else self.running()

    # -- one job ------------------------------------------------------------------------------

    def _spawn(self, job: Job) -> None:
        lock = os.open(job.lock_file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            words = [str(job.exit_file), str(lock), str(self.nice)]
            supervise = [sys.executable, "-IS", SUPERVISE, *words]
            with job.log_file.open("ab") as log:  # what is written after a cut comes at its end
                process = subprocess.Popen(
                    supervise + job.command,
                    cwd=self.root,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(lock,),
                    env={
                        **os.environ,
                        VARIABLE: str(job.progress_file),
                        "PYTHONUNBUFFERED": "1",
                        ROOT: str(self.root),
                    },
                )
        finally:
            os.close(lock)
        job.pid = process.pid
        self._processes[job.job_id] = process

    def _look(self, job: Job) -> bool:
        process = self._processes.get(job.job_id)
        if process is not None:
            process.poll()  # or it would stay as a zombie
        # Alive first, exit code second: it may end in between.
        alive = _locked(job.lock_file)
        code = _read_code(job.exit_file)
        news = self._take_progress(job)
        if code is not None or not alive:
            self._finish(job, code)
            return True
        self._escalate(job)
        cut_log(job.log_file)
        return news

    def _take_progress(self, job: Job) -> bool:
        values = read_progress(job.progress_file)
        if values is None:
            return False
        if job.cancel_asked or not values["message"]:
            values["message"] = job.message
        news = any(getattr(job, k) != v for k, v in values.items())
        for key, value in values.items():
            setattr(job, key, value)
        return news

    def _finish(self, job: Job, code: int | None) -> None:
        process = self._processes.pop(job.job_id, None)
        if process is not None and code is None:
            process.poll()
            code = process.returncode  # killed with all its group
        if process is not None:
            self._ending.append(process)  # the exit code is there a moment before it has gone
        job.exit_code, job.ended, job.seconds_left = code, time.time(), 0.0
        job.rate = 0.0
        said = [x for x in tail(job.log_file, 50).splitlines() if x.strip()]
        last = " ".join(said[-1].split())[:500] if said else ""
        if job.cancel_asked:
            job.state, job.message = CANCELLED, "ended as requested"
        elif code == 0:
            job.state, job.message, job.fraction = SUCCEEDED, last, 1.0
        elif code is None:
            job.state = FAILED
            job.message = "lost: its process was gone; start it again, where it can be resumed"
        elif code < 0:
            name = _signal_name(-code)
            job.state = FAILED
            job.message = f"killed by {name}" + ("; was memory short?" if code == -9 else "")
        else:
            job.state, job.message = FAILED, last or f"exit status {code}; see its log"
        self._signalled.pop(job.job_id, None)
        self._asked.pop(job.job_id, None)
        self._save(job)
        self._forget()

    def _forget(self) -> None:
        """Removes the records of the oldest finished jobs beyond the limit."""
        over = [job for job in self.all() if job.over]
        for job in over[self.keep :]:
            del self._jobs[job.job_id]
            shutil.rmtree(job.folder, ignore_errors=True)

    def _escalate(self, job: Job) -> None:
        """Sends a cancelled job the next signal when it is time."""
        if not job.cancel_asked:
            return
        # With the wall clock a jump would kill at once, or never; restarts with the runner.
        now = time.monotonic()
        waited = now - self._asked.setdefault(job.job_id, now)
        due = signal.SIGINT
        if waited > self.cancel_grace:
            due = signal.SIGTERM
        if waited > self.cancel_grace + TERM_GRACE:
            due = signal.SIGKILL
        if self._signalled.get(job.job_id) != due:
            self._signalled[job.job_id] = due
            if _locked(job.lock_file):  # else the number may be another's by now
                self._kill(job, due)

    @staticmethod
    def _kill(job: Job, number: int) -> None:
        if job.pid <= 1:  # its start was not noted to the end; 0 would be our own group
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(job.pid, number)

    def _save(self, job: Job) -> None:
        # On a full disk the jobs go on; what is not written down is looked up at the next start.
        with contextlib.suppress(OSError):
            job.save()

    # -- at start -----------------------------------------------------------------------------

    def _claim(self) -> int:
        try:
            self._records.mkdir(exist_ok=True)
            lock = os.open(self._records / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            reason = f"{self._records} cannot be written: {error}"
            raise VlaError(reason, "set another root") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise VlaError(
                f"another process runs the jobs of {self.root}", "end it, or set another root"
            ) from None
        return lock

    def _recall(self) -> None:
        for folder in sorted(p for p in self._records.iterdir() if p.is_dir()):
            try:
                job = load_job(folder)
            except DataError as error:
                self.warnings.append(str(error))
                continue
            self._jobs[job.job_id] = job
            if not job.over:
                job.state = RUNNING
                self._look(job)
        self._forget()


def cut_log(path: Path) -> None:
    """Truncates a long log to its end; output written meanwhile may be lost."""
    with contextlib.suppress(OSError):  # a full disk must not end the watching
        if path.stat().st_size <= LOG_MOST:
            return
        kept = tail(path, limit=LOG_KEPT)
        with path.open("r+b") as file:
            file.truncate(0)
        with path.open("ab") as file:
            file.write(
                f"[the log was longer than {LOG_MOST} bytes; its beginning is gone]\n"
                f"{kept}".encode()
            )


def _locked(path: Path) -> bool:
    """Whether a process of the job is alive: it holds the lock on this file."""
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(fd)


def _read_code(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
