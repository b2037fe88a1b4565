"""Errors that come of a workspace whose sources are newer than what was built of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from vla_inference.errors import VlaError

MESSAGES = "vla_msgs"
OF_ROS = re.compile(
    r"(rclpy|ament_\w+|launch\w*|rosidl\w*|std_srvs|\w+_msgs|\w+_interfaces)(\..*)?"
)
PATIENCE = 20.0  # s that the set-up may take to compare
OUTDATED = 3  # its exit status where something has to be built or installed
REMEDY, CLEAN = "run `make setup`", "run `make clean setup`"


def unexpected(error: Exception, where: str = "") -> str:
    """One line about an error that nobody foresaw: what it is, and what to do about it.

    where: " in NAME". Starts no process, so that a control loop may call it.
    """
    if lacks_messages(error):
        return f"the built messages do not fit the code ({_name(error)}{where}); {REMEDY}"
    return f"unexpected {type(error).__name__}{where}: {error}; please report it"


def stale_build(error: Exception) -> str:
    """The line for an error of a process that ends, if its workspace has to be built; else ""."""
    if lacks_messages(error):
        # The set-up would find nothing to do
        again = "VLA_WORKSPACE" in os.environ and not is_outdated()
        return unexpected(error).replace(REMEDY, CLEAN) if again else unexpected(error)
    if isinstance(error, ImportError) and is_outdated():
        return f"the workspace has changed since it was built ({_name(error)}); {REMEDY}"
    return ""


def without_ros(error: Exception) -> str:
    """The line for an import of ROS's where there is no ROS; else ""."""
    missing = isinstance(error, ModuleNotFoundError) and error.name
    if not missing or not OF_ROS.fullmatch(missing) or find_spec("rclpy"):
        return ""
    return f"this needs ROS 2, which is not installed here ({error}); {REMEDY}, or source it"


def needs_ros(
    error: ImportError, remedy: str = "source it, or use the workspace's wheels"
) -> VlaError:
    """The error of a command that cannot import its node."""
    if told := stale_build(error):
        return VlaError(*told.rsplit("; ", 1))
    return VlaError(f"ROS 2 is not installed ({error})", remedy)


def or_build(remedy: str) -> str:
    """The remedy for a missing file or command, and another one if it may be there once built."""
    return f"{REMEDY}, for the workspace has changed; else: {remedy}" if is_outdated() else remedy


def is_outdated() -> bool:
    """Whether the sourced workspace has changed since `make setup`; False where none is."""
    root = os.environ.get("VLA_WORKSPACE")
    setup = Path(root or "", "tools", "setup.py")
    if not root or not setup.is_file():
        return False
    command = [sys.executable, "-IS", str(setup), "--check"]
    try:
        return (
            subprocess.run(command, capture_output=True, timeout=PATIENCE).returncode == OUTDATED
        )
    except (OSError, subprocess.TimeoutExpired):
        return False


def lacks_messages(error: BaseException) -> bool:
    """Whether code asked the built messages for a type, field or constant that they lack."""
    if isinstance(error, ImportError):
        return _is_ours(error.name or "")
    if isinstance(error, AttributeError):
        return _is_ours(_module_of(error.obj))
    return isinstance(error, AssertionError) and "passed to constructor" in str(error)


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _is_ours(module: str) -> bool:
    return module.split(".")[0] == MESSAGES


def _module_of(thing: Any) -> str:
    if isinstance(thing, ModuleType):
        return thing.__name__
    return str((thing if isinstance(thing, type) else type(thing)).__module__)
