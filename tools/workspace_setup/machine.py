"""Detects what the machine has: ROS, Pythons, libraries, a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from pathlib import Path

from workspace_setup.steps import NEWEST, OLDEST, ROOT, SetupError, output, run_logged

DISTROS = ("jazzy", "kilted", "humble")
WHEELS = ("jazzy", "kilted")


def machine_ros() -> Path | None:
    """/opt/ros/<distro> where a distribution we know is installed."""
    if os.environ.get("VLA_NO_ROS") == "1":
        return None
    wanted = os.environ.get("ROS_DISTRO", "")
    for distro in ([wanted] if wanted in DISTROS else []) + list(DISTROS):
        if Path("/opt/ros", distro, "setup.bash").is_file():
            return Path("/opt/ros", distro)
    return None


def wheels() -> str:
    """Name of the requirements with the ROS 2 wheels, for machines without /opt/ros."""
    distro = os.environ.get("VLA_WHEELS", "jazzy")
    if distro not in WHEELS:
        raise SetupError(f"VLA_WHEELS is {distro!r}; there are wheels of {' and '.join(WHEELS)}")
    return f"ros_{distro}"


def python_version(executable: str) -> tuple[int, int] | None:
    # A pyenv shim of a version that isn't selected exists and fails: only running it tells.
    text = output(executable, "-ISc", "import sys; print(*sys.version_info[:2])")
    try:
        major, minor = map(int, (text or "").split())
    except ValueError:
        return None
    return (major, minor)


def python_of(version: tuple[int, int]) -> str | None:
    """An interpreter of just this version: on PATH, or among those that pyenv keeps."""
    name = f"python{version[0]}.{version[1]}"
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    kept = sorted(pyenv.glob(f"versions/{version[0]}.{version[1]}.*/bin/{name}"))
    for path in [shutil.which(name), *map(str, kept)]:
        if path and python_version(path) == version:
            return path
    return None


def find_python(ros: Path | None) -> str:
    if os.environ.get("VLA_PYTHON"):
        names = [os.environ["VLA_PYTHON"]]
    elif ros:  # rclpy is compiled for exactly the distribution's Python
        names = ["/usr/bin/python3"]
    else:
        names = ["python3", "python3.12", "python3.11", "python3.10"]
    seen = []
    for name in names:
        path = shutil.which(name)
        version = python_version(path) if path else None
        if version and OLDEST <= version <= NEWEST:
            return path
        if version:
            seen.append(f"{name} is {version[0]}.{version[1]}")
        elif os.environ.get("VLA_PYTHON"):
            seen.append(f"VLA_PYTHON={name} cannot be run")
    found = f" ({', '.join(seen)})" if seen else ""
    raise SetupError(
        f"no Python 3.10 to 3.12 found{found}; install one, such as python3.11, or set "
        "VLA_PYTHON=/path/to/python3.x"
    )


def loads(*libraries: str) -> bool:
    for name in libraries:
        with contextlib.suppress(OSError):
            ctypes.CDLL(name)
            return True
    return False


def missing_packages(python: str) -> list[tuple[str, str]]:
    """(what is missing, Debian package) of everything the set-up can't bring itself."""
    probe = (
        "import importlib.util as u, os, sysconfig as s; "
        "print(int(all(map(u.find_spec, ('venv', 'ensurepip')))), "
        "int(os.path.exists(os.path.join(s.get_path('include'), 'Python.h'))))"
    )
    has_venv, has_headers = (output(python, "-Ic", probe) or "0 0").split()
    version = python_version(python) or OLDEST
    own = f"python{version[0]}.{version[1]}"
    missing = []
    if has_venv == "0":
        missing.append(("Python's venv module", f"{own}-venv"))
    if has_headers == "0":
        missing.append(("Python's headers", f"{own}-dev"))
    compiler = any(map(shutil.which, ("c++", "g++", "clang++")))
    if not (compiler and any(map(shutil.which, ("cc", "gcc", "clang")))):
        missing.append(("a C/C++ compiler", "g++"))
    if not (shutil.which("make") or shutil.which("ninja")):
        missing.append(("make", "make"))
    if not shutil.which("cmake"):
        missing.append(("cmake", "cmake"))
    # OpenCV, which robosuite imports, is linked against these two.
    if not loads("libGL.so.1"):
        missing.append(("libGL", "libgl1"))
    if not loads("libgthread-2.0.so.0"):
        missing.append(("GLib", "libglib2.0-0"))
    if not loads("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so") and not loads("libEGL.so.1"):
        # Newer distributions no longer have OSMesa; software EGL serves as well.
        if output("apt-cache", "show", "libosmesa6"):
            missing.append(("off-screen OpenGL", "libosmesa6"))
        else:
            missing.append(("off-screen OpenGL", "libegl1"))
            missing.append(("its software driver", "libgl1-mesa-dri"))
    return missing


def system_libraries(python: str) -> None:
    missing = missing_packages(python)
    if not missing:
        return
    what = ", ".join(w for w, _ in missing)
    packages = [p for _, p in missing]
    line = "apt-get install -y --no-install-recommends " + " ".join(packages)
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise SetupError(
            f"this machine lacks {what}; run this line, then the same command again:\n"
            f"  sudo apt-get update && sudo {line}"
        )
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["sh", "-c", f"apt-get update && {line}"]
    run_logged(f"installing {what} with apt", command, ROOT / "log" / "setup-apt.log", env)
    left = missing_packages(python)
    if left:
        raise SetupError(f"{line} ran, yet {left[0][0]} is still missing; install it by hand")


def has_nvidia() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()
