#!/usr/bin/env python3
"""Faults in a running graph: how soon the command node is safe, why, and whether it recovers.

    python bench/faults.py [--times 20] [--only NAME ...] [--watchdog 0.5] [--json]

A camera (or the simulator), the inference node and the command node, a process each; commands flow
at 20 Hz when the fault comes. The time to a safe state is counted from the fault to the arrival of
the status "stopped" (or, at Ctrl-C, to the last command that moves); `beyond` is what it exceeds
the bounds of the watchdogs in charge by: --watchdog each, and 0.3 s more until a camera counts as
frozen. `total` is the whole time, bounds included; `motion` that to the last command that moves;
`delivery` (JSON) how long the status was on its way. Safe means: from then on no command that
moves, and both nodes say why. Recovered means: the fault taken away or the process started again,
enabled again, and commands flow. A stop before the fault could be noticed counts as a failure.
Exit status 1 where any of it failed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import rclpy
from geometry_msgs.msg import TwistStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String
from std_srvs.srv import SetBool

from vla_inference.random_checkpoint import write_random_checkpoint
from vla_inference.ros import qos
from vla_msgs.msg import CommandStatus, InferenceStatus

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = str(Path(__file__).with_name("fault_processes.py"))
WATCHDOG, SAME = 0.5, 0.3  # seconds
ALLOWED = 0.2  # seconds beyond the watchdogs' bounds
EARLY = 0.2  # seconds before them: what was seen last before a fault may be as old
PATIENCE = 60.0
QUIET = 0.3  # seconds without a moving command that show a safe state

_domains = itertools.count(os.getpid() + 70)


class Failed(Exception):
    """A graph that did not come up, did not become safe or did not recover."""


class Graph:
    """The processes, and who watches them."""

    def __init__(
        self, folder: Path, sim_time: bool = False, camera: str = "camera",
        watchdog: float = WATCHDOG,
    ):  # fmt: skip
        self.folder, self.sim_time, self.camera = folder, sim_time, camera
        self.watchdog = watchdog
        domain = 1 + next(_domains) % 100
        self.environment = {
            **os.environ,
            "ROS_DOMAIN_ID": str(domain),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
            "FASTRTPS_DEFAULT_PROFILES_FILE": str(ROOT / "config/fastdds/quick_discovery.xml"),
            "OMP_NUM_THREADS": "1",
        }
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("watcher", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.processes: dict[str, subprocess.Popen] = {}
        self.dead: set[str] = set()  # killed, and not started again
        self.moved = self.heard = 0.0  # when a moving command, and any, came last (monotonic)
        self.command, self.inference = CommandStatus(), InferenceStatus()
        self.stopped_at, self.delivery = 0.0, math.nan
        make = self.node.create_subscription
        make(TwistStamped, "delta_twist", self._twist, 10)
        make(CommandStatus, "command/status", self._command_status, qos.LATCHED)
        make(InferenceStatus, "inference/status", self._inference_status, qos.LATCHED)
        self.faults = {
            name: self.node.create_publisher(String, f"{name}/fault", qos.LATCHED)
            for name in ("camera", "model")
        }
        self.enabler = self.node.create_client(SetBool, "command/enable")
        self.ahead = 0.0  # of the simulated clock
        if sim_time:
            self.clock = self.node.create_publisher(Clock, "/clock", 10)
            self.node.create_timer(0.01, self.tell_time)

    # -- what is heard ------------------------------------------------------------------------

    def _twist(self, msg: TwistStamped) -> None:
        self.heard = time.monotonic()
        if msg.twist != TwistStamped().twist:
            self.moved = self.heard

    def _command_status(self, msg: CommandStatus) -> None:
        if msg.state == CommandStatus.STOPPED and self.command.state != CommandStatus.STOPPED:
            self.stopped_at = time.monotonic()
            if not self.sim_time:
                self.delivery = time.time() - 1e-9 * Time.from_msg(msg.stop_time).nanoseconds
        self.command = msg

    def _inference_status(self, msg: InferenceStatus) -> None:
        self.inference = msg

    def tell_time(self) -> None:
        now = time.time_ns() + int(1e9 * self.ahead)
        msg = Clock()
        msg.clock.sec, msg.clock.nanosec = divmod(now, 10**9)
        self.clock.publish(msg)

    # -- what is done -------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Start one of camera, model, command, sim; again where it was before."""
        model = {
            "model": str(self.folder / "model"), "instruction": "stack it", "num_threads": 1,
            "max_image_age": WATCHDOG, "max_same_picture": SAME if name == "model" else 0.0,
        }  # fmt: skip
        watchdogs = dict.fromkeys(("max_picture_age", "stall_timeout"), self.watchdog)
        watchdogs["max_period"] = WATCHDOG
        results = tempfile.mkdtemp(dir=self.folder)
        sim = {
            "episodes": 1000, "horizon": 1000, "record_episodes": 0, "lock_step": False,
            "width": 64, "height": 64, "discovery_time": 0.5, "output": results + "/r",
        }  # fmt: skip
        if self.camera == "sim":
            model["max_same_picture"] = 0.0  # an arm that stands still is no frozen camera
        command, parameters = {
            "camera": ([PROCESSES, "camera"], {}),
            "model": ([PROCESSES, "model"], model),
            "command": (["-m", "vla_inference.command_node"], watchdogs),
            "sim": (["-m", "vla_sim_bridge.sim_node"], sim),
        }[name]
        if self.sim_time:
            parameters = {**parameters, "use_sim_time": True}
        words = [w for k, v in parameters.items() for w in ("-p", f"{k}:={json.dumps(v)}")]
        log = (self.folder / f"{name}.log").open("a")
        self.processes[name] = subprocess.Popen(
            [sys.executable, *command, "--ros-args", *words],
            env=self.environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        log.close()
        self.dead.discard(name)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        self.processes[name].send_signal(number)
        if number == signal.SIGKILL:
            self.dead.add(name)

    def running(self, name: str) -> bool:
        return name not in self.dead and self.processes[name].poll() is None

    def fault(self, name: str, what: str) -> None:
        self.faults[name].publish(String(data=what))

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.02)

    def until(
        self, condition: Callable[[], object], what: str, patience: float = PATIENCE
    ) -> None:
        end = time.monotonic() + patience
        while not condition():
            if time.monotonic() > end:
                raise Failed(
                    f"waited in vain for {what}; command: {self.command.state} "
                    f"{self.command.stop_reason or self.command.message}; inference: "
                    f"{self.inference.state} {self.inference.message}"
                )
            self.executor.spin_once(timeout_sec=0.02)

    def run(self) -> None:
        """Enable, as soon as that is accepted, and wait until commands have flowed a while."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self.command.state != CommandStatus.ENABLED:
                self._enable()
            begun = time.monotonic()
            with contextlib.suppress(Failed):
                self.until(lambda: self.command.state == CommandStatus.STOPPED, "", 0.6)
            if self.command.state == CommandStatus.ENABLED and self.moved > begun + 0.4:
                return
        raise Failed(f"does not run: {self.command.stop_reason}; {self.inference.message}")

    def _enable(self) -> None:
        if not self.enabler.service_is_ready():
            self.spin(0.1)
            return
        answer = self.enabler.call_async(SetBool.Request(data=True))
        with contextlib.suppress(Failed):
            self.until(answer.done, "an answer", 2.0)
            if answer.result().success:
                self.until(lambda: self.command.state == CommandStatus.ENABLED, "enabling", 1.0)
            else:
                self.spin(0.2)

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


# -- the faults -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What is done, what takes it away again, when and by whom it is noticed.

    same, watched: whether the bounds for a frozen camera and of a watchdog go before it is. kinds:
    of the command node's stop. says: what the model's node says of it, where that is alive; of
    several any. graph: camera, sim, or clock (simulated time).
    """

    do: Callable[[Graph], None]
    undo: Callable[[Graph], None]
    kinds: tuple[str, ...]
    same: bool = False
    watched: bool = True
    says: tuple[str, ...] = ()
    graph: str = "camera"

    def bound(self, g: Graph) -> float:
        """Seconds until it is noticed, at most."""
        return SAME * self.same + g.watchdog * self.watched


SILENT = ("inference_stall", "picture_age")  # how the command node calls a model's silence


def told(name: str, what: str, *says: str, same: bool = False) -> Fault:
    return Fault(
        lambda g: g.fault(name, what), lambda g: g.fault(name, "good"), SILENT, same, says=says
    )


def killed(name: str, *says: str, graph: str = "camera") -> Fault:
    def again(g: Graph) -> None:
        if name in g.dead:
            g.processes[name].wait()
            g.start(name)

    return Fault(lambda g: g.kill(name), again, SILENT, says=says, graph=graph)


def jump(g: Graph) -> None:
    g.ahead -= 5.0
    g.tell_time()


def overload(g: Graph) -> None:
    """Its process gets no time for 0.8 s; what counts is what it does when it runs again."""
    g.kill("command", signal.SIGSTOP)
    g.spin(0.8)
    g.kill("command", signal.SIGCONT)


_pauses = random.Random(0)


def twice(g: Graph) -> None:
    """The second one comes while the first is being seen to; at once, the two would be one."""
    g.kill("command", signal.SIGINT)
    g.spin(_pauses.uniform(0.005, 0.15))
    if g.processes["command"].poll() is None:
        g.kill("command", signal.SIGINT)


def after_ctrl_c(g: Graph) -> None:
    if g.running("command"):
        return  # it is here again already
    status = g.processes["command"].returncode
    g.start("command")
    if status:
        raise Failed(f"the command node ended with status {status}")


FAULTS = {
    "camera dies": killed("camera", "nothing on image"),
    "camera freezes": told("camera", "freeze", "very same picture", same=True),
    "camera repeats": told("camera", "repeat", "very same picture", "s old", same=True),
    "camera sends garbage": told("camera", "garbage", "picture"),
    "model hangs": told("model", "hang"),  # it cannot tell of that itself for 5 s
    "model is killed": killed("model"),
    "model returns NaN": told("model", "nan", "not finite"),
    "clock jumps back": Fault(
        jump, lambda g: None, ("clock_back", "picture_age"), watched=False, graph="clock"
    ),
    "simulator dies": killed("sim", "nothing on image", graph="sim"),
    "executor overloaded": Fault(overload, lambda g: None, ("late",), watched=False),
    "Ctrl-C twice": Fault(twice, after_ctrl_c, (), watched=False),
}


@contextlib.contextmanager
def graph_for(kind: str, watchdog: float = WATCHDOG) -> Iterator[Graph]:
    folder = Path(tempfile.mkdtemp(prefix="vla_faults_"))
    write_random_checkpoint(folder / "model", head="parallel")  # keeps within its bounds
    camera = "sim" if kind == "sim" else "camera"
    graph = Graph(folder, kind == "clock", camera, watchdog)
    try:
        for name in (camera, "model", "command"):
            graph.start(name)
        yield graph
    finally:
        graph.close()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Round:
    """Seconds from the fault to the status "stopped" (at Ctrl-C: to the last command that moves),
    the same beyond the bound, and to the last command that moves; how long the status was on its
    way (NaN: not known); who stopped it; what the model's node said."""

    total: float
    beyond: float
    motion: float
    delivery: float
    kind: str
    said: str


def once(g: Graph, fault: Fault) -> Round:
    """Inject, wait until it is safe, take it away, wait until it runs."""
    g.run()
    g.stopped_at, g.delivery = 0.0, math.nan
    refused, bound = g.inference.refused, fault.bound(g)
    begun = time.monotonic()
    fault.do(g)
    if fault.do is overload:
        begun = time.monotonic()
    if fault.kinds:
        g.until(lambda: g.stopped_at > 0, "a stop", bound + 5)
        safe, kind = g.stopped_at, g.command.stop_kind
        if kind not in fault.kinds or not g.command.stop_reason:
            raise Failed(f"stopped by {kind!r} ({g.command.stop_reason!r})")
        if safe < begun + bound - EARLY:
            raise Failed(f"stopped by {kind!r} before the fault could be noticed")
    else:
        g.until(lambda: not g.running("command"), "the process's end", 10)
        g.spin(QUIET)
        if g.heard <= g.moved:
            raise Failed("the last command was no halt")
        safe, kind = g.moved, "shut down"
    g.spin(QUIET)
    if g.moved > safe + 0.02:  # what was under way when the status came
        raise Failed(f"a command that moves {g.moved - safe:.3f} s after the stop")
    moved, delivery = g.moved, g.delivery
    said = said_of(g, fault, refused)
    fault.undo(g)
    g.run()
    return Round(safe - begun, safe - begun - bound, moved - begun, delivery, kind, said)


def said_of(g: Graph, fault: Fault, refused: int) -> str:
    """What the model's node says of the fault; raises Failed where that is nothing."""

    def said() -> str:
        now = g.inference
        lines = (now.message, now.last_refusal if now.refused > refused else "")
        return next((t for t in lines if any(w in t for w in fault.says)), "")

    if fault.says:
        g.until(said, f"the model's node to say {' or '.join(fault.says)!r}", 3.0)
    return said()


def measure(
    name: str, times: int, tell: Callable[[str], None] = lambda text: None,
    watchdog: float = WATCHDOG,
) -> dict:  # fmt: skip
    fault = FAULTS[name]
    rounds, kinds, failures = [], {}, []
    with graph_for(fault.graph, watchdog) as g:
        bound = fault.bound(g)
        for i in range(times):
            try:
                rounds.append(once(g, fault))
            except Failed as error:
                failures.append(f"round {i + 1}: {error}")
                with contextlib.suppress(Exception):
                    fault.undo(g)
            else:
                kinds[rounds[-1].kind] = kinds.get(rounds[-1].kind, 0) + 1
            tell(f"{name}: {i + 1} of {times}")

    def spread(what: str) -> dict[str, float | None]:
        values = [v for r in rounds if math.isfinite(v := 1e3 * getattr(r, what))]
        return {
            f"{what}_median_ms": round(statistics.median(values), 1) if values else None,
            f"{what}_worst_ms": round(max(values), 1) if values else None,
        }

    return {
        "fault": name,
        "reason": kinds,
        "model says": rounds[-1].said if rounds else "",
        "bound_ms": round(1e3 * bound),
        **spread("beyond"),
        **spread("total"),
        **spread("motion"),
        **spread("delivery"),
        "recovered": len(rounds),
        "times": times,
        "failures": failures,
    }


def good(row: dict) -> bool:
    worst = row["beyond_worst_ms"]
    return row["recovered"] == row["times"] and (math.inf if worst is None else worst) <= (
        1e3 * ALLOWED
    )


def table(rows: list[dict]) -> str:
    lines = [
        f"{'fault':<21} {'stopped by':<28} {'bound':>7} {'beyond: median':>14} {'worst':>9} "
        f"{'total: worst':>13} {'motion: worst':>14}  recovered"
    ]
    for r in rows:
        reason = ", ".join(f"{k} {n}" for k, n in r["reason"].items())
        lines.append(
            f"{r['fault']:<21} {reason:<28} {r['bound_ms']:>4} ms "
            f"{r['beyond_median_ms']!s:>11} ms "
            f"{r['beyond_worst_ms']!s:>6} ms {r['total_worst_ms']!s:>10} ms "
            f"{r['motion_worst_ms']!s:>11} ms  {r['recovered']} of {r['times']}"
        )
        lines += [f"    {text}" for text in r["failures"]]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--only", nargs="*", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--watchdog", type=float, default=WATCHDOG, help="s, bound of each")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes end too
    rows = []
    for name in args.only:
        rows.append(measure(name, args.times, tell, args.watchdog))
        tell(table(rows[-1:]))
    print(json.dumps(rows, indent=2) if args.json else table(rows))
    return 0 if all(map(good, rows)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
