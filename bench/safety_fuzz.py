#!/usr/bin/env python3
"""A million random chunks, delays and faults against the command path; JSON of what was seen.

    python bench/safety_fuzz.py [--chunks 1000000] [--seed 0]

`wrong` counts commands outside limits, commands after a stop and stops that came late: it must be
empty, else the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import time

from vla_inference.control.fuzz import fuzz


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begun = time.perf_counter()
    findings = fuzz(args.chunks, args.seed)
    seconds = time.perf_counter() - begun
    figures = {"seed": args.seed, **vars(findings), "wrong_in_all": findings.wrong.total()}
    figures |= {
        "seconds": round(seconds, 1),
        "us_per_command_period": round(1e6 * seconds / findings.ticks, 1),
    }
    print(json.dumps(figures, indent=2))
    return 1 if findings.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
