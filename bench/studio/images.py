#!/usr/bin/env python3
"""How far the page's images are behind the simulation's, and what an open page costs the loop.

    python bench/studio/images.py [--windows 10] [--seconds 8] [--output ...]

The shipped model drives the simulation in lock step, as in `vla rollout`, with a studio beside it.
Windows without a page, with one in a headless Chromium, and with one in a Chromium that gets only
the processor time that is left over alternate: this machine's other work is in all. The last kind
stands for a browser on another machine: what it costs the loop is the studio's own work. An image
is behind by the time from its arrival at another subscriber to its being drawn. The processor time
of browser and studio depends least on other work.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import ROOT, add_output, keep

sys.path.insert(0, str(ROOT / "test"))
import rclpy
from chromium import chromium
from domains import domain
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import Image

from vla_inference.ros import qos

VLA = [sys.executable, "-m", "vla_inference.cli.main"]
WITHOUT, WITH, ASIDE = "without a page", "with a page", "with a page, the browser idle priority"
HOOK = """(() => { window.drawn = [];
new MutationObserver((changes) => { for (const { target } of changes)
  window.drawn.push([Number(target.dataset.stamp), Date.now()]);
}).observe(document.querySelector('#cameras'), {
  subtree: true, attributeFilter: ['data-stamp'],
}); })()"""


class Images:
    """Hears the simulation's images in a thread of its own. times: arrival by stamp, Unix s."""

    def __init__(self) -> None:
        self.times: dict[float, float] = {}
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=domain())
        self._node = rclpy.create_node("images", context=self._context)
        self._node.create_subscription(Image, "image", self._hear, qos.IMAGE_INPUT)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _hear(self, msg: Image) -> None:
        stamp = msg.header.stamp
        self.times.setdefault(round(stamp.sec + 1e-9 * stamp.nanosec, 4), time.time())

    def _spin(self) -> None:
        with contextlib.suppress(Exception):  # the context ends
            self._executor.spin()

    def since(self, start: float) -> int:
        return sum(at >= start for at in list(self.times.values()))

    def close(self) -> None:
        rclpy.shutdown(context=self._context)
        self._thread.join(5)


@contextlib.contextmanager
def running(*words: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """A `vla` command in this process's domain; it ends with the block."""
    there = {**os.environ, "ROS_DOMAIN_ID": str(domain()), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([*VLA, *words], env=there, text=True, **more)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()


@contextlib.contextmanager
def studio(*options: str) -> Iterator[tuple[str, int]]:
    """A studio's address and process id."""
    words = ("studio", "--port", "0", *options)
    with running(*words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        found = None
        while found is None:
            line = process.stdout.readline() or sys.exit("the studio has ended")
            found = re.search(r"the studio is at (http://\S+)", line)
        drain = threading.Thread(target=process.stdout.read, daemon=True)
        drain.start()
        yield found[1], process.pid


def processor_seconds(pid: int) -> float:
    """Processor time of a process and of all that it has started and that still runs."""
    ticks: dict[int, int] = {}
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            fields = path.read_text().rpartition(")")[2].split()
            number = int(path.parent.name)
            parents[number], ticks[number] = int(fields[1]), int(fields[11]) + int(fields[12])

    def mine(number: int) -> bool:
        return number == pid or (number in parents and mine(parents[number]))

    return sum(ticks[n] for n in ticks if mine(n)) / os.sysconf("SC_CLK_TCK")


async def window(images: Images, url: str, pid: int, kind: str, seconds: float) -> dict[str, Any]:
    """Frames per second of the closed loop, delays of the page's images [ms], and processor time
    of browser and studio [s/s]. pid: the studio's."""
    page = kind != WITHOUT
    prefix = ("chrt", "--idle", "0") if kind == ASIDE else ()
    async with contextlib.AsyncExitStack() as stack:
        browser = await stack.enter_async_context(chromium(*prefix))  # there in every window
        tab = await browser.open(url if page else "about:blank")
        if page:
            await tab.until("!!document.querySelector('#cameras canvas')")
            await tab.evaluate(HOOK)
        await asyncio.sleep(2)
        pids = {"browser": browser.process.pid, "studio": pid}
        before = {who: processor_seconds(number) for who, number in pids.items()}
        start = time.time()
        await asyncio.sleep(seconds)
        passed = time.time() - start
        rate = images.since(start) / passed
        busy = {w: (processor_seconds(n) - before[w]) / passed for w, n in pids.items()}
        drawn = await tab.evaluate("window.drawn ?? []")
    arrived = images.times
    pairs = [(arrived.get(round(stamp, 4)), at / 1e3) for stamp, at in drawn]
    delays = [1e3 * (at - came) for came, at in pairs if came is not None and at > start]
    return {"rate": rate, "delays": delays, "busy": busy}


def per_frame(busy: list[dict[str, float]], rates: list[float]) -> dict[str, float]:
    """Median processor time [ms] per frame, of windows that had any; busy: [s/s]."""
    each = [(b, rate) for b, rate in zip(busy, rates, strict=True) if rate]
    return {
        who: round(1e3 * statistics.median(b[who] / rate for b, rate in each), 1)
        for who in (busy[0] if each else ())
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=10, help="of each kind")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each window")
    add_output(parser)
    args = parser.parse_args()
    rates: dict[str, list[float]] = {WITHOUT: [], WITH: [], ASIDE: []}
    busy: dict[str, list[dict[str, float]]] = {kind: [] for kind in rates}
    delays: list[float] = []
    images = Images()
    launch = ["launch", "vla_sim_bridge", "sim_eval.launch.xml", "namespace:=/"]
    launch += ["episodes:=1000", "record_episodes:=0"]
    with (
        tempfile.TemporaryDirectory() as folder,
        running(*launch, f"output:={folder}/results", stdout=subprocess.DEVNULL),
        studio() as (url, pid),
    ):
        while images.since(0) < 50:
            time.sleep(0.5)
        for number in range(args.windows):
            for kind in [*rates][:: 1 if number % 2 else -1]:  # none is always the later one
                found = asyncio.run(window(images, url, pid, kind, args.seconds))
                rates[kind].append(found["rate"])
                busy[kind].append(found["busy"])
                delays += found["delays"] if kind == WITH else []
                told = kind, found["rate"], len(found["delays"]), found["busy"]
                print(*told, file=sys.stderr, flush=True)
    images.close()
    middle = {kind: statistics.median(found) for kind, found in rates.items()}
    report = {
        "images": len(delays),
        "behind_ms": {
            "median": round(statistics.median(delays), 1),
            "p95": round(sorted(delays)[int(0.95 * len(delays))], 1),
        },
        "frames_per_second": {k: [round(r, 2) for r in found] for k, found in rates.items()},
        "processor_ms_per_frame": {k: per_frame(busy[k], rates[k]) for k in rates},
        "rate_of_that_without": {k: round(middle[k] / middle[WITHOUT], 3) for k in (WITH, ASIDE)},
    }
    keep(report, args.output)


if __name__ == "__main__":
    main()
