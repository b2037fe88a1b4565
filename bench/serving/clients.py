#!/usr/bin/env python3
"""Several clients of one served model: answers per second, and how long each client waits.

    python bench/serving/clients.py [--size openvla-7b] [--formats bf16 int8] [--clients 1 4 16]

Weights are random, of the published shape. The server is this process, over loopback; each client
is a process of its own, which sends its next image as soon as it has an answer. Instructions are
of several lengths. Before that, without the wire: the time of one pass for 1 to 16 observations,
and whether a batch answers as each observation alone does. Needs torch, triton, tokenizers,
aiohttp and msgpack; no ROS.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import add_output, keep

SIDE = 224
LENGTHS = (22, 24, 26, 28)  # tokens of the prompts, as usual sentences have
SENTENCES = tuple(f"task {i}" for i in range(len(LENGTHS)))


# -- a client ---------------------------------------------------------------------------------


def client(port: int, index: int) -> None:
    """Says when it is ready; asks for as long as it is told; writes when each answer came and how
    long that took [s]."""
    from vla_inference.policies.base import LoadOptions
    from vla_inference.policies.registry import load_policy
    from vla_inference.types import Observation

    images = np.random.default_rng(index).integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
    text = SENTENCES[index % len(SENTENCES)]
    seen = [Observation({"image": image}, text) for image in images]
    with contextlib.closing(load_policy(f"openpi:ws://127.0.0.1:{port}", LoadOptions())) as policy:
        policy.act(seen[0])
        print("ready", flush=True)
        until = time.monotonic() + float(sys.stdin.readline())
        answers, i = [], 0
        while (begun := time.monotonic()) < until:
            policy.act(seen[i % len(seen)])
            now, i = time.monotonic(), i + 1
            answers.append((now, now - begun))
    print(json.dumps(answers))


def measured(port: int, count: int, seconds: float) -> dict[str, Any]:
    """The first tenth is not counted."""
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--client", str(port), str(i)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    begun = time.monotonic()
    found: list[Any] = [None] * count

    def collect(i: int) -> None:
        found[i] = json.loads(processes[i].communicate(f"{seconds}\n")[0])

    threads = [threading.Thread(target=collect, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, last = begun + 0.1 * seconds, begun + seconds
    kept = [[took for at, took in answers if first < at < last] for answers in found]
    ms = [1e3 * np.array(times) for times in kept]
    p95 = [float(np.percentile(times, 95)) for times in ms]
    return {
        "clients": count,
        "answers_per_s": round(sum(map(len, kept)) / (last - first), 2),
        "median_ms": round(float(np.median(np.concatenate(ms))), 2),
        "p95_ms": round(float(np.percentile(np.concatenate(ms), 95)), 2),
        "p95_of_clients_ms": [round(p, 2) for p in sorted(p95)],
        "answers_of_clients": sorted(map(len, kept)),
    }


# -- the server -------------------------------------------------------------------------------


def make_policy(size: str, format: str, device: str):
    import torch

    from vla_inference.cli.benchmark.speed import random_policy
    from vla_inference.engines import usual_engine
    from vla_inference.policies.openvla.policy import OpenVLAPolicy
    from vla_inference.quantization import get_format
    from vla_inference.quantization.rounding import quantize_model

    drawn = random_policy(size, "tokens", device, "float32" if device == "cpu" else "bfloat16")
    if format != "bf16":
        quantize_model(drawn.model, get_format(format), "rtn")
    tokenizer, engine = drawn.prompt.tokenizer, usual_engine(device)
    policy = OpenVLAPolicy(drawn.model, tokenizer, drawn.device, drawn.dtype, drawn.name, engine)
    # As long as usual prompts; the random checkpoint's tokenizer has one token per byte.
    for text, length in zip(SENTENCES, LENGTHS, strict=True):
        policy._prompts[text] = torch.arange(4, 4 + length, device=policy.device)[None]
    policy.action_space = next(iter(policy.config.norm_stats))
    return policy


def observations(count: int) -> list[Any]:
    from vla_inference.types import Observation

    images = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    return [
        Observation({"image": image}, SENTENCES[i % len(SENTENCES)])
        for i, image in enumerate(images)
    ]


def passes(policy, sizes: Sequence[int], repeats: int) -> Iterator[dict[str, Any]]:
    """Median milliseconds of one prediction for so many observations, by stage."""
    seen = observations(max(sizes))
    for size in sizes:
        for _ in range(3):
            policy.predict(seen[:size])
        found = [policy.predict(seen[:size])[0].timing for _ in range(repeats)]
        stages = {k: round(statistics.median(t[k] for t in found), 2) for k in found[0]}
        yield {"batch": size, "stages_ms": stages, "ms_each": round(stages["total"] / size, 2)}


def agreement(policy, count: int, size: int) -> dict[str, Any]:
    """Tokens of batches against those of each observation alone."""
    seen = observations(count)
    alone = np.stack([policy.predict([o])[0].tokens for o in seen]).reshape(count, -1)
    batches = [policy.predict(seen[i : i + size]) for i in range(0, count, size)]
    together = np.stack([c.tokens for b in batches for c in b]).reshape(count, -1)
    return {
        "observations": count,
        "batch": size,
        "tokens_equal": round(float((alone == together).mean()), 4),
        "first_tokens_equal": round(float((alone[:, 0] == together[:, 0]).mean()), 4),
        "mean_abs_difference": round(float(np.abs(alone - together).mean()), 3),
    }


@contextlib.contextmanager
def served(policy, max_batch: int):
    """A running server."""
    from vla_inference.serving.openpi.server import Server
    from vla_inference.serving.openpi.settings import ServeSettings

    server = Server(lambda: policy, ServeSettings(port=0, max_batch=max_batch))
    server.load()
    listening: list[int] = []
    ready = threading.Event()

    def listens(port: int) -> None:
        listening.append(port)
        ready.set()

    thread = threading.Thread(target=lambda: asyncio.run(server.run(listens)), daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield listening[0], server
    finally:
        server.stop()
        thread.join(30)


def batches(metrics) -> tuple[float, float]:
    """Observations that were answered, and in how many batches."""
    lines = dict(line.rsplit(" ", 1) for line in metrics.text(0, "").splitlines())
    return float(lines["vla_batch_size_sum"]), float(lines["vla_batch_size_count"])


def run(format: str, args: argparse.Namespace) -> dict[str, Any]:
    policy = make_policy(args.size, format, args.device)
    for observation in observations(len(LENGTHS)):
        policy.predict([observation])  # every length has its graphs
    largest = max(args.clients)
    sizes = [n for n in (1, 2, 4, 8, 16, 32) if n <= largest]
    report: dict[str, Any] = {"passes": list(passes(policy, sizes, args.repeats))}
    report["batch_against_single"] = agreement(policy, args.observations, largest)
    print(json.dumps({format: report}), flush=True)
    rows = []
    with served(policy, largest) as (port, server):
        for count in args.clients:
            before = batches(server.metrics)
            row = measured(port, count, args.seconds)
            answered, passed = (
                b - a for a, b in zip(before, batches(server.metrics), strict=True)
            )
            row["mean_batch"] = round(answered / passed, 2)
            rows.append(row)
            print(json.dumps(row), flush=True)
    one = rows[0]
    for row in rows:
        row["times_one"] = round(row["answers_per_s"] / one["answers_per_s"], 2)
        row["p95_times_one"] = round(row["p95_of_clients_ms"][-1] / one["p95_ms"], 2)
    return {**report, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="openvla-7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--formats", nargs="+", default=["bf16", "int8"])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each row")
    parser.add_argument("--repeats", type=int, default=20, help="of each pass")
    parser.add_argument("--observations", type=int, default=64, help="batch against single")
    parser.add_argument("--client", nargs=2, type=int, help=argparse.SUPPRESS)
    add_output(parser)
    args = parser.parse_args()
    if args.client:
        return client(*args.client)
    report: dict[str, Any] = {"size": args.size, "device": args.device, "side": SIDE}
    report["formats"] = {format: run(format, args) for format in args.formats}
    keep(report, args.output, show=False)


if __name__ == "__main__":
    main()
