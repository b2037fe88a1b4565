#!/usr/bin/env python3
"""Answers per second of `vla serve --ray` with some replicas and clients over loopback.

    python bench/serving/replicas.py [--model FOLDER] [--replicas 1 2] [--clients 1 4 16]
        [--seconds 10] [--device cpu] [--output replicas.json]

Replicas 0: `vla serve` without Ray. Each client asks for one answer after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import aiohttp
import numpy as np
from common import ROOT, add_output, keep, serving

from vla_inference.serving.openpi.wire import pack, unpack

TASK = "stack the red block on the green block"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(ROOT / "models" / "stack-small"))
    parser.add_argument("--replicas", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--device", default="cpu")
    add_output(parser)
    args = parser.parse_args()
    keep({"rows": [row for count in args.replicas for row in measure(count, args)]}, args.output)


def measure(replicas: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One server, and a row for each number of clients."""
    command = ["-m", "vla_inference.cli.main", "serve", args.model, "--port", 0]
    command += ["--device", args.device, "--num-threads", 1]
    command += ["--ray", "--replicas", replicas] if replicas else []
    with serving(*command) as line:
        url = line.split()[3]
        return [
            {"replicas": replicas, "clients": n, **asyncio.run(ask(url, n, args.seconds))}
            for n in args.clients
        ]


async def ask(url: str, clients: int, seconds: float) -> dict[str, Any]:
    """So many clients at once, for so long."""
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    message = pack({"observation/image": image, "prompt": TASK})
    end = time.monotonic() + seconds

    async def one() -> list[float]:
        waits = []
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
            await socket.receive()
            while (begun := time.monotonic()) < end:
                await socket.send_bytes(message)
                reply = unpack((await socket.receive()).data)
                assert "actions" in reply, reply
                waits.append(1e3 * (time.monotonic() - begun))
        return waits

    found = await asyncio.gather(*(one() for _ in range(clients)))
    waits = sorted(itertools.chain(*found))
    return {
        "answers_per_s": round(len(waits) / seconds, 1),
        "wait_ms": {
            "median": round(statistics.median(waits), 1),
            "p95": round(waits[int(0.95 * len(waits))], 1),
        },
    }


if __name__ == "__main__":
    main()
