"""Connections of an HTTP server: listening, and ending those that say nothing or are gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from vla_inference.errors import VlaError

REQUEST_SECONDS = 30.0  # for the whole of a REST request or a connection's first one


async def listen(
    runner: web.AppRunner, host: str, port: int, context: ssl.SSLContext | None = None
) -> int:
    """Listens; returns the port, which is any free one for 0."""
    try:
        await web.TCPSite(runner, host, port, ssl_context=context).start()
    except OSError as error:
        raise VlaError(
            f"cannot listen on {host}:{port} ({error.strerror or error})",
            "choose another port, or stop what listens there",
        ) from None
    return runner.addresses[0][1]


class Sweeper:
    """Closes connections that do not send a whole request in time."""

    def __init__(self) -> None:
        self._known: set[Any] = set()  # connections that have sent one

    def knows(self, request: web.Request) -> None:
        self._known.add(request.protocol)

    async def run(self, runner: web.AppRunner) -> None:
        since: dict[Any, float] = {}
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            assert runner.server is not None  # set up before this began
            connections = set(runner.server.connections)
            self._known &= connections
            since = {c: since.get(c, now) for c in connections - self._known}
            for connection, begun in since.items():
                if now - begun > REQUEST_SECONDS and connection.transport is not None:
                    connection.transport.abort()


def keep_alive(request: web.Request) -> None:
    """Detects within about a minute that a peer has disappeared."""
    peer = request.transport.get_extra_info("socket") if request.transport else None
    if peer is None:
        return
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            with contextlib.suppress(OSError):
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def is_own_fault(record: logging.LogRecord) -> bool:
    """Whether a record is about more than HTTP that a client got wrong."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)
