#!/usr/bin/env python3
"""Soak test: the closed loop in real time for an hour; what grows, fails or is left behind.

    python test/robustness/soak.py [--minutes 60] [--task Stack_D2] [--job-every 120]
        [--swap-every 300]

Simulation, inference, command and training node, a process each. The simulated arm is driven by
the command node's twists alone, in real time. Every so often a job is started and cancelled, and
the model is loaded again and takes over (first in the warm-up: two models at once make the peak).
Sampled every 5 s: resident memory, threads and open files of each.
Growth: the median of the last tenth of the samples less that of the first tenth after warm-up.
A missed command period: a gap in the stamps of the commands. Exit status 1 beyond 20 MB
of growth in one process, 1 % of the periods missed, or with a thread or job left behind.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import rclpy
from common import add_output, keep
from domains import claim
from geometry_msgs.msg import TwistStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.time import Time
from resources import sample

from vla_inference.ros import qos
from vla_msgs.msg import CommandStatus, InferenceStatus, JobStatus
from vla_msgs.srv import CancelJob, LoadModel, StartJob

ROOT = Path(__file__).resolve().parents[2]
ROBOT = ROOT / "config/robots/robosuite.yaml"
EVERY = 5.0  # seconds between samples
WARM_UP = 60.0  # seconds, or a fifth of the run
PERIOD = 0.05  # seconds of a command
MEGABYTES, MISSED = 20.0, 0.01


def descendants(pid: int) -> int:
    """How many processes a process has begun that are still there."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name = path.read_text()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(name.rsplit(")", 1)[1].split()[1])
    found, count = {pid}, 0
    while True:
        more = {child for child, parent in parents.items() if parent in found} - found
        if not more:
            return count
        count += len(more)
        found |= more


class Soak:
    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args, self.folder = args, folder
        self.model = ROOT / "models/stack-small"
        domain = claim()
        self.environment = {
            **os.environ,
            "ROS_DOMAIN_ID": str(domain),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        }
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        rclpy.init(domain_id=domain)
        self.node = rclpy.create_node("watcher")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        make = self.node.create_subscription
        make(TwistStamped, "delta_twist", self.hear, 100)
        make(CommandStatus, "command/status", self.stand, qos.LATCHED)
        make(InferenceStatus, "inference/status", self.answer, qos.LATCHED)
        make(JobStatus, "training/status", self.hear_job, qos.LATCHED)
        self.starter = self.node.create_client(StartJob, "training/start")
        self.loader = self.node.create_client(LoadModel, "inference/load_model")
        self.canceller = self.node.create_client(CancelJob, "training/cancel")
        self.command, self.inference = CommandStatus(), InferenceStatus()
        self.last_job = "", ""
        self.last = None  # stamp of the last command [s]
        self.periods = self.missed = self.jobs = self.left = self.swaps = 0
        self.processes = {name: self.start(name) for name in ("sim", "model", "command", "jobs")}

    def start(self, name: str) -> subprocess.Popen:
        jobs = self.folder / "jobs"
        jobs.mkdir(exist_ok=True)
        module, parameters = {
            "sim": (
                "vla_sim_bridge.ros.sim_node",
                {
                    "task": self.args.task,
                    "episodes": 1_000_000,
                    "horizon": 200,
                    "seed": 7,
                    "record_episodes": 0,
                    "lock_step": False,
                    "driven_by": "twist",
                    "summary": False,
                    "frame_rate": self.args.frame_rate,
                    "output": str(self.folder / "sim"),
                },
            ),
            "model": (
                "vla_inference.ros.inference.node",
                {
                    "model": str(self.model),
                    "model_root": str(self.model.parent),
                    "max_same_image": 0.0,  # a simulated scene that stands still
                },
            ),
            "command": ("vla_inference.ros.command.node", {"command_rate": 1 / PERIOD}),
            "jobs": ("vla_training.ros.training_node", {"root": str(jobs)}),
        }[name]
        words = [w for k, v in parameters.items() for w in ("-p", f"{k}:={json.dumps(v)}")]
        if name == "command":
            words = ["--params-file", str(ROBOT), *words]
        with (self.folder / f"{name}.log").open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module, "--ros-args", *words],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    # -- what is heard ------------------------------------------------------------------------

    def hear(self, msg: TwistStamped) -> None:
        stamp = 1e-9 * Time.from_msg(msg.header.stamp).nanoseconds
        # After a motion's two zeros there is silence: only what follows a motion must be in time.
        if self.last is not None:
            passed = max(1, round((stamp - self.last) / PERIOD))
            self.periods += passed
            self.missed += passed - 1
        self.last = stamp if msg.twist != TwistStamped().twist else None

    def stand(self, msg: CommandStatus) -> None:
        self.command = msg

    def answer(self, msg: InferenceStatus) -> None:
        self.inference = msg

    def hear_job(self, msg: JobStatus) -> None:
        self.last_job = msg.job_id, msg.state

    # -- what is done -------------------------------------------------------------------------

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.02)

    def call(self, client, request):
        future = client.call_async(request)
        end = time.monotonic() + 10
        while not future.done() and time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.02)
        return future.result()

    def job(self) -> None:
        """Begin to generate, cancel it, and see whether anything of it is left."""
        words = [
            "--task",
            "Stack_D0",
            "--episodes",
            "5",
            "--parallel",
            "1",
            "--output",
            f"job{self.jobs}",
        ]
        answer = self.call(self.starter, StartJob.Request(kind="generate", arguments=words))
        if answer is None or not answer.accepted:
            print(f"no job: {answer and answer.message}", file=sys.stderr)
            return
        self.jobs += 1
        self.spin(4.0)
        self.call(self.canceller, CancelJob.Request(job_id=answer.job_id))
        end = time.monotonic() + 30
        while self.last_job != (answer.job_id, JobStatus.CANCELLED) and time.monotonic() < end:
            self.spin(0.1)
        self.spin(1.0)
        self.left = max(self.left, descendants(self.processes["jobs"].pid))

    def swap(self) -> None:
        """Another copy of the model takes over."""
        answer = self.call(self.loader, LoadModel.Request(model=self.model.name))
        if answer is None or not answer.success:
            raise SystemExit(f"the model was not changed: {answer and answer.message}")
        self.swaps += 1

    def run(self) -> dict:
        begun = time.monotonic()
        while not self.inference.processed:
            self.alive(begun, 120)
            self.spin(0.5)
        begun = time.monotonic()
        end, next_job = begun + 60 * self.args.minutes, begun + self.args.job_every
        next_swap = begun + min(self.args.swap_every, WARM_UP / 2)
        samples: list[tuple[float, dict]] = []
        while time.monotonic() < end:
            self.alive(begun, float("inf"))
            if self.args.job_every and time.monotonic() > next_job:
                self.job()
                next_job += self.args.job_every
            if self.args.swap_every and time.monotonic() > next_swap:
                self.swap()
                next_swap += self.args.swap_every
            due = begun + EVERY * (len(samples) + 1)
            self.spin(max(0.1, due - time.monotonic()))
            at = time.monotonic() - begun
            samples.append((at, {n: sample(p.pid) for n, p in self.processes.items()}))
            if len(samples) % 12 == 0:
                memory = ", ".join(f"{n} {v['mb']:.0f} MB" for n, v in samples[-1][1].items())
                print(f"{at / 60:.0f} min: {memory}", file=sys.stderr, flush=True)
        return self.figures(samples)

    def alive(self, begun: float, patience: float) -> None:
        for name, process in self.processes.items():
            if process.poll() is not None or time.monotonic() - begun > patience:
                log = (self.folder / f"{name}.log").read_text()[-500:]
                raise SystemExit(f"{name} (status {process.returncode}) did not go on: {log}")

    def figures(self, samples: list[tuple[float, dict]]) -> dict:
        warm = [s for at, s in samples if at > min(WARM_UP, 0.2 * 60 * self.args.minutes)]
        tenth = max(1, len(warm) // 10)
        found = {}
        for name in self.processes:
            row = {}
            for what in ("mb", "threads", "files"):
                values = [s[name][what] for s in warm]
                first, last = (statistics.median(v) for v in (values[:tenth], values[-tenth:]))
                row[what] = round(last, 1)
                row[f"{what}_growth"] = round(last - first, 1)
            found[name] = row
        stops = dict(zip(self.command.stop_kinds, self.command.stop_counts, strict=True))
        results = self.folder / "sim" / "results.json"
        sim = json.loads(results.read_text()) if results.exists() else {}
        return {
            "minutes": self.args.minutes,
            "processes": found,
            "command_periods": self.periods,
            "missed_periods": self.missed,
            "missed_share": round(self.missed / max(1, self.periods), 5),
            "stops": {k: int(n) for k, n in stops.items()},
            "jobs": self.jobs,
            "job_processes_left": self.left,
            "model_changes": self.swaps,
            "episodes": sim.get("episodes"),
            "successes": sim.get("successes"),
            "sim_real_time": sim.get("real_time"),
            "model_rate": round(self.inference.rate, 2),
            "model_latency_p95_ms": round(self.inference.latency_p95_ms, 1),
        }

    def close(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown()


def faults(figures: dict) -> list[str]:
    found = []
    for name, row in figures["processes"].items():
        if row["mb_growth"] > MEGABYTES:
            found.append(f"{name} grew by {row['mb_growth']} MB")
        if row["threads_growth"] > 0:
            found.append(f"{name} has {row['threads_growth']} threads more")
    if figures["missed_share"] > MISSED or not figures["command_periods"]:
        found.append(f"{figures['missed_periods']} of {figures['command_periods']} missed")
    if figures["job_processes_left"]:
        found.append(f"{figures['job_processes_left']} processes of jobs left behind")
    return found


def table(figures: dict) -> str:
    lines = [
        f"{'process':<9} {'memory':>9} {'growth':>9} {'threads':>8} {'growth':>7} "
        f"{'files':>6} {'growth':>7}"
    ]
    for name, r in figures["processes"].items():
        lines.append(
            f"{name:<9} {r['mb']:>6} MB {r['mb_growth']:>6} MB {r['threads']:>8} "
            f"{r['threads_growth']:>7} {r['files']:>6} {r['files_growth']:>7}"
        )
    lines += [f"{k}: {v}" for k, v in figures.items() if k != "processes"]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--task", default="Stack_D2")
    parser.add_argument("--frame-rate", type=float, default=5.0, help="images per second")
    parser.add_argument("--job-every", type=float, default=120.0, help="seconds; 0: no jobs")
    parser.add_argument("--swap-every", type=float, default=300.0, help="seconds; 0: never")
    add_output(parser)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes end too
    with tempfile.TemporaryDirectory(prefix="vla_soak_", ignore_cleanup_errors=True) as folder:
        soak = Soak(args, Path(folder))
        try:
            figures = soak.run()
        finally:
            soak.close()
    wrong = faults(figures)
    print(table(figures))
    keep({**figures, "wrong": wrong}, args.output, show=False)
    for text in wrong:
        print(f"wrong: {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
