"""The Python that has an installed `robocasa` package with its assets, as the user names it."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from vla_inference.errors import VlaError
from vla_sim_bridge.envs.other_python.process import OtherPython
from vla_sim_bridge.envs.renderer import WAY

PYTHON_VARIABLE = "VLA_ROBOCASA_PYTHON"
PACKAGE = "robocasa"


def find_python() -> str:
    """The Python interpreter named by the user."""
    given = os.environ.get(PYTHON_VARIABLE, "")
    remedy = f"set {PYTHON_VARIABLE} to the Python of an environment that has {PACKAGE}"
    if not given:
        raise VlaError(f"the Python that has {PACKAGE} is not named", remedy)
    found = shutil.which(os.path.expanduser(given))
    if found is None:
        raise VlaError(f"there is no Python {given!r} that can be run", remedy)
    return found


def start() -> OtherPython:
    """A process that serves the package's kitchens."""
    drawing = {"MUJOCO_GL": WAY, "PYOPENGL_PLATFORM": WAY} if WAY else {}
    serves = Path(__file__).with_name("server.py")
    return OtherPython(PACKAGE, find_python(), serves, PYTHON_VARIABLE, drawing)


def check_installed(env: str) -> None:
    """Refuses a task that the named Python does not have."""
    with contextlib.closing(start()) as process:
        process.check_registered(env)
