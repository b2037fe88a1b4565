"""The Python that has an installed `mimicgen` package, as the user names it."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from vla_inference.errors import VlaError
from vla_sim_bridge.envs.other_python.process import OtherPython

PYTHON_VARIABLE = "VLA_MIMICGEN_PYTHON"
PACKAGE = "mimicgen"


def find_python() -> str:
    """The Python interpreter named by the user."""
    given = os.environ.get(PYTHON_VARIABLE, "")
    remedy = (
        f"set {PYTHON_VARIABLE}, or --mimicgen-python, to the Python of an environment "
        f"that has {PACKAGE} and robosuite 1.4"
    )
    if not given:
        raise VlaError(f"the Python that has {PACKAGE} is not named", remedy)
    found = shutil.which(os.path.expanduser(given))
    if found is None:
        raise VlaError(f"there is no Python {given!r} that can be run", remedy)
    return found


def start() -> OtherPython:
    """A process that serves the package's environments."""
    serves = Path(__file__).with_name("server.py")
    return OtherPython(PACKAGE, find_python(), serves, PYTHON_VARIABLE)


def check_installed(env: str) -> None:
    """Refuses an environment that the named Python does not have."""
    with contextlib.closing(start()) as process:
        process.check_registered(env)
