#!/usr/bin/env python3
"""`vla bench` on a machine with PyTorch alone: see vla_inference/cli/benchmark/speed.py.

python bench/inference/speed.py [--size openvla-7b] [--paths reference plain torch torch:int8 ...]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import add_output, keep

from vla_inference.cli.benchmark.config import BenchConfig
from vla_inference.cli.benchmark.speed import lines, run, table
from vla_inference.options import options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for field, about in options(BenchConfig):
        several = field.name == "paths"
        kind = {"nargs": "+"} if several else {"type": type(field.default)}
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, default=field.default, help=about.help, **kind)
    add_output(parser)
    args = vars(parser.parse_args())
    output = args.pop("output")
    plan = BenchConfig(**{**args, "paths": tuple(args["paths"])})
    report = run(plan, lambda text: print(text, flush=True))
    keep(report, output, show=False)
    print("\n".join(lines(table(report))))


if __name__ == "__main__":
    main()
