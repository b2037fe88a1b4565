#!/usr/bin/env python3
"""From a clone to a block that is stacked by a typed sentence: seconds of each step.

    python bench/studio/newcomer.py [--sentence TEXT] [--keep-cache] [--output FILE]

Clones this repository's HEAD into an empty folder, runs `make studio` there as a newcomer's shell
would, and opens the page in a headless Chromium: takes control, types the sentence, and holds the
button until the simulation counts a success, pressing again where an episode has ended. Packages
are downloaded; pip's cache is not used unless --keep-cache is given.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import ROOT, add_output, keep, provenance
from tutorial import OURS

sys.path.insert(0, str(ROOT / "test"))
from chromium import Tab, chromium

DOMAIN = 87  # nobody else's, as a newcomer's is
LONGEST = 900.0  # s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentence", default="stack the red block on the green block")
    parser.add_argument("--keep-cache", action="store_true", help="of pip")
    add_output(parser)
    args = parser.parse_args()
    there = {k: v for k, v in os.environ.items() if k not in OURS}
    there |= {"ROS_DOMAIN_ID": str(DOMAIN), "PYTHONUNBUFFERED": "1"}
    if not args.keep_cache:
        there["PIP_NO_CACHE_DIR"] = "1"
    begun = provenance()  # of the commit that is cloned
    with tempfile.TemporaryDirectory() as folder:
        seconds = asyncio.run(asyncio.wait_for(walk(folder, there, args.sentence), LONGEST))
    keep({"provenance": begun, "sentence": args.sentence, "seconds": seconds}, args.output)


async def walk(folder: str, there: dict[str, str], sentence: str) -> dict[str, float]:
    """Seconds from the start to the end of each step."""
    began, seconds = time.monotonic(), {}

    def done(step: str) -> None:
        seconds[step] = round(time.monotonic() - began, 1)
        print(f"{step}: {seconds[step]} s", file=sys.stderr, flush=True)

    clone = Path(folder, "clone")
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    process = subprocess.Popen(
        ["make", "studio", "ARGS=--port 0"],
        cwd=clone,
        env=there,
        text=True,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        url = await asyncio.to_thread(address, process)
        done("the page can be opened")
        async with chromium() as browser:
            await operate(await browser.open(url), sentence, done)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
    return seconds


def address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"the studio is at (http://\S+)", line):
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return found[1]
    raise SystemExit(f"`make studio` has ended with status {process.wait()}")


async def operate(tab: Tab, sentence: str, done: Any) -> None:
    await tab.until("document.querySelector('#link').textContent === 'connected'")
    await tab.click("#take")
    await tab.until("!document.querySelector('#hold').disabled")
    done("the robot can be enabled")
    await tab.write("#sentence", sentence)
    await tab.click("#instruct button")
    await tab.until(f"document.querySelector('#instruction').textContent === {sentence!r}")
    done("the sentence is in force")
    success = r"/successes\s+[1-9]/.test(document.querySelector('#sim').innerText)"
    while not await tab.evaluate(success):
        await tab.until(f"!document.querySelector('#hold').disabled || {success}")
        await tab.down("#hold")
        held = "document.querySelector('#hold').className.includes('held')"
        with contextlib.suppress(AssertionError):
            await tab.until(f"{held} || {success}")
            await tab.until(f"!({held}) || {success}")
        await tab.up("#hold")
    done("the first success")


if __name__ == "__main__":
    main()
