#!/usr/bin/env python3
"""What eight viewers cost the closed loop that one operator runs, and the studio's memory.

    python bench/studio/viewers.py [--minutes 30] [--output bench/results/studio_viewers.json]

`vla studio --preset simulation` runs; the operator presses the button again where an episode has
ended. Minutes with and without the viewers alternate: other work of the machine is in both.
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
import aiohttp
from images import Images, studio
from studio_server import Client

VIEWERS = 8
WINDOW = 60.0  # s
SIGN = 0.04  # s


async def watch(session: aiohttp.ClientSession, url: str, seen: list[int]) -> None:
    """A page that draws all it is sent."""
    base = url.rstrip("/")
    async with session.ws_connect(base + "/socket", headers={"Origin": base}) as socket:
        client = Client(socket)
        async for message in socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                seen[0] += 1
                await client.tell("drawn", camera="image")


async def operate(session: aiohttp.ClientSession, url: str) -> None:
    """A page that holds the button, and presses again where a hold has ended."""
    base = url.rstrip("/")
    async with session.ws_connect(base + "/socket", headers={"Origin": base}) as socket:
        client = Client(socket)
        await client.operate()
        state = {"press": 1}
        reader = asyncio.create_task(_read(socket, client, state))
        while not reader.done():
            await client.tell("hold", press=state["press"])
            await asyncio.sleep(SIGN)
        reader.result()


async def _read(socket: Any, client: Client, state: dict[str, int]) -> None:
    async for message in socket:
        if message.type is aiohttp.WSMsgType.BINARY:
            await client.tell("drawn", camera="image")
        elif '"held": false' in message.data:
            state["press"] += 1


def megabytes(pid: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


async def soak(url: str, pid: int, images: Images, minutes: float) -> dict[str, Any]:
    rates: dict[bool, list[float]] = {False: [], True: []}
    memory: list[float] = []
    seen = [0]
    async with aiohttp.ClientSession() as session:
        operator = asyncio.create_task(operate(session, url))
        while images.since(0) < 20:
            await asyncio.sleep(0.5)
        end = time.time() + 60 * minutes
        number = 0
        while time.time() < end:
            watched = number % 4 in (1, 2)
            number += 1
            pages = [
                asyncio.create_task(watch(session, url, seen)) for _ in range(watched * VIEWERS)
            ]
            await asyncio.sleep(5)
            start = time.time()
            await asyncio.sleep(WINDOW)
            rates[watched].append(images.since(start) / (time.time() - start))
            memory.append(megabytes(pid))
            for page in pages:
                if page.done():
                    sys.exit(f"a viewer has ended: {page.exception()}")
                page.cancel()
            print(watched, rates[watched][-1], memory[-1], file=sys.stderr, flush=True)
        operator.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await operator
    quarter = max(1, len(memory) // 4)
    ratio = statistics.median(rates[True]) / statistics.median(rates[False])
    return {
        "minutes": minutes,
        "viewers": VIEWERS,
        "images_seen_by_viewers": seen[0],
        "frames_per_second": {
            "operator alone": [round(r, 2) for r in rates[False]],
            "with viewers": [round(r, 2) for r in rates[True]],
        },
        "rate_with_viewers": round(ratio, 3),
        "memory_mb": [round(m, 1) for m in memory],
        "growth_mb": round(statistics.mean(memory[-quarter:]) - memory[min(1, quarter)], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    add_output(parser)
    args = parser.parse_args()
    images = Images()
    with studio("--preset", "simulation") as (url, pid):
        report = asyncio.run(soak(url, pid, images, args.minutes))
    images.close()
    keep(report, args.output)


if __name__ == "__main__":
    main()
