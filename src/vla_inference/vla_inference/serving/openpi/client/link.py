"""A synchronous websocket client with a deadline on each answer, which reconnects when lost.

The socket lives in a thread of its own, with a reader that is always at it: so the server's pings
are answered between requests as well, and a reply that nobody waits for is seen at once.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Coroutine
from typing import Any

import aiohttp

from vla_inference.errors import VlaError
from vla_inference.serving.openpi.client.address import Address
from vla_inference.serving.openpi.wire import MAX_BYTES, WireError, unpack

PAUSES = (0.2, 5.0)  # seconds between two attempts to connect: the first, and the longest
CONNECT_SECONDS = 10.0
Reply = str | bytes


class LinkError(VlaError):
    """The server cannot be reached, has gone, or did not answer in time."""


class Link:
    """A connection for one request at a time, used by one thread at a time.

    Example::

        link = Link(Address.parse("ws://127.0.0.1:8000"))
        metadata = link.connect()
        reply = link.ask(message, timeout=5.0)
    """

    def __init__(self, address: Address):
        self.address = address
        self._headers, self._ssl = address.headers(), address.ssl_context()
        self._socket: _Socket | None = None
        self._pause, self._not_before = 0.0, 0.0
        self._reason = ""
        self._endings: list[concurrent.futures.Future[None]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # of what nobody closed

    @property
    def connected(self) -> bool:
        return self._socket is not None and self._socket.open

    def connect(self) -> Any:
        """A new connection; returns the metadata that the server sends.

        Raises LinkError, at once where the last attempt was a moment ago: the pauses grow.
        """
        now = time.monotonic()
        if now < self._not_before:
            raise self._error(self._reason or "it was connected to a moment ago")
        first, longest = PAUSES
        self._pause = min(longest, 2 * self._pause or first)
        self._not_before = now + self._pause
        self.drop()
        seconds = min(CONNECT_SECONDS, max(1.0, self.address.timeout))
        socket = _Socket(self.address, self._headers, self._ssl)
        try:
            metadata = self._run(socket.connect(seconds), seconds)
        except BaseException:
            self._give_up(socket)
            raise
        self._socket = socket
        return _read(metadata)

    def ask(self, message: bytes, timeout: float) -> Any:
        """What the reply to a message holds: text, or what is unpacked. A late one never is: the
        connection is given up with it."""
        if self._socket is None or not self._socket.open:
            raise self._error(self._reason or "it is not connected")
        try:
            reply = self._run(self._socket.ask(message, timeout), timeout)
        except BaseException:  # after Ctrl-C, too, the reply to come is for nobody
            self.drop()
            raise
        self._pause = self._not_before = 0.0  # it works: the next loss is tried again soon
        return _read(reply)

    def drop(self) -> None:
        """Drops the connection."""
        socket, self._socket = self._socket, None
        if socket is not None:
            self._give_up(socket)

    def close(self) -> None:
        """Closes the link for good."""
        if not self._thread.is_alive():
            return
        atexit.unregister(self.close)
        self.drop()
        concurrent.futures.wait(self._endings, 2.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(2.0)
        if not self._thread.is_alive():
            self._loop.close()

    def _give_up(self, socket: _Socket) -> None:
        """Close it without waiting for that."""
        self._endings = [future for future in self._endings if not future.done()]
        self._endings.append(asyncio.run_coroutine_threadsafe(socket.close(), self._loop))

    def _run(self, coroutine: Coroutine[Any, Any, Any], timeout: float) -> Any:
        """In the socket's thread; whatever the network does becomes a LinkError."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout + 1.0)
        except (asyncio.TimeoutError, concurrent.futures.TimeoutError):
            future.cancel()
            raise self._error(f"there was no answer within {timeout:g} s") from None
        except aiohttp.WSServerHandshakeError as error:
            raise self._error(_refusal(error.status)) from None
        except (aiohttp.ClientError, OSError, _Closed) as error:
            raise self._error(str(error) or type(error).__name__) from None
        except BaseException:  # Ctrl-C: nobody waits for this answer any more
            future.cancel()
            raise

    def _error(self, reason: str) -> LinkError:
        self._reason = reason
        return LinkError(
            f"server {self.address.server}: {reason}", "check that it runs and can be reached"
        )


class _Closed(Exception):
    """Why the socket cannot be used any more."""


class _Socket:
    """One websocket, for its whole life in one event loop."""

    def __init__(self, address: Address, headers: dict[str, str], trusted: Any):
        self._address, self._headers, self._trusted = address, headers, trusted
        self._session: aiohttp.ClientSession | None = None
        self._socket: Any = None  # aiohttp.ClientWebSocketResponse, once it is open
        self._reader: asyncio.Task | None = None
        self._waiting: asyncio.Future[Reply] | None = None
        self.open = False
        self._why = "it is not connected"

    async def connect(self, seconds: float) -> Reply:
        """The first message."""
        return await asyncio.wait_for(self._connect(), seconds)

    async def _connect(self) -> Reply:
        self._session = aiohttp.ClientSession()  # which obeys no proxy of the environment
        self._socket = await self._session.ws_connect(
            self._address.url,
            headers=self._headers,
            ssl=self._trusted or True,
            compress=0,
            max_msg_size=MAX_BYTES,
            timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
        )
        message = await self._socket.receive()
        self._check(message)
        self.open = True
        self._reader = asyncio.create_task(self._read())
        return message.data

    async def ask(self, message: bytes, seconds: float) -> Reply:
        if not self.open:
            raise _Closed(self._why)
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            return await asyncio.wait_for(self._exchange(message, self._waiting), seconds)
        finally:
            self._waiting = None

    async def _exchange(self, message: bytes, waiting: asyncio.Future[Reply]) -> Reply:
        await self._socket.send_bytes(message)
        return await waiting

    async def _read(self) -> None:
        try:
            while True:
                message = await self._socket.receive()
                self._check(message)
                waiting = self._waiting
                if waiting is None or waiting.done():
                    raise _Closed("it sent what nobody had asked for")
                waiting.set_result(message.data)
        except Exception as error:  # the socket's end, whatever it was
            self._why = str(error) or type(error).__name__
        finally:
            self.open = False
            if self._waiting is not None and not self._waiting.done():
                self._waiting.set_exception(_Closed(self._why))

    def _check(self, message: Any) -> None:
        if message.type not in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT):
            code = self._socket.close_code
            raise _Closed(f"it closed the connection (code {code})" if code else "it has gone")

    async def close(self) -> None:
        self.open = False
        if self._reader is not None:
            self._reader.cancel()
        if self._socket is not None:
            with contextlib.suppress(Exception):  # there may be nobody to say goodbye to
                await asyncio.wait_for(self._socket.close(), 1.0)
        if self._session is not None:
            await self._session.close()


def _read(reply: Reply) -> Any:
    if isinstance(reply, str):
        return reply
    try:
        return unpack(reply)
    except WireError as error:
        raise LinkError(f"the server's reply cannot be read ({error.problem})") from None


def _refusal(status: int) -> str:
    known = {
        401: "the key is wrong or missing (key_file=FILE in the address)",
        403: "it lets this client not in",
        404: "there is no websocket at this path",
        503: "it has too many clients",
    }
    return known.get(status, f"it refused the connection (HTTP {status})")
