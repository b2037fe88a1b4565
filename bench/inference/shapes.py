#!/usr/bin/env python3
"""Speed and memory of OpenVLA's and MiniVLA's shapes at 224 and 384 pixels, in one run.

    python bench/inference/shapes.py [--sizes minivla minivla-384px ...] [--output FILE]

Each shape is `vla bench --size SHAPE`, weights drawn on the device: the reference path is
transformers' `generate`, as the originals run. On a GPU all published shapes; without one a small
one, to see that the command works.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from common import add_output, keep

from vla_inference.checkpoints.random_weights import SIZES
from vla_inference.cli.benchmark.config import BenchConfig
from vla_inference.cli.benchmark.speed import lines, run, table

SHAPES = ("minivla", "minivla-vq", "minivla-384px", "openvla-7b", "openvla-7b-384px")
PATHS = ("reference", "transformers-static", "plain", "torch", "torch:int8", "torch:int4")


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, metavar="SIZE")
    parser.add_argument("--paths", nargs="+", help="ENGINE[:QUANTISATION], as for vla bench")
    parser.add_argument("--repeats", type=int, default=300 if cuda else 3)
    add_output(parser)
    args = parser.parse_args()
    sizes = args.sizes or (SHAPES if cuda else ("tiny-qwen",))
    paths = tuple(args.paths or (PATHS if cuda else ("plain", "torch")))
    found: dict = {"shapes": {}}
    for size in sizes:
        head = "" if size in SHAPES else "tokens"
        plan = BenchConfig(size=size, head=head, paths=paths, repeats=args.repeats)
        report = run(plan, lambda text: print(text, flush=True))
        found["shapes"][size] = report
        keep(found, args.output, show=False)  # what is done stays, should the next not fit
        print("\n".join(lines(table(report))), flush=True)


if __name__ == "__main__":
    main()
