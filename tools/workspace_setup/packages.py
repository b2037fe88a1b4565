"""Makes the environment in .venv and installs packages into it."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shlex
import urllib.request
from pathlib import Path

from workspace_setup.machine import has_nvidia, python_version, system_libraries, wheels
from workspace_setup.steps import (
    NEWEST,
    OLDEST,
    PYTHON,
    ROOT,
    STATE,
    VENV,
    SetupError,
    digest,
    done,
    mark,
    output,
    run_logged,
    say,
)
from workspace_setup.trim import MADE

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def venv_key(ros: Path | None) -> str:
    """Hash of what an environment is made for: another distribution's wants another one."""
    other = [] if ros or wheels() == "ros_jazzy" else [wheels()]
    return digest("venv", str(VENV), str(ros), *other)


def make_venv(ros: Path | None, python: str | None) -> None:
    key = venv_key(ros)
    version = python_version(str(PYTHON)) if PYTHON.exists() else None
    usable = version is not None and OLDEST <= version <= NEWEST
    if done("venv", key) and usable:
        return
    # One whose making was interrupted has no pip yet.
    usable = usable and output(str(PYTHON), "-m", "pip", "--version") is not None
    system_libraries(python)
    if usable and not (STATE / "venv").exists() and not ros:
        say(f"using the .venv that is there (Python {version[0]}.{version[1]})")
        note = ""
    else:
        note = MADE
        version = python_version(python) or OLDEST
        kind = ["--system-site-packages"] if ros else []
        title = f"making .venv with Python {version[0]}.{version[1]}"
        title += f" over {ros}" if ros else ""
        command = [python, "-m", "venv", "--clear", *kind, str(VENV)]
        run_logged(title, command, ROOT / "log" / "setup-venv.log")
    (VENV / "COLCON_IGNORE").touch()
    mark("venv", key, note)


def cpu_torch_arguments() -> list[str]:
    """Where there is no NVIDIA GPU: PyTorch's CPU wheels instead of gigabytes of CUDA."""
    if os.environ.get("VLA_PIP_ARGS") or has_nvidia() or platform.machine() != "x86_64":
        return []
    try:
        urllib.request.urlopen(TORCH_CPU_INDEX + "/torch/", timeout=4).close()
    except (OSError, ValueError):
        return []  # behind a mirror or off line: pip's own settings decide
    return ["--extra-index-url", TORCH_CPU_INDEX]


def pip_key(name: str, ros: Path | None) -> str:
    """Hash of what an installation of requirements/<name>.txt depends on."""
    folder = ROOT / "requirements"
    return digest(str(ros), folder / f"{name}.txt", folder / "build.txt")


def is_installed(name: str, ros: Path | None) -> bool:
    return done(f"pip-{name}", pip_key(name, ros))


def pip_install(name: str, title: str, ros: Path | None) -> bool:
    """Install requirements/<name>.txt; False where that had been done."""
    if is_installed(name, ros):
        return False
    file = ROOT / "requirements" / f"{name}.txt"
    runtime = ROOT / "requirements" / "runtime.txt"
    key = pip_key(name, ros)
    more: list[str] = []
    if name == "torch":
        if output(str(PYTHON), "-c", "import torch") is not None and ros:
            say("keeping the PyTorch that is installed")  # Jetson: NVIDIA's own build
            mark(f"pip-{name}", key)
            return False
        more = cpu_torch_arguments()
    command = [str(PYTHON), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    command += ["--prefer-binary", "-r", str(file), *more]
    if name not in ("torch", "runtime"):  # what comes later never replaces what the core runs on
        command += ["-c", str(runtime)]
    command += shlex.split(os.environ.get("VLA_PIP_ARGS", ""))
    run_logged(title, command, ROOT / "log" / f"setup-pip-{name}.log")
    mark(f"pip-{name}", key)
    return True


def patch_exports() -> None:
    """The wheels' CMake files name the folders of the machine they were built on."""
    probe = (
        "import sysconfig, numpy; print(sysconfig.get_path('include')); print(numpy.get_include())"
    )
    include, numpy_include = (output(str(PYTHON), "-c", probe) or "\n").split("\n")
    if not include:
        raise SetupError("NumPy doesn't import in .venv; remove .venv and run the same again")
    base = r"/opt/python/cp3\d+-cp3\d+"
    for file in VENV.glob("share/*/cmake/*.cmake"):
        text = file.read_text(errors="surrogateescape")
        new = re.sub(
            base + r'/lib/python3\.\d+/site-packages/numpy/[^";]*include', numpy_include, text
        )
        new = re.sub(base + r"/include/python3\.\d+", include, new)
        if new != text:
            file.write_text(new, errors="surrogateescape")


def pip_stamp(name: str) -> str:
    with contextlib.suppress(OSError):
        return (STATE / f"pip-{name}").read_text()
    return ""
