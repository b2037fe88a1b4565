#!/usr/bin/env python3
"""What the first set-up takes on this machine: time, disk, and the first closed loop after it.

    python bench/setup.py [--output bench/results/setup.json]

Clones this repository's HEAD into an empty folder and calls `make setup`, then `make demo`, with
the network as it is (packages are downloaded; pip's cache is not used).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import ROOT, add_output, keep

# What a shell that is set up hands down, and a newcomer's does not have.
OURS = ("VIRTUAL_ENV", "PYTHONPATH", "AMENT_PREFIX_PATH", "MUJOCO_GL", "PYOPENGL_PLATFORM")


def megabytes(folder: Path) -> float:
    """Disk that a folder's files take, 10^6 bytes; those linked twice count once."""
    done = subprocess.run(["du", "-s", "-B1", folder], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[0]) / 1e6


def seconds(target: str, where: Path, environment: dict[str, str]) -> float:
    begin = time.monotonic()
    subprocess.run(["make", target], cwd=where, env=environment, check=True, stdout=sys.stderr)
    return time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_output(parser)
    arguments = parser.parse_args()
    environment = {k: v for k, v in os.environ.items() if k not in OURS}
    environment["PIP_NO_CACHE_DIR"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder, "clone")
        subprocess.run(["git", "clone", "-q", ROOT, where], check=True)
        clone = megabytes(where)
        result = {
            "setup_s": round(seconds("setup", where, environment), 1),
            "demo_s": round(seconds("demo", where, environment), 1),
            "clone_mb": round(clone),
            "environment_mb": round(megabytes(where / ".venv")),
            "all_mb": round(megabytes(where)),
        }
    keep(result, arguments.output)


if __name__ == "__main__":
    main()
