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


def elsewhere_command(
    variable: str, folder: Path, script: str, *arguments: object
) -> tuple[list[str], dict[str, str]]:
    """Command and environment that run a script, which is written to `folder`."""
    path = folder / "script.py"
    path.write_text(script)
    env = {k: v for k, v in os.environ.items() if k not in HIDDEN}
    env |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return [interpreter(variable), str(path), *map(str, arguments)], env


def elsewhere(variable: str, folder: Path, script: str, *arguments: object) -> dict:
    """What a script prints last, as JSON. It is written to `folder` and run there."""
    command, env = elsewhere_command(variable, folder, script, *arguments)
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def skip_older_lerobot(variable: str, folder: Path) -> None:
    """Skips where lerobot is older than 0.6, as it is for Python below 3.12."""
    script = "import json, lerobot; print(json.dumps({'version': lerobot.__version__}))"
    version = elsewhere(variable, folder, script)["version"]
    if tuple(map(int, version.split(".")[:2])) < (0, 6):
        pytest.skip(f"lerobot {version} has other settings, processors and plug-ins")
