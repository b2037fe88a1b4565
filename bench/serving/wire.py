#!/usr/bin/env python3
"""What the openpi wire costs beyond the model: two images of 224 pixels over loopback.

    python bench/serving/wire.py [--requests 1000]

The server is a process of its own, with a policy whose answer costs nothing: a round trip is all
overhead. Rows: our client with arrays; the same with images as JPEG (encoding and decoding
included); the unchanged openpi-client, where VLA_OPENPI_PYTHON names a Python that has it
(`make compat` makes one). On a machine that does other work the high percentiles are the
scheduler's: put `chrt -f 5` before it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import add_output, keep, serving
from PIL import Image

from vla_inference.policies.base import LoadOptions, Needs, Policy
from vla_inference.policies.registry import load_policy
from vla_inference.serving.openpi.client.address import Address
from vla_inference.serving.openpi.client.link import Link
from vla_inference.serving.openpi.wire import pack
from vla_inference.types import ActionChunk, Observation, eef_delta_spec

SIDE, STEPS = 224, 10
VARIABLE = "VLA_OPENPI_PYTHON"
WHEEL = """
import json, sys, time
import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy
client = WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]))
images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
seen = {"observation/image": images[0], "observation/wrist_image": images[1], "prompt": "go"}
times = []
for _ in range(int(sys.argv[2])):
    begun = time.perf_counter()
    client.infer(seen)
    times.append(time.perf_counter() - begun)
print(json.dumps(times))
"""


class FreePolicy(Policy):
    """Answers with zeros."""

    name, placement, chunk = "free", "cpu", STEPS
    needs = Needs(images=2, image_size=(SIDE, SIDE))
    spec = eef_delta_spec()

    def action_spec(self):
        return self.spec

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        zeros = np.zeros((STEPS, len(self.spec)), np.float32)
        return [ActionChunk(zeros, self.spec) for _ in observations]


def serve() -> None:
    import asyncio

    from vla_inference.serving.openpi.server import Server
    from vla_inference.serving.openpi.settings import ServeSettings

    server = Server(FreePolicy, ServeSettings(port=0))
    server.load()
    asyncio.run(server.run(lambda port: print(port, flush=True)))


def images() -> np.ndarray:
    """Two smooth ones, as of a camera: noise is what JPEG packs worst."""
    small = np.random.default_rng(0).integers(0, 256, (2, 7, 7, 3), np.uint8)
    size = (SIDE, SIDE)
    return np.stack([np.asarray(Image.fromarray(s).resize(size, 3)) for s in small])


def jpeg(image: np.ndarray, quality: int) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(image).save(packed, "JPEG", quality=quality)
    return packed.getvalue()


def timed(call: Callable[[], Any], requests: int) -> list[float]:
    times = []
    for _ in range(requests):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return times


def row(client: str, form: str, sent: int, times: Sequence[float]) -> dict[str, Any]:
    """sent: bytes of a request."""
    ms = 1e3 * np.array(times[len(times) // 20 :])  # without the first ones
    low, median, high = (round(float(np.percentile(ms, p)), 3) for p in (0, 50, 99))
    found = {"client": client, "images": form, "request_kb": round(sent / 1e3, 1)}
    return {**found, "least_ms": low, "median_ms": median, "p99_ms": high}


def rows(port: int, requests: int) -> Iterator[dict[str, Any]]:
    url, seen = f"ws://127.0.0.1:{port}", images()
    named = dict(zip(("observation/image", "observation/wrist_image"), seen, strict=True))
    sent = len(pack({**named, "prompt": "go"}))
    with contextlib.closing(load_policy(f"openpi:{url}", LoadOptions())) as policy:
        observation = Observation(named, "go")
        yield row("ours", "arrays", sent, timed(lambda: policy.act(observation), requests))
    with contextlib.closing(Link(Address.parse(url))) as link:
        link.connect()
        for quality in (80, 95):

            def message(quality=quality) -> bytes:
                packed = {k: jpeg(v, quality) for k, v in named.items()}
                return pack({**packed, "prompt": "go"})

            times = timed(lambda: link.ask(message(), 5.0), requests)
            yield row("ours", f"JPEG q{quality}", len(message()), times)
    if python := os.environ.get(VARIABLE):
        command = [python, "-c", WHEEL, str(port), str(requests)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        yield row("openpi-client", "arrays", sent, json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    add_output(parser)
    args = parser.parse_args()
    if args.serve:
        return serve()
    with serving(__file__, "--serve") as port:
        found = list(rows(int(port), args.requests))
    report = {
        "requests": args.requests,
        "real_time": os.sched_getscheduler(0) == os.SCHED_FIFO,
        "load_average": [round(v, 2) for v in os.getloadavg()],
        "rows": found,
    }
    keep(report, args.output)


if __name__ == "__main__":
    main()
