"""The model server: sockets in one thread, the model in another (`Batcher`).

A reader for each client is always at its socket, since aiohttp answers pings only in there; a
writer sends the replies in order. So neither a long answer nor a client that reads slowly holds
up anybody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import logging
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import WSCloseCode, WSMsgType, web

from vla_inference.errors import ObservationError, VlaError
from vla_inference.policies.base import Contract, Policy
from vla_inference.serving.openpi.batcher import Answer, Batcher, PolicyFailure
from vla_inference.serving.openpi.metadata import REALTIME, write_metadata, write_roboarena
from vla_inference.serving.openpi.metrics import ServerMetrics
from vla_inference.serving.openpi.observation_maps import ObservationMap
from vla_inference.serving.openpi.rest import read_act, write_act
from vla_inference.serving.openpi.settings import ServeSettings
from vla_inference.serving.openpi.wire import WireError, pack, unpack_map
from vla_inference.serving.openpi.wire_actions import Conversion
from vla_inference.types import Observation

log = logging.getLogger(__name__)
FAILED = "the model failed; the server's log says why"
UNANSWERED = 8  # messages of a client whose replies are still to be sent
SEND_SECONDS = 10.0  # until a client that does not read is given up
REQUEST_SECONDS = 30.0  # for the whole of a REST request or a connection's first one
Frame = str | bytes
T = TypeVar("T")


@dataclass(eq=False)
class Client:
    """A websocket. replies: to send, in order. total: of the last answer [s]."""

    socket: web.WebSocketResponse
    realtime: bool
    replies: asyncio.Queue[Awaitable[Frame]] = field(
        default_factory=lambda: asyncio.Queue(UNANSWERED)
    )
    total: float | None = None

    def error(self, text: str) -> Frame:
        """openpi's clients know an error by its text frame, vLLM-Omni's by its type."""
        return pack({"type": "error", "message": text}) if self.realtime else text


class Server:
    """Serves the policy that `load` returns.

    Example::

        server = Server(lambda: load_policy("models/stack-small"), ServeSettings(port=0))
        asyncio.run(server.run(lambda port: print(port)))
    """

    def __init__(self, load: Callable[[], Policy], settings: ServeSettings):
        settings.check()
        self.settings, self.metrics = settings, ServerMetrics()
        self.batcher = Batcher(load, settings.max_batch, self.metrics)
        self._map = ObservationMap.load(settings.map)
        self._key = settings.key()
        self._ssl = settings.ssl_context()
        self._most = settings.max_megabytes << 20
        self._clients: set[Client] = set()
        self._known: set[Any] = set()  # connections that have sent a whole request
        self._numbers = itertools.count()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- from start to end --------------------------------------------------------------------

    def load(self) -> Policy:
        """Loads the model, warms it up and checks it against the map; blocks."""
        policy = self.batcher.start()
        try:
            self._map.check(policy.needs)
            spec = policy.action_spec()
            self._convert = Conversion.between(spec, self._map.spec or spec)
        except VlaError:
            self.batcher.stop()
            raise
        contract = Contract(policy.needs, self._convert.spec, policy.chunk)
        self.name, self.needs = policy.name, policy.needs
        self._spaces = frozenset(policy.action_spaces)
        if self.settings.dialect == "roboarena":
            self.metadata = write_roboarena(contract)
        else:
            self.metadata = write_metadata(contract, policy.name, self._map)
        return policy

    async def run(self, ready: Callable[[int], None] = lambda port: None) -> None:
        """Serves until SIGTERM, SIGINT or `stop`. ready: called with the port when it listens."""
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(RuntimeError, ValueError):  # not in the main thread
                self._loop.add_signal_handler(number, self._stop.set)
        runner = web.AppRunner(self.app(), access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        sweeper = asyncio.create_task(self._sweep(runner))
        try:
            port = await self._listen(runner)
            ready(port)
            await self._stop.wait()
        finally:
            sweeper.cancel()
            await runner.cleanup()
            await asyncio.to_thread(self.batcher.stop)

    async def _listen(self, runner: web.AppRunner) -> int:
        host, port = self.settings.host, self.settings.port
        try:
            await web.TCPSite(runner, host, port, ssl_context=self._ssl).start()
        except OSError as error:
            raise VlaError(
                f"cannot listen on {host}:{port} ({error.strerror or error})",
                "choose another --port, or stop what listens there",
            ) from None
        return runner.addresses[0][1]

    def stop(self) -> None:
        """Stops the server; may be called from any thread."""
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._stop.set)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=self._most, middlewares=[self._admit])
        app.router.add_get("/", self._socket)
        app.router.add_get(REALTIME, self._socket)
        app.router.add_post("/act", self._act)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/metrics", self._metrics)
        app.on_shutdown.append(self._close_sockets)
        return app

    async def _close_sockets(self, app: web.Application) -> None:
        closing = [c.socket.close(code=WSCloseCode.GOING_AWAY) for c in self._clients]
        if closing:
            await asyncio.wait([asyncio.ensure_future(c) for c in closing], timeout=0.5)

    async def _sweep(self, runner: web.AppRunner) -> None:
        """Closes connections that did not send a whole request in time."""
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

    # -- who may come in ----------------------------------------------------------------------

    @web.middleware
    async def _admit(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self._known.add(request.protocol)
        if "Origin" in request.headers:  # a page in somebody's browser, no robot
            self.metrics.count("turned_away")
            return web.Response(status=403, text="not for browsers\n")
        if self._key and request.path != "/healthz":
            given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, f"Api-Key {self._key}".encode()):
                self.metrics.count("turned_away")
                return web.Response(status=401, text="the key is wrong or missing\n")
        return await handler(request)

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="OK\n")

    async def _metrics(self, request: web.Request) -> web.Response:
        text = self.metrics.text(len(self._clients), self.name)
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4"})

    # -- websockets ---------------------------------------------------------------------------

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if len(self._clients) >= self.settings.max_clients:
            self.metrics.count("turned_away")
            return web.Response(status=503, text="too many clients\n")
        ws = web.WebSocketResponse(
            max_msg_size=self._most,
            compress=False,
            timeout=1.0,
            receive_timeout=self.settings.idle or None,
        )
        client = Client(ws, realtime=request.path == REALTIME)
        self._clients.add(client)
        writer = None
        try:
            await ws.prepare(request)
            self.metrics.count("connections")
            _keep_alive(request)
            await ws.send_bytes(pack(self.metadata))
            writer = asyncio.create_task(self._write(client))
            await self._read(client)
        except asyncio.TimeoutError:  # idle
            await ws.close(code=WSCloseCode.GOING_AWAY, message=b"idle")
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # it has gone
        finally:
            self._clients.discard(client)
            self.batcher.withdraw(client)
            if writer is not None:
                writer.cancel()
        return ws

    async def _read(self, client: Client) -> None:
        """Reads until the socket closes; each message becomes a pending reply."""
        pause = 1 / self.settings.max_rate
        while True:
            begun = time.monotonic()
            message = await client.socket.receive()
            if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
                return
            if client.replies.full():
                text = b"wait for each answer"
                await client.socket.close(code=WSCloseCode.POLICY_VIOLATION, message=text)
                return
            client.replies.put_nowait(await self._handle(client, message))
            if (early := pause - (time.monotonic() - begun)) > 0:
                await asyncio.sleep(early)

    async def _write(self, client: Client) -> None:
        """Sends the replies in order; drops a client that does not read them."""
        while True:
            frame = await (await client.replies.get())
            socket = client.socket
            sent = socket.send_str(frame) if isinstance(frame, str) else socket.send_bytes(frame)
            try:
                await asyncio.wait_for(sent, SEND_SECONDS)
            except (asyncio.TimeoutError, ConnectionError):
                with contextlib.suppress(ConnectionError):
                    await client.socket.close(code=WSCloseCode.GOING_AWAY)
                return

    async def _handle(self, client: Client, message: Any) -> Awaitable[Frame]:
        begun = time.monotonic()
        try:
            if message.type is WSMsgType.TEXT:
                raise WireError("a text frame came", "send binary messages")
            asked = await asyncio.to_thread(_read, self._read_request, message.data)
        except ObservationError as error:
            self.metrics.count("refused")
            return _done(client.error(_line(error)))
        if asked is None:
            self.metrics.count("resets")
            status = "reset successful"
            return _done(pack({"status": status}) if client.realtime else status)
        answer = asyncio.wrap_future(self.batcher.submit(client, asked))
        return asyncio.ensure_future(self._reply(client, answer, begun))

    def _read_request(self, data: bytes) -> Observation | None:
        """What is asked; None: a reset. Sessions have no state here: each answer is for its
        observation alone."""
        message = unpack_map(data, self._most)
        endpoint = message.pop("endpoint", "infer")
        message.pop("session_id", None)
        if endpoint == "reset":
            return None
        if endpoint != "infer":
            raise WireError(f"there is no endpoint {endpoint!r:.40}", "use infer or reset")
        return self._map.read(message, self.needs, self.settings.instruction)

    async def _reply(self, client: Client, answer: asyncio.Future[Answer], begun: float) -> Frame:
        try:
            reply = pack(self._answer(client, await answer))
        except ObservationError as error:
            self.metrics.count("refused")
            return client.error(_line(error))
        except PolicyFailure:
            return client.error(FAILED)
        except Exception:  # whatever a policy answers with, its client does not wait in vain
            log.exception("the model's answer cannot be sent")
            self.metrics.count("failed")
            return client.error(FAILED)
        client.total = time.monotonic() - begun
        self.metrics.count("answers")
        return reply

    def _answer(self, client: Client, found: Answer) -> dict[str, Any]:
        """The map that is sent."""
        reply: dict[str, Any] = {"actions": self._convert(found.chunk.actions)}
        if not client.realtime:
            timing = {"infer_ms": 1e3 * found.took, "wait_ms": 1e3 * found.waited}
            if client.total is not None:
                timing["prev_total_ms"] = 1e3 * client.total
            reply["policy_timing"] = {k: float(v) for k, v in found.chunk.timing.items()}
            reply["policy_timing"]["infer_ms"] = timing["infer_ms"]
            reply["server_timing"] = timing
        return reply

    # -- REST ---------------------------------------------------------------------------------

    async def _act(self, request: web.Request) -> web.Response:
        client = next(self._numbers)
        try:
            body = await asyncio.wait_for(request.read(), REQUEST_SECONDS)
            usual = self.settings.instruction
            asked = await asyncio.to_thread(_read, read_act, body, self.needs, usual)
            if asked.space is not None and asked.space not in self._spaces:
                raise ObservationError("there is no such unnorm_key", "leave it out")
            future = self.batcher.submit(client, asked.observation, asked.space)
            found = await asyncio.wrap_future(future)
        except ObservationError as error:
            self.metrics.count("refused")
            return web.json_response({"error": _line(error)}, status=400)
        except asyncio.TimeoutError:
            return web.json_response({"error": "the request came too slowly"}, status=408)
        except PolicyFailure:
            return web.json_response({"error": FAILED}, status=500)
        finally:
            self.batcher.withdraw(client)
        self.metrics.count("answers")
        return web.json_response(text=write_act(found.chunk, asked))


def _read(read: Callable[..., T], *arguments: Any) -> T:
    """What `read` returns; whatever it raises becomes an ObservationError."""
    try:
        return read(*arguments)
    except ObservationError:
        raise
    except Exception as error:  # whatever a message can do, it does it to its sender alone
        log.exception("a message could not be read")
        raise WireError("the message cannot be read") from error


async def _frame(frame: Frame) -> Frame:
    return frame


def _done(frame: Frame) -> Awaitable[Frame]:
    return asyncio.ensure_future(_frame(frame))


def _line(error: Exception) -> str:
    """An error message for clients, on one line."""
    return "bad request: " + " ".join(str(error).split())[:300]


def _keep_alive(request: web.Request) -> None:
    """Detects within about a minute that a peer has disappeared."""
    peer = request.transport.get_extra_info("socket") if request.transport else None
    if peer is None:
        return
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            with contextlib.suppress(OSError):
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
