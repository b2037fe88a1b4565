#!/usr/bin/env python3
"""Runs all tests, then the rendering tests again with the other renderer if there is one.

What is given goes to pytest both times (`-n 0`: in one process). Run by `make test`, within the
workspace.
"""

from __future__ import annotations

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


def main() -> int:
    begun, env = time.monotonic(), dict(os.environ)
    compilers = [
        str(p.parent) for p in ROOT.glob(".venv/lib/python3*/site-packages/nvidia/*/bin/nvcc")
    ]
    env["PATH"] = os.pathsep.join([env["PATH"], *compilers])
    # Most tests wait for nodes more than they compute.
    command = [sys.executable, "-m", "pytest", "-n", str(min(2, os.cpu_count() or 1))]
    command += ["--dist", "loadfile"]
    status = subprocess.run([*command, *sys.argv[1:]], cwd=ROOT, env=env).returncode
    for way in working_ways():
        if status == 0 and way != env.get("MUJOCO_GL"):
            print(f"\nOnce more with MUJOCO_GL={way}: {', '.join(DRAWN)}", flush=True)
            more = {**env, "MUJOCO_GL": way}
            status = subprocess.run(
                [*command, *DRAWN, *sys.argv[1:]], cwd=ROOT, env=more
            ).returncode
            status = 0 if status == NO_TESTS else status
    seconds = time.monotonic() - begun
    word = "FAILED, see above" if status else f"all passed in {seconds:.0f} s"
    print(f"make test: {word}")
    return status


if __name__ == "__main__":
    sys.exit(main())
