#!/usr/bin/env python3
"""Runs all tests, then the rendering tests again with the other renderer if there is one.

What is given goes to pytest each time (`-n 0`: in one process). Tests run two files at a time. A
few that fail so are run once more with nothing beside them, since nodes wait for each other by the
clock: what fails again has failed, what passes is named at the end. Run by `make test`, within the
workspace.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from vla_inference.system.offscreen import working_ways

ROOT = Path(__file__).resolve().parents[1]
DRAWN = (
    "test/test_closed_loop.py",
    "test/test_bags_closed_loop.py",
    "src/vla_sim_bridge/test/test_simulation.py",
    "src/vla_sim_bridge/test/test_generate.py",
)
NO_TESTS = 5  # pytest's status where what was given leaves none
FAILED = 1  # its status where tests failed
MOST_AGAIN = 3  # more failures than this are no coincidence
LAST_FAILED = ROOT / ".pytest_cache" / "v" / "cache" / "lastfailed"


def main() -> int:
    begun, env = time.monotonic(), dict(os.environ)
    compilers = [
        str(p.parent) for p in ROOT.glob(".venv/lib/python3*/site-packages/nvidia/*/bin/nvcc")
    ]
    env["PATH"] = os.pathsep.join([env["PATH"], *compilers])
    # Most tests wait for nodes more than they compute.
    command = [sys.executable, "-m", "pytest", "-n", str(min(2, os.cpu_count() or 1))]
    command += ["--dist", "loadfile"]
    status, shaky = run([*command, *sys.argv[1:]], env)
    for way in working_ways():
        if status == 0 and way != env.get("MUJOCO_GL"):
            print(f"\nOnce more with MUJOCO_GL={way}: {', '.join(DRAWN)}", flush=True)
            more = {**env, "MUJOCO_GL": way}
            status, others = run([*command, *DRAWN, *sys.argv[1:]], more)
            status, shaky = 0 if status == NO_TESTS else status, shaky + others
    seconds = time.monotonic() - begun
    word = "FAILED, see above" if status else f"all passed in {seconds:.0f} s"
    for name in shaky:
        print(f"make test: {name} failed beside others and passed alone: it waits too briefly")
    print(f"make test: {word}")
    return status


def run(command: list[str], env: dict[str, str]) -> tuple[int, list[str]]:
    """Status, and the names of tests that passed at their second run only."""
    LAST_FAILED.unlink(missing_ok=True)
    status = subprocess.run(command, cwd=ROOT, env=env).returncode
    failed = list(json.loads(LAST_FAILED.read_text())) if LAST_FAILED.exists() else []
    if status != FAILED or not 0 < len(failed) <= MOST_AGAIN:
        return status, []
    print(f"\nOnce more, alone: {', '.join(failed)}", flush=True)
    status = subprocess.run([*command, "-n", "0", "--last-failed"], cwd=ROOT, env=env).returncode
    return status, [] if status else failed


if __name__ == "__main__":
    sys.exit(main())
