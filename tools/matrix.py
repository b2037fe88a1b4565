#!/usr/bin/env python3
"""Tests the workspace under other Pythons and other ROS 2 wheels; prints and writes a table.

Each combination is a copy of this checkout's files in .venv-matrix/NAME, set up there as a user
would (`tools/setup.py`), in which a quick set of tests runs. A Python that this machine lacks is
named in the table and makes the status 1, as a failure does.

Environment variables:
  VLA_PYTHON3_10, VLA_PYTHON3_11, VLA_PYTHON3_12  interpreters (default: on PATH or of pyenv)
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -I` leaves it out

from workspace_setup.machine import WHEELS, python_of, python_version
from workspace_setup.steps import ROOT, say

FOLDER = ROOT / ".venv-matrix"
PYTHONS = ("3.10", "3.11", "3.12")
# Of each kind one: messages, nodes, control, launch, simulation over topics, datasets, training
TESTS = (
    "src/vla_inference/test/test_messages.py",
    "src/vla_inference/test/test_lifecycle.py",
    "src/vla_inference/test/test_command_node.py",
    "src/vla_inference/test/test_inference_node.py",
    "src/vla_inference/test/test_gripper_action.py",
    "src/vla_inference/test/test_launch_standin.py",
    "src/vla_training/test/test_convert.py",
    "src/vla_training/test/test_bag.py",
    "src/vla_training/test/test_training_parts.py",
    "test/test_closed_loop.py",
    "test/test_packages.py",
)


@dataclass
class Row:
    python: str
    wheels: str
    result: str
    minutes: float = 0.0
    good: bool = False

    def __str__(self) -> str:
        return f"| {self.python} | {self.wheels} | {self.result} | {self.minutes:.1f} |"


def find(python: str) -> str | None:
    """The interpreter of a version, by its variable, on PATH or of pyenv; None: there is none."""
    version = (int(python[0]), int(python[2:]))
    named = os.environ.get(f"VLA_PYTHON{python.replace('.', '_')}")
    if named:
        path = shutil.which(named)
        return path if path and python_version(path) == version else None
    return python_of(version)


def copy(folder: Path) -> None:
    """The files that git knows or would add, as they are now."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).unlink(missing_ok=True)  # left by --keep; links are not written over
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)


def play(python: str, wheels: str, tests: list[str]) -> Row:
    row = Row(python, wheels, "")
    interpreter = find(python)
    if interpreter is None:
        variable = f"VLA_PYTHON{python.replace('.', '_')}"
        row.result = f"no python{python} here; install it or set {variable}"
        return row
    folder, begun = FOLDER / f"{python}-{wheels}", time.monotonic()
    copy(folder)
    (FOLDER / "COLCON_IGNORE").touch()
    keep = {k: v for k, v in os.environ.items() if k in ("HOME", "LANG", "TERM", "TMPDIR", "USER")}
    keep |= {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "VLA_PIP", "SSL_"))}
    env = {**keep, "PATH": _path(), "VLA_PYTHON": interpreter, "VLA_NO_ROS": "1"}
    env |= {"VLA_WHEELS": wheels, "VLA_TEST_DATA": str(ROOT.parent / "shared" / "data")}
    words = " ".join(tests)
    line = "python3 -IS tools/setup.py --tests && . .venv/vla_env.sh && "
    line += f"python3 -m pytest -q -p no:cacheprovider -m 'not slow' {words}"
    log = FOLDER / f"{python}-{wheels}.log"
    with log.open("w") as out:
        done = subprocess.run(["bash", "-c", line], cwd=folder, env=env, stdout=out, stderr=out)
    text = log.read_text(errors="replace")
    closing = re.findall(r"^=*\s*(\d+ (?:passed|failed).*? in [\d.]+s).*$", text, re.M)
    row.result = closing[-1] if closing else f"not set up, see {log.relative_to(ROOT)}"
    row.good, row.minutes = not done.returncode, (time.monotonic() - begun) / 60
    return row


def _path() -> str:
    """PATH without this workspace's own folders."""
    entries = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(e for e in entries if not e.startswith(str(ROOT) + os.sep))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", nargs="*", default=PYTHONS, choices=PYTHONS)
    parser.add_argument("--wheels", nargs="*", default=WHEELS, choices=WHEELS)
    parser.add_argument("--tests", nargs="*", default=TESTS, help="files; a quick set")
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    options = parser.parse_args()
    rows = []
    for python in options.python:
        for wheels in options.wheels:
            say(f"Python {python}, {wheels} ...")
            rows.append(play(python, wheels, list(options.tests)))
            say(f"Python {python}, {wheels}: {rows[-1].result}")
            if not options.keep:
                shutil.rmtree(FOLDER / f"{python}-{wheels}", ignore_errors=True)
    table = "\n".join(["| Python | wheels | tests | min |", "|---|---|---|---|", *map(str, rows)])
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "table.md").write_text(table + "\n")
    print(table)
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
