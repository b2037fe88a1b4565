"""ROS domains that no two test processes of this machine share."""

from __future__ import annotations

import fcntl
import os
import tempfile
from functools import cache
from pathlib import Path

# Read by Fast DDS, of this process and those that it starts: see the file. 3.0 renamed it.
_OLD = os.environ.get("ROS_DISTRO", "jazzy") in ("humble", "iron", "jazzy")
os.environ.setdefault(
    f"FAST{'RTPS' if _OLD else 'DDS'}_DEFAULT_PROFILES_FILE",
    str(Path(__file__).resolve().with_name("fastdds.xml")),
)


def claim() -> int:
    """A domain from 1 to 100 that this process has from now on."""
    folder = Path(tempfile.gettempdir())
    for number in range(1, 101):
        lock = os.open(folder / f"vla_domain_{number}.lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        return number  # the lock stays open, and held, as long as this process lives
    raise RuntimeError("100 domains are in use; end the tests that run")


@cache
def domain(key: int = 0) -> int:
    """This process's domain of that number; each has one of its own."""
    return claim()
