#!/usr/bin/env python3
"""`vla bench` where nothing is installed but PyTorch: see vla_inference/bench/inference/speed.py.

python bench/inference/speed.py [--size openvla-7b] [--paths reference plain torch torch:int8 ...]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import add_output, keep

from vla_inference.bench.speed import Plan, lines, run, table
from vla_inference.checkpoints.random_weights import SIZES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="", help="checkpoint; random weights without")
    parser.add_argument("--size", default="", choices=SIZES)
    parser.add_argument("--head", default="", help="by default the size's usual")
    parser.add_argument("--device", default="")
    parser.add_argument("--dtype", default="")
    parser.add_argument("--paths", nargs="+", default=())
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two steps")
    parser.add_argument("--method", default="rtn", help="rounding: rtn or hqq")
    parser.add_argument("--profile", type=int, default=0, help="rows of kernels to print")
    add_output(parser)
    args = vars(parser.parse_args())
    output = args.pop("output")
    report = run(Plan(**args), lambda text: print(text, flush=True))
    keep(report, output, show=False)
    print("\n".join(lines(table(report))))


if __name__ == "__main__":
    main()
