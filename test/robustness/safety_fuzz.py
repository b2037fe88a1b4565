#!/usr/bin/env python3
"""Fuzzes the command path with a million random chunks, delays and faults; writes JSON.

    python test/robustness/safety_fuzz.py [--chunks 1000000] [--joint-periods 200000] [--seed 0]
        [--jobs 1]

`wrong` counts commands outside limits, commands after a stop and stops that came late: it must be
empty, here and in `joints` (the IK path, with an arm that lies about itself), else the exit status
is 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
from common import add_output, keep
from fuzz import fuzz_in_parallel
from ik_fuzz import IkFindings, ik_fuzz

from vla_inference.control.arm import Arm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from six_axes import urdf


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument("--joint-periods", type=int, default=200_000, help="of the IK path")
    add_output(parser)
    args = parser.parse_args()
    begun = time.perf_counter()
    findings = fuzz_in_parallel(args.chunks, args.seed, args.jobs)
    seconds = time.perf_counter() - begun
    figures = {
        "seed": args.seed,
        "jobs": args.jobs,
        **vars(findings),
        "wrong_in_all": findings.wrong.total(),
    }
    figures |= {
        "seconds": round(seconds, 1),
        "us_per_command_period": round(1e6 * seconds * args.jobs / findings.ticks, 1),
    }
    joints = joint_findings(args.joint_periods, args.seed)
    figures["joints"] = vars(joints)
    keep(figures, args.output)
    return 1 if findings.wrong or joints.wrong else 0


def joint_findings(periods: int, seed: int) -> IkFindings:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "six.urdf"
        path.write_text(urdf())
        return ik_fuzz(Arm(path, "tool0", "base_link"), periods, seed)


if __name__ == "__main__":
    raise SystemExit(main())
