#!/usr/bin/env python3
"""Runs the tests in test/compat, which exchange files with other libraries.

Each library lives in an environment of its own in .venv-compat, made at the first call from
requirements/compat-NAME.txt. Names may be given to run some only; `--make` stops before the tests.

Environment variables:
  VLA_COMPAT_PYTHON  interpreter for those that it fits (default: the best on PATH or of pyenv)
  VLA_PIP_ARGS       more arguments for pip, as in tools/setup.py
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -I` leaves it out

from workspace_setup.emulated import make_emulated
from workspace_setup.machine import python_of, python_version
from workspace_setup.packages import cpu_torch_arguments
from workspace_setup.steps import ROOT, SetupError, digest, run_logged, say

FOLDER = ROOT / ".venv-compat"
TESTS = ROOT / "test" / "compat"


@dataclass(frozen=True)
class Environment:
    """pythons: minor versions of 3 that its pins have wheels for, the best first."""

    name: str
    variables: tuple[str, ...]  # by which the tests find its interpreter
    tests: tuple[str, ...]
    pythons: tuple[int, ...]
    always: bool = True  # or only where it is named

    @property
    def requirements(self) -> Path:
        return ROOT / "requirements" / f"compat-{self.name}.txt"

    @property
    def python(self) -> Path:
        return FOLDER / self.name / "bin" / "python"

    def find(self) -> str:
        """An interpreter to make it with: the one that is named, or the best there is."""
        named = shutil.which(os.environ.get("VLA_COMPAT_PYTHON", ""))
        if named and (python_version(named) or (0, 0))[1] in self.pythons:
            return named
        for path in map(python_of, [(3, minor) for minor in self.pythons]):
            if path:
                return path
        wanted = ", ".join(f"3.{minor}" for minor in self.pythons)
        raise SetupError(
            f"compat-{self.name} needs Python {wanted}; install one, or set VLA_COMPAT_PYTHON"
        )

    def make(self) -> None:
        """Create it and install its pins; a second call does nothing."""
        stamp, key = FOLDER / self.name / "made", digest(self.requirements)
        if stamp.is_file() and stamp.read_text() == key:
            return
        shutil.rmtree(FOLDER / self.name, ignore_errors=True)
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / "COLCON_IGNORE").touch()
        self.install(ROOT / "log" / f"compat-{self.name}.log")
        stamp.write_text(key)

    def install(self, log: Path) -> None:
        python = self.find()
        create = [python, "-m", "venv", str(FOLDER / self.name)]
        run_logged(f"making compat-{self.name}", create, log)
        command = [str(self.python), "-m", "pip", "install", "--no-input", "--prefer-binary"]
        command += ["-r", str(self.requirements), *cpu_torch_arguments()]
        command += shlex.split(os.environ.get("VLA_PIP_ARGS", ""))
        run_logged(f"installing compat-{self.name}", command, log)


class Emulated(Environment):
    """Another processor's."""

    def install(self, log: Path) -> None:
        make_emulated(FOLDER / self.name, self.requirements, log)


ENVIRONMENTS = (
    Environment("tensorflow", ("VLA_TF_PYTHON",), ("test_tensorflow_datasets.py",), (11, 12, 10)),
    Environment(
        "torch",
        ("VLA_LEROBOT_PYTHON", "VLA_ROBOMIMIC_PYTHON"),
        (
            "test_lerobot.py",
            "test_lerobot_policies.py",
            "test_lerobot_plugin.py",
            "test_robomimic.py",
        ),
        (12, 11, 10),
    ),
    Environment(
        "robosuite14", ("VLA_TEST_ROBOSUITE14_PYTHON",), ("test_robosuite14.py",), (11, 10)
    ),
    Environment(
        "libero",
        ("VLA_LIBERO_PYTHON", "VLA_JUDGE_PYTHON"),
        ("test_libero.py", "test_libero_judge.py"),
        (11,),
    ),
    Environment(
        "openpi",
        ("VLA_OPENPI_PYTHON",),
        ("test_openpi_client.py", "test_openpi_server.py"),
        (11, 12, 10),
    ),
    Environment(
        "robocasa", ("VLA_ROBOCASA_PYTHON",), ("test_robocasa.py",), (11, 12, 10), always=False
    ),
    Emulated("aarch64", ("VLA_AARCH64_PYTHON",), ("test_aarch64.py",), (11,), always=False),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [e.name for e in ENVIRONMENTS]
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names)}; all but the last two")
    parser.add_argument("--make", action="store_true", help="make the environments, run no test")
    options = parser.parse_args()
    unknown = sorted({*options.names} - {*names})
    if unknown:
        parser.error(f"there is no environment {', '.join(unknown)}; there are {', '.join(names)}")
    usual = [e.name for e in ENVIRONMENTS if e.always]
    chosen = [e for e in ENVIRONMENTS if e.name in (options.names or usual)]
    try:
        for environment in chosen:
            environment.make()
    except SetupError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("stopped; run the same again to go on from here")
        return 130
    if options.make:
        return 0
    env = {**os.environ, **{v: str(e.python) for e in chosen for v in e.variables}}
    tests = [str(TESTS / name) for e in chosen for name in e.tests]
    return subprocess.run([sys.executable, "-m", "pytest", *tests], cwd=ROOT, env=env).returncode


if __name__ == "__main__":
    sys.exit(main())
