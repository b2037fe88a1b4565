#!/usr/bin/env python3
"""How long a robot still moves after the studio's button is let go, however that comes about.

    python bench/studio/faults.py [--times 20] [--output bench/results/studio_faults.json]
    python bench/studio/faults.py --by-hand

A page in a headless Chromium holds the button of a studio and a command node in a real ROS graph,
while the model moves the robot or, by hand, a person who has taken over and holds a key as well.
Time counts from the fault to the stamp of the last twist that is no standstill.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import ROOT, add_output, keep

sys.path.insert(0, str(ROOT / "test"))
from chromium import Browser, Tab, chromium
from studio_graph import StudioGraph
from studio_server import eventually

FAULTS = ("release", "tab closed", "browser killed", "socket dropped")
KEY = "key released"  # by hand, while the button is still held
PATIENCE = 120.0  # s
AFTER = 1.0  # s without motion


class Cable:
    """Between browser and studio; `cut` loses whatever is sent from then on, without a word."""

    def __init__(self, port: int):
        self._port, self._whole, self.url = port, True, ""

    async def __aenter__(self) -> Cable:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/"
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._server.close()

    def cut(self) -> None:
        self._whole = False

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._port)
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(
                self._carry(reader, other_writer), self._carry(other_reader, writer)
            )
        other_writer.close()
        writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if self._whole:
                writer.write(data)
        writer.close()


def moving(graph: StudioGraph, since: float) -> list[float]:
    """Times of the twists since then that move the robot."""
    return [at for at, speed in graph.twists if at >= since and speed > 1e-6]


async def take_over(tab: Tab) -> None:
    person = "document.querySelector('#source').textContent === 'person'"
    await tab.until(f"{person} || !document.querySelector('#take-over').disabled")
    if not await tab.evaluate(person):
        await tab.click("#take-over")
        await tab.until(person)


async def press(tab: Tab, graph: StudioGraph, by_hand: bool) -> None:
    """Holds until the robot moves; what a busy machine has stopped takes another press."""
    while True:
        await tab.until("!document.querySelector('#hold').disabled")
        start = time.monotonic()
        await tab.down("#hold")
        if by_hand:
            await tab.key("keyDown", "w", "KeyW")
        while len(moving(graph, start)) <= 5 and time.monotonic() < start + PATIENCE:
            await asyncio.sleep(0.02)
            held = "held" in await tab.evaluate("document.querySelector('#hold').className")
            if not held and time.monotonic() > start + 1:
                break
        if graph.enabled and moving(graph, start):
            return
        await tab.up("#hold")


async def once(graph: StudioGraph, browser: Browser, fault: str, by_hand: bool) -> float:
    """Seconds from the fault to the last motion."""
    port = int(graph.url.rstrip("/").rpartition(":")[2])
    async with Cable(port) as cable:
        tab = await browser.open(cable.url)
        await tab.until("document.querySelector('#take').textContent === 'Take control'")
        await tab.until("document.querySelector('#link').textContent === 'connected'")
        await tab.click("#take")
        if by_hand:
            await take_over(tab)
        await press(tab, graph, by_hand)
        began = time.monotonic()
        if fault == "release":
            await tab.up("#hold")
        elif fault == KEY:
            await tab.key("keyUp", "w", "KeyW")
        elif fault == "tab closed":
            await tab.send("Page.close")
        elif fault == "browser killed":
            browser.process.kill()
        else:
            cable.cut()
        if fault != KEY:
            await eventually(lambda: not graph.enabled, PATIENCE)
        await asyncio.sleep(AFTER)
        if graph.enabled != (fault == KEY) or moving(graph, time.monotonic() - AFTER / 2):
            sys.exit(f"{fault}: the robot moves again")
        if fault in ("release", "socket dropped", KEY):
            await tab.send("Page.close")
        return max(moving(graph, began), default=began) - began


async def series(graph: StudioGraph, fault: str, times: int, by_hand: bool) -> list[float]:
    """Milliseconds of motion after each fault."""
    found: list[float] = []
    while len(found) < times:
        async with chromium() as browser:
            alone = await browser.open("about:blank")  # keeps the browser open
            while len(found) < times:
                found.append(1e3 * await once(graph, browser, fault, by_hand))
                print(fault, found[-1], file=sys.stderr, flush=True)
                if fault == "browser killed":
                    break
            del alone
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--by-hand", action="store_true")
    add_output(parser)
    args = parser.parse_args()
    found = {}
    with contextlib.closing(StudioGraph()) as graph:
        for fault in (*FAULTS, KEY) if args.by_hand else FAULTS:
            ms = asyncio.run(series(graph, fault, args.times, args.by_hand))
            found[fault] = {
                "within 300 ms": f"{sum(t <= 300 for t in ms)} of {len(ms)}",
                "median_ms": round(statistics.median(ms), 1),
                "max_ms": round(max(ms), 1),
                "ms": [round(t, 1) for t in ms],
            }
    keep({"motion after the fault": found}, args.output)


if __name__ == "__main__":
    main()
