"""Connects this process to a Ray cluster, or starts one on this machine."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from typing import Any

from vla_inference.errors import VlaError


def connect(address: str, cpus: int | None = None) -> Any:
    """Connects to a cluster; returns the module `ray`. Raises VlaError.

    address: HOST:PORT, "auto" for the one that runs on this machine, or "local" to start one.
    cpus: of a local one; None: all.
    """
    local = address == "local"
    _reach(address)
    if local and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        # Its ports are open to other machines, and anyone who may use them can run code here. Ray
        # reads this as it is imported.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        import ray
    except ImportError as error:
        raise VlaError(
            f"Ray cannot be imported ({error})", "pip install -r requirements/ray.txt"
        ) from error
    try:
        ray.init(
            address=address,
            num_cpus=cpus if local else None,
            include_dashboard=False if local else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise VlaError(
            f"there is no Ray cluster at {address} ({error})", "correct --ray-address"
        ) from error
    return ray


def _reach(address: str) -> None:
    """Checks the address first, because Ray itself retries for minutes and then ends the
    process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        if address in ("local", "auto"):
            return
        raise VlaError(f"--ray-address is {address!r}", "give HOST:PORT, auto or local")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError) as error:
        raise VlaError(
            f"there is no Ray cluster at {address} ({error})", "correct --ray-address"
        ) from error
