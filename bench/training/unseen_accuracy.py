#!/usr/bin/env python3
"""Offline accuracy of the shipped model on generated episodes outside its training set.

    python bench/training/unseen_accuracy.py [--task Stack_D2] [--episodes 24] [--seed 1000007]

What `vla generate` and then `vla eval` say, kept with where it came from.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import add_output, keep

VLA = [sys.executable, "-m", "vla_inference.cli.main"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="Stack_D2")
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1_000_007, help="no training data has it")
    add_output(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = ["--episodes", str(args.episodes), "--seed", str(args.seed), "--output", folder]
        subprocess.run([*VLA, "generate", "--task", args.task, *made], check=True)
        done = subprocess.run(
            [*VLA, "eval", "--dataset", f"{folder}/demo.hdf5", "--json"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    keep({"task": args.task, "episodes": args.episodes, **json.loads(done.stdout)}, args.output)


if __name__ == "__main__":
    main()
