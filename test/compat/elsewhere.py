"""Runs scripts under the interpreters that `make compat` made, each with one other library."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

HIDDEN = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "AMENT_PREFIX_PATH")


def interpreter(variable: str) -> str:
    """The Python that a variable names; without one the test fails, and says what to do."""
    python = os.environ.get(variable, "")
    if not python:
        pytest.fail(f"{variable} names no interpreter; run `make compat`", pytrace=False)
    return python


def elsewhere(variable: str, folder: Path, script: str, *arguments: object) -> dict:
    """What a script prints last, as JSON. It is written to `folder` and run there."""
    path = folder / "script.py"
    path.write_text(script)
    env = {k: v for k, v in os.environ.items() if k not in HIDDEN}
    env |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [interpreter(variable), str(path), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=env,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
