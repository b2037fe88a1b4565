#!/usr/bin/env python3
"""How much slower an answer is beside a busy neighbour, by what OpenMP's threads do meanwhile.

    python bench/inference/busy_neighbour.py [--model FOLDER] [--rounds 30] [--neighbours 1]

A neighbour is a process that never rests, on any core. Each setting is a process of its own that
has loaded the same model; they answer in turn, so that other load affects all equally. "as
installed" sets nothing: it is what a command or a script of a user gets. "torch first" imports
PyTorch before this package, which then comes too late to set anything. The ratios are to the best
setting of the same run, of medians, with the neighbours and without. A process that does not
answer is stopped: threads that spin would else be neighbours of the others.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import ROOT, add_output, keep

SHIPPED = ROOT / "models" / "stack-small"
SETTINGS: dict[str, dict[str, str]] = {
    "as installed": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "torch first": {"VLA_BENCH_TORCH_FIRST": "1"},
}
OURS = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--neighbours", type=int, default=1)
    add_output(parser)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.model)
        return
    rivals = {name: start(args.model, more) for name, more in SETTINGS.items()}
    versions = [ask(rival)["torch"] for rival in rivals.values()]
    report: dict[str, Any] = {
        "rounds": args.rounds,
        "torch": versions[0],
        "alone": compare(rivals, args.rounds),
    }
    neighbours = [multiprocessing.Process(target=spin) for _ in range(args.neighbours)]
    for one in neighbours:
        one.daemon = True
        one.start()
    report["neighbours"] = args.neighbours
    report["beside them"] = compare(rivals, args.rounds)
    for one in neighbours:
        one.kill()
    for rival in rivals.values():
        rival.kill()
        rival.wait()
    keep(report, args.output)


def spin() -> None:
    while True:
        pass


def compare(rivals: dict[str, subprocess.Popen], rounds: int) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of each setting's milliseconds, and its ratio to the best."""
    names, times = list(rivals), {name: [] for name in rivals}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            times[name].append(ask(rivals[name], "go")["ms"])
    medians = {name: float(np.median(times[name])) for name in names}
    return {
        name: {
            "median_ms": round(medians[name], 1),
            "p95_ms": round(float(np.percentile(times[name], 95)), 1),
            "over_best": round(medians[name] / min(medians.values()), 2),
        }
        for name in names
    }


def start(model: Path, more: dict[str, str]) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k not in OURS} | more
    words = [sys.executable, __file__, "--serve", "--model", str(model)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=environment)


def ask(rival: subprocess.Popen, word: str = "") -> dict[str, Any]:
    """A rival's next line of JSON, after it was told to go on; then it stands still."""
    assert rival.stdin is not None and rival.stdout is not None
    if word:
        rival.send_signal(signal.SIGCONT)
        print(word, file=rival.stdin, flush=True)
    line = rival.stdout.readline()
    if not line:
        sys.exit(f"a rival ended with status {rival.wait()}")
    rival.send_signal(signal.SIGSTOP)
    return json.loads(line)


def serve(model: Path) -> None:
    """Loads the model, then answers one observation for each line of stdin."""
    if os.environ.get("VLA_BENCH_TORCH_FIRST"):
        importlib.import_module("torch")
    from vla_inference.policies.base import LoadOptions
    from vla_inference.policies.registry import load_policy

    policy = load_policy(str(model), LoadOptions(device="cpu"))
    observation = policy.needs.grey()
    for _ in range(3):
        policy.predict([observation])
    print(json.dumps({"torch": sys.modules["torch"].__version__}), flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        policy.predict([observation])
        print(json.dumps({"ms": 1e3 * (time.perf_counter() - begin)}), flush=True)


if __name__ == "__main__":
    main()
