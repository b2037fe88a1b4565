#!/usr/bin/env python3
"""Fault injection in a running graph: time to a safe state, its reason, recovery.

    python test/robustness/faults.py [--times 20] [--only NAME ...] [--watchdog 0.5]
        [--output FILE]

With --only, rows of other faults that FILE has already stay in it.

A camera (or the simulator), the inference node and the command node, a process each; commands flow
at 20 Hz when the fault comes. The time to a safe state is counted from the fault to the arrival of
the status "stopped" (or, at Ctrl-C, to the last command that moves); `beyond` is what it exceeds
the bounds of the watchdogs by: --watchdog each, and 0.3 s more until a camera counts as
frozen. `total` is the whole time, bounds included; `motion` that to the last command that moves;
`delivery` (JSON) how long the status was on its way. Safe means: from then on no command that
moves, and both nodes say why. Recovered means: the fault taken away or the process started again,
enabled again, and commands flow. A stop before the fault could be noticed counts as a failure.
Exit status 1 where any of it failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
from common import add_output, keep
from fault_graph import JOINT_SPEED, SAME, WATCHDOG, Failed, Graph, graph_for

ALLOWED = 0.2  # seconds beyond the watchdogs' bounds
EARLY = 0.2  # seconds before them: what was seen last before a fault may be as old
QUIET = 0.3  # seconds without a moving command that show a safe state

# -- the faults -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What is done, what takes it away again, when and by whom it is noticed.

    same, watched: whether the bounds for a frozen camera and of a watchdog go before it is. kinds:
    of the command node's stop. says: what the model's node says of it, where that is alive; of
    several any. graph: one of `Graph`'s kinds. survived: it is to be refused without a stop.
    sooner: kinds that may come as soon as the watchdog's own bound, without a frozen camera's.
    """

    do: Callable[[Graph], None]
    undo: Callable[[Graph], None]
    kinds: tuple[str, ...]
    same: bool = False
    watched: bool = True
    says: tuple[str, ...] = ()
    graph: str = "camera"
    survived: bool = False
    sooner: tuple[str, ...] = ("image_age",)

    def bound(self, g: Graph) -> float:
        """Seconds until it is noticed, at most."""
        return SAME * self.same + g.watchdog * self.watched


SILENT = ("inference_stall", "image_age")  # how the command node calls a model's silence


def told(name: str, what: str, *says: str, same: bool = False, **more) -> Fault:
    do, undo = lambda g: g.fault(name, what), lambda g: g.fault(name, "good")
    return Fault(do, undo, SILENT, same, says=says, **more)


def killed(name: str, *says: str, graph: str = "camera") -> Fault:
    def again(g: Graph) -> None:
        if name in g.dead:
            g.processes[name].wait()
            g.start(name)

    return Fault(lambda g: g.kill(name), again, SILENT, says=says, graph=graph)


def of_the_arm(what: str, *kinds: str, graph: str = "pose") -> Fault:
    """A fault that goes on until it is taken away; without kinds: once, to be survived."""
    return Fault(
        lambda g: g.fault("arm", what),
        lambda g: g.fault("arm", "good"),
        kinds,
        graph=graph,
        survived=not kinds,
    )


def clock_stops(g: Graph) -> None:
    g.clock_runs = False


def clock_goes_on(g: Graph) -> None:
    g.clock_runs = True


def one_negative(g: Graph) -> None:
    for name in ("camera", "arm"):
        g.fault(name, "one_negative")


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
    "camera freezes": told("camera", "freeze", "exactly the same image", same=True),
    # An image that is sent again with its old stamp may be too old, and its chunks bring nothing
    # new to execute, before it is the same for too long.
    "camera repeats": told(
        "camera", "repeat", "exactly the same image", "s old", same=True, sooner=SILENT
    ),
    "camera sends garbage": told("camera", "garbage", "image"),
    "model hangs": told("model", "hang"),  # it cannot tell of that itself for 5 s
    "model is killed": killed("model"),
    "model returns NaN": told("model", "nan", "not finite"),
    "clock jumps back": Fault(
        jump, lambda g: None, ("clock_back", "image_age"), watched=False, graph="clock"
    ),
    "simulator dies": killed("sim", "nothing on image", graph="sim"),
    # A chunk that has waited may be looked at before the clock: its image is too old.
    "executor overloaded": Fault(overload, lambda g: None, ("late", "image_age"), watched=False),
    "Ctrl-C twice": Fault(twice, after_ctrl_c, (), watched=False),
    # Chunks of one and the same moment soon bring nothing to execute either.
    "clock stops": Fault(
        clock_stops, clock_goes_on, ("clock_stopped", "inference_stall"), graph="clock"
    ),
    "pose freezes": of_the_arm("freeze", "pose_frozen"),
    "pose repeats": of_the_arm("repeat", "pose_lost"),
    "pose jumps": of_the_arm("jump", "pose_lost"),
    "one pose jumps": of_the_arm("one_jump"),
    "stray joint states": of_the_arm("stray", "pose_lost", graph="joints"),
    "one stray joint state": of_the_arm("one_stray", graph="joints"),
    "negative stamps": told("camera", "negative", "is not a valid time"),
    "poses' stamps negative": of_the_arm("negative", "pose_lost"),
    "one negative stamp": Fault(one_negative, lambda g: None, (), graph="pose", survived=True),
    "one of joint states": of_the_arm("one_negative", graph="joints"),
}


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
    if fault.survived:
        return survive(g, bound)
    if fault.kinds:
        g.until(lambda: g.stopped_at > 0, "a stop", bound + 5)
        safe, kind = g.stopped_at, g.command.stop_kind
        if kind not in fault.kinds or not g.command.stop_reason:
            raise Failed(f"stopped by {kind!r} ({g.command.stop_reason!r})")
        least = g.watchdog * fault.watched if kind in fault.sooner else bound
        if fault.kinds == SILENT and safe < begun + least - EARLY:
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
    no_jump_of_joints(g)
    moved, delivery = g.moved, g.delivery
    said = said_of(g, fault, refused)
    fault.undo(g)
    g.run()
    return Round(safe - begun, safe - begun - bound, moved - begun, delivery, kind, said)


def survive(g: Graph, bound: float) -> Round:
    """A single message that is to be refused: commands flow on."""
    g.spin(bound + ALLOWED)
    if g.stopped_at:
        raise Failed(f"stopped by {g.command.stop_kind!r} ({g.command.stop_reason!r})")
    if time.monotonic() - g.moved > ALLOWED or not all(map(g.running, g.processes)):
        raise Failed("commands do not flow on")
    no_jump_of_joints(g)
    return Round(0.0, 0.0, 0.0, math.nan, "survived", "")


def no_jump_of_joints(g: Graph) -> None:
    if g.joint_speed > JOINT_SPEED * (1 + 1e-6):
        raise Failed(f"joints were commanded at {g.joint_speed:.2f} rad/s")


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
    name: str,
    times: int,
    tell: Callable[[str], None] = lambda text: None,
    watchdog: float = WATCHDOG,
) -> dict:
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
    add_output(parser)
    args = parser.parse_args()

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes end too
    earlier = earlier_rows(args.output) if args.only != list(FAULTS) else {}
    rows = dict(earlier)
    for name in args.only:
        rows[name] = measure(name, args.times, tell, args.watchdog)
        tell(table([rows[name]]))
        # What was measured before a kill stays
        keep({"rows": list(rows.values())}, args.output, show=False)
    print(table(list(rows.values())))
    return 0 if all(map(good, rows.values())) else 1


def earlier_rows(path: Path | None) -> dict[str, dict]:
    """Rows that an earlier run left in the output, by fault; each says where it is from."""
    if path is None or not path.is_file():
        return {}
    kept = json.loads(path.read_text())
    return {row["fault"]: {"measured": kept["provenance"], **row} for row in kept["rows"]}


if __name__ == "__main__":
    raise SystemExit(main())
