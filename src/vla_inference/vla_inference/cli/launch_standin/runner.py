"""Starts the processes of a plan, forwards their output and ends them all in time."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO

from vla_inference.cli.launch_standin.description import Plan, Process
from vla_inference.cli.launch_standin.parameters import write_parameters
from vla_inference.cli.launch_standin.xml_lines import LaunchError
from vla_inference.system import interrupts

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OURS = ("vla_inference", "vla_sim_bridge", "vla_training")


@dataclass
class Running:
    """A running process; `tails` holds the unfinished line of each of its streams."""

    process: Process
    popen: subprocess.Popen
    tails: dict[int, bytes] = field(default_factory=dict)
    ended: bool = False

    @property
    def streams(self) -> list[IO[bytes]]:
        """Its standard output and error, which are pipes."""
        return [s for s in (self.popen.stdout, self.popen.stderr) if s is not None]


def command_line(process: Process, folder: Path) -> list[str]:
    """The command line launch_ros would use; single parameters go into files in `folder`."""
    if not process.is_node:
        return process.command
    ros = list(process.ros_args)
    for i, parameters in enumerate(process.parameters):
        path = parameters
        if isinstance(parameters, dict):
            path = folder / f"{process.label}-{i}.yaml"
            write_parameters(parameters, path)
        ros += ["--params-file", str(path)]
    ros += process.remaps
    return [*process.command, *(["--ros-args", *ros] if ros else [])]


def log_folder() -> Path:
    home = os.environ.get("ROS_HOME") or Path.home() / ".ros"
    return Path(os.environ.get("ROS_LOG_DIR") or Path(home) / "log")


class Runner:
    """Runs one launch, from the first process to the end of the last one."""

    def __init__(self, plan: Plan, folder: Path, heard: Callable[[str], object]):
        self.plan, self.folder, self.heard = plan, folder, heard
        self.selector = selectors.DefaultSelector()
        self.running: list[Running] = []
        self.respawns: list[tuple[float, Process]] = []
        self.logs: dict[str, BinaryIO] = {}
        self.signals: list[int] = []
        self.stop_at: float | None = None  # when the stopping began
        self.told: set[tuple[int, int]] = set()  # (pid, signal) sent so far
        self.status = 0

    def say(self, text: str) -> None:
        print(f"[launch] {text}", flush=True)

    def start(self, process: Process) -> None:
        environment = {**process.environment}
        environment.setdefault("PYTHONUNBUFFERED", "1")  # lines appear as they are printed
        parent = os.getpid()
        ours = process.is_node and Path(process.command[0]).parent.name in OURS

        def in_child() -> None:
            if ours:  # they let it through when they can answer it: see interrupts.py
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            # Should we be killed without a chance to stop it, it ends all the same.
            interrupts.end_with_parent()
            if os.getppid() != parent:
                os._exit(1)

        try:
            popen = subprocess.Popen(
                command_line(process, self.folder),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                cwd=process.cwd,
                start_new_session=True,
                preexec_fn=in_child,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise LaunchError(
                f"cannot start {process.command[0]}: {error}", "check that it can be executed"
            ) from None
        run = Running(process, popen)
        self.running.append(run)
        for stream in run.streams:
            os.set_blocking(stream.fileno(), False)
            run.tails[stream.fileno()] = b""
            self.selector.register(stream, selectors.EVENT_READ, run)
        self.say(f"{process.label}: started, pid {popen.pid}")

    def drain(self, key: selectors.SelectorKey) -> None:
        run: Running = key.data
        try:
            data = os.read(key.fd, 65536)
        except BlockingIOError:
            return
        if not data:
            self.selector.unregister(key.fileobj)
        *lines, tail = (run.tails[key.fd] + data).split(b"\n")
        if not data and tail:
            lines, tail = [*lines, tail], b""
        run.tails[key.fd] = tail
        is_error = key.fileobj is run.popen.stderr
        for line in lines:
            self.pass_on(run.process, line, is_error)

    def pass_on(self, process: Process, line: bytes, is_error: bool) -> None:
        if is_error:
            self.heard(line.decode(errors="replace"))
        # launch's rule: what goes to the log only still shows its errors
        if process.output in ("screen", "both") or is_error:
            out = sys.stderr if is_error else sys.stdout
            print(f"[{process.label}] {line.decode(errors='replace')}", file=out, flush=True)
        if process.output in ("log", "both"):
            if process.label not in self.logs:
                folder = log_folder()
                folder.mkdir(parents=True, exist_ok=True)
                name = f"{process.label}-{os.getpid()}.log"
                self.logs[process.label] = (folder / name).open("ab")
            self.logs[process.label].write(line + b"\n")

    def reap(self) -> None:
        for run in self.running:
            code = run.popen.poll()
            if run.ended or code is None:
                continue
            run.ended = True
            # What it left behind in its group would keep our pipes open, and the robot moving.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(run.popen.pid, signal.SIGTERM if self.stop_at is None else 9)
            status = 128 - code if code < 0 else code
            p = run.process
            by_us = self.stop_at is not None
            if status and not by_us:
                why = f"signal {-code}" if code < 0 else f"exit status {code}"
                self.say(f"{p.label}: ended with {why}")
            else:
                self.say(f"{p.label}: ended")
            if by_us:
                continue
            if p.respawn and not p.on_exit_shutdown:
                self.respawns.append((time.monotonic() + p.respawn_delay, p))
                continue
            self.status = self.status or status
            if p.on_exit_shutdown:
                self.status = status or self.status
                self.stop()

    def stop(self) -> None:
        if self.stop_at is None:
            self.stop_at = time.monotonic()

    def escalate(self) -> None:
        """While stopping: SIGINT at once, SIGTERM and SIGKILL after their time-outs."""
        if self.stop_at is None:
            return
        passed = time.monotonic() - self.stop_at
        for run in self.running:
            if run.ended:
                continue
            p = run.process
            due = [
                (0.0, signal.SIGINT),
                (p.sigterm_timeout, signal.SIGTERM),
                (p.sigterm_timeout + p.sigkill_timeout, signal.SIGKILL),
            ]
            for after, number in due:
                if passed >= after and (run.popen.pid, number) not in self.told:
                    self.told.add((run.popen.pid, number))
                    if number != signal.SIGINT:
                        self.say(f"{p.label}: still there, sending {number.name}")
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(run.popen.pid, number)

    def loop(self) -> int:
        for process in self.plan.processes:
            if self.signals:
                break
            self.start(process)
        seen = 0
        while True:
            for key, _ in self.selector.select(0.05):
                self.drain(key)
            if len(self.signals) > seen:
                seen = len(self.signals)
                self.stop()
                self.status = 128 + self.signals[0]
            self.reap()
            self.escalate()
            if self.stop_at is None:
                for entry in [e for e in self.respawns if e[0] <= time.monotonic()]:
                    self.respawns.remove(entry)
                    self.start(entry[1])
            waiting = self.respawns and self.stop_at is None
            if not waiting and all(r.ended for r in self.running):
                break
        self.last_words()
        return self.status

    def last_words(self) -> None:
        """Reads the rest of the pipes; waits 0.2 s for a grandchild that keeps one open."""
        end = time.monotonic() + 0.2
        while self.selector.get_map():
            for key, _ in self.selector.select(0.02):
                self.drain(key)
            if time.monotonic() >= end:  # asked after a look: a busy machine may not come to one
                break

    def close(self) -> None:
        for run in self.running:
            if run.popen.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(run.popen.pid, signal.SIGKILL)
                run.popen.wait()
            for stream in run.streams:
                stream.close()
        for log in self.logs.values():
            log.close()
        self.selector.close()


def run(plan: Plan, heard: Callable[[str], object] = lambda _: None) -> int:
    """Runs a plan to its end and returns its exit status.

    heard: is called with each line that a process writes to its standard error.

    The status is that of the node whose end shut everything down (on_exit="shutdown"), of the
    first that failed otherwise; 128 + n where signal n ended the node or this launch.
    """
    for message in plan.messages:
        print(f"[launch] {message}", flush=True)
    if plan.shutdown is not None:
        print(f"[launch] shut down by the launch file: {plan.shutdown}", flush=True)
        return 0
    if not plan.processes:
        return 0
    with tempfile.TemporaryDirectory(prefix="vla-launch-") as folder:
        runner = Runner(plan, Path(folder), heard)
        with interrupts.handled(lambda n, _: runner.signals.append(n), STOPPING):
            try:
                return runner.loop()
            finally:
                runner.close()
