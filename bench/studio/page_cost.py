#!/usr/bin/env python3
"""What an open page costs the browser's machine, by what is shown on it.

    python bench/studio/page_cost.py [--seconds 10] [--output bench/results/studio_page.json]

A page in a headless Chromium shows a graph of stand-ins: 25 images a second, each with a chunk and
the status of all nodes. Parts of the page are hidden one after the other. Processor time is of all
of the browser's processes; a machine's other work hardly changes it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import ROOT, add_output, keep

sys.path.insert(0, str(ROOT / "test"))
import studio_graph
from chromium import Tab, chromium
from images import HOOK, processor_seconds

PERIOD = 0.04  # s between two images
# What is done to the page, one after the other.
PARTS = {
    "operate": "",
    "without the strips": "document.querySelector('#strips').hidden = true",
    "without strips and images": "document.querySelector('#cameras').hidden = true",
    "another page": "location.hash = 'machine'",
}


async def measure(tab: Tab, pid: int, seconds: float) -> dict[str, float]:
    """Processor time [ms/s] of the browser, and how often the page is drawn and laid out [1/s]."""

    async def counts() -> tuple[float, float, float, float]:
        metrics = (await tab.send("Performance.getMetrics"))["metrics"]
        layouts = next(m["value"] for m in metrics if m["name"] == "LayoutCount")
        drawn = await tab.evaluate("window.drawn.length")
        return time.monotonic(), processor_seconds(pid), drawn, layouts

    before = await counts()
    await asyncio.sleep(seconds)
    passed, busy, drawn, layouts = (b - a for a, b in zip(before, await counts(), strict=True))
    return {
        "browser_ms_per_s": round(1e3 * busy / passed, 1),
        "images_per_s": round(drawn / passed, 1),
        "layouts_per_s": round(layouts / passed, 1),
    }


async def show(url: str, seconds: float) -> dict[str, Any]:
    async with chromium() as browser:
        tab = await browser.open(url)
        await tab.resize(1280, 900)
        await tab.send("Performance.enable")
        await tab.until("!!document.querySelector('#cameras canvas')")
        await tab.until("document.querySelectorAll('#strips canvas').length === 7")
        await tab.evaluate(HOOK)
        await asyncio.sleep(3)
        found = {}
        for name, change in PARTS.items():
            await tab.evaluate(change)
            found[name] = await measure(tab, browser.process.pid, seconds)
            print(name, found[name], file=sys.stderr, flush=True)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each part")
    add_output(parser)
    args = parser.parse_args()
    studio_graph.PERIOD = PERIOD
    with contextlib.closing(studio_graph.StudioGraph()) as graph:
        found = asyncio.run(show(graph.url, args.seconds))
    keep({"page": found}, args.output)


if __name__ == "__main__":
    main()
