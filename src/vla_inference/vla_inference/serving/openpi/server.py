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
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
from aiohttp import WSCloseCode, WSMsgType, web

from vla_inference.errors import ObservationError, VlaError
from vla_inference.policies.base import Needs, Policy
from vla_inference.policies.confined import find_model
from vla_inference.serving.connections import (
    REQUEST_SECONDS,
    Sweeper,
    is_own_fault,
    keep_alive,
    listen,
)
from vla_inference.serving.model_thread import ModelThread, changes, release_memory
from vla_inference.serving.openpi.batcher import (
    Answer,
    Backend,
    Batcher,
    PolicyFailure,
    ReplacedError,
)
from vla_inference.serving.openpi.metadata import REALTIME
from vla_inference.serving.openpi.metrics import ServerMetrics
from vla_inference.serving.openpi.observation_maps import ObservationMap
from vla_inference.serving.openpi.rest import read_act, read_change, write_act
from vla_inference.serving.openpi.served import Client, Frame, Served
from vla_inference.serving.openpi.settings import ServeSettings
from vla_inference.serving.openpi.wire import WireError, pack, unpack_map
from vla_inference.types import Observation

log = logging.getLogger(__name__)
http_log = logging.getLogger(f"{__name__}.http")  # aiohttp's
FAILED = "the model failed; the server's log says why"
CHANGED = "the model has changed"
SEND_SECONDS = 10.0  # until a client that does not read is given up
T = TypeVar("T")


class Server:
    """Serves the policy that `load` returns, or what `serve` is given.

    Example::

        server = Server(lambda: load_policy("models/stack-small"), ServeSettings(port=0))
        server.load()
        asyncio.run(server.run(lambda port: print(port)))
    """

    def __init__(self, load: Callable[[], Policy] | None, settings: ServeSettings):
        settings.check()
        self.settings, self.metrics = settings, ServerMetrics()
        # To be put away here, where it was loaded here.
        self._model = self._model_thread(load) if load is not None else None
        self._served: Served | None = None
        self._map = ObservationMap.load(settings.map)
        self._key = settings.key()
        self._ssl = settings.ssl_context()
        self._most = settings.max_megabytes << 20
        self._clients: dict[Client, None] = {}  # the oldest first
        self._posting: set[int] = set()  # REST requests that are read or answered
        self._sweeper = Sweeper()
        self._numbers = itertools.count()
        self._changing = False
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- the model ----------------------------------------------------------------------------

    @property
    def served(self) -> Served:
        assert self._served is not None, "load a model first"
        return self._served

    def load(self) -> Policy:
        """Loads the model, warms it up and checks it against the map; blocks."""
        assert self._model is not None
        self._model.start()
        policy = self._model.policy
        assert policy is not None
        try:
            self.serve(self.batcher(self._model))
        except VlaError:
            self._model.stop(0.5)
            raise
        return policy

    def serve(self, backend: Backend) -> None:
        """Serves this from now on; once `run` runs, to be called in its thread.

        Clients that were told of another model are answered what they have asked, then their
        connections end with code 1012. Raises VlaError if it does not fit the map.
        """
        self._served = served = Served.of(backend, self._map, self.settings.dialect)
        for client in self._clients:
            if not served.same_to_clients(client.met):
                client.dismiss()

    async def change(self, name: str, action_space: str = "") -> list[str]:
        """Serves another model of `model_root` once it is warm; returns what changes.

        Raises whatever loading it raises; then the old one goes on.
        """
        old, before = self._model, self.served.backend.offer.contract
        if old is None or not self.settings.model_root:
            raise VlaError("models cannot be changed here", "start it with --model-root FOLDER")
        folder = find_model(self.settings.model_root, name)
        model = self._model_thread(lambda: self.settings.load(str(folder), action_space))
        model.begin()
        try:
            while not model.ready():
                await asyncio.sleep(0.05)
            self.serve(self.batcher(model))
        except BaseException:
            model.latest.close()
            raise
        self._model = model
        self.metrics.count("model_changes")
        await asyncio.to_thread(old.stop, 10.0)  # it answers what had come before
        await asyncio.to_thread(release_memory)
        return changes(before, self.served.backend.offer.contract)

    def _model_thread(self, load: Callable[[], Policy]) -> ModelThread[None]:
        return ModelThread[None](load, max_batch=self.settings.max_batch)

    def batcher(self, model: ModelThread[Any]) -> Batcher:
        """Answers clients by a model that is ready."""
        return Batcher(model, self.settings.max_batch, self.metrics)

    def values(self) -> dict[str, Any]:
        """Values for /diagnostics."""
        return {"clients": len(self._clients), "answered to clients": self.metrics["answers"]}

    # -- from start to end --------------------------------------------------------------------

    async def run(self, ready: Callable[[int], None] = lambda port: None) -> None:
        """Serves until SIGTERM, SIGINT or `stop`. ready: called with the port when it listens."""
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(RuntimeError, ValueError):  # not in the main thread
                self._loop.add_signal_handler(number, self._stop.set)
        http_log.addFilter(is_own_fault)
        runner = web.AppRunner(
            self.app(),
            access_log=None,
            shutdown_timeout=0.5,
            logger=http_log,
            auto_decompress=False,  # it would unfold a body whole, in this thread
        )
        await runner.setup()
        sweeper = asyncio.create_task(self._sweeper.run(runner))
        try:
            port = await listen(runner, self.settings.host, self.settings.port, self._ssl)
            ready(port)
            await self._stop.wait()
        finally:
            sweeper.cancel()
            await runner.cleanup()
            self.served.backend.close()
            if self._model is not None:
                await asyncio.to_thread(self._model.stop, 0.5)

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
        app.router.add_get("/model", self._tell_model)
        app.router.add_post("/model", self._change_model)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/metrics", self._metrics)
        app.on_shutdown.append(self._close_sockets)
        return app

    async def _close_sockets(self, app: web.Application) -> None:
        closing = [c.socket.close(code=WSCloseCode.GOING_AWAY) for c in self._clients]
        if closing:
            await asyncio.wait([asyncio.ensure_future(c) for c in closing], timeout=0.5)

    # -- who may come in ----------------------------------------------------------------------

    @web.middleware
    async def _admit(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self._sweeper.knows(request)
        if "Origin" in request.headers:  # a page in somebody's browser, no robot
            self.metrics.count("turned_away")
            return web.Response(status=403, text="not for browsers\n")
        if request.headers.get("Content-Encoding", "identity") != "identity":
            self.metrics.count("turned_away")
            return web.Response(status=415, text="send bodies that are not compressed\n")
        if self._key and request.path != "/healthz":
            given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, f"Api-Key {self._key}".encode()):
                self.metrics.count("turned_away")
                return web.Response(status=401, text="the key is wrong or missing\n")
        return await handler(request)

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="OK\n")

    async def _metrics(self, request: web.Request) -> web.Response:
        text = self.metrics.text(len(self._clients), self.served.name)
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4"})

    # -- websockets ---------------------------------------------------------------------------

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if len(self._clients) >= self.settings.max_clients and not self._make_room():
            self.metrics.count("turned_away")
            return web.Response(status=503, text="too many clients\n")
        ws = web.WebSocketResponse(
            max_msg_size=self._most,
            compress=False,
            timeout=1.0,
            receive_timeout=self.settings.idle or None,
        )
        client = Client(ws, request.path == REALTIME, self.served, request.transport)
        self._clients[client] = None
        writer = None
        try:
            await ws.prepare(request)
            self.metrics.count("connections")
            keep_alive(request)
            await ws.send_bytes(pack(client.met.metadata))
            writer = asyncio.create_task(self._write(client))
            await self._read(client)
        except asyncio.TimeoutError:  # idle
            await ws.close(code=WSCloseCode.GOING_AWAY, message=b"idle")
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # it has gone
        finally:
            self._clients.pop(client, None)
            self.served.backend.withdraw(client)
            if writer is not None:
                writer.cancel()
        return ws if ws.prepared else web.Response(status=400)  # it left before it was let in

    def _make_room(self) -> bool:
        """Drops the oldest client that has not asked for anything yet; False if all have."""
        idle = next((client for client in self._clients if not client.asked), None)
        if idle is None:
            return False
        self.metrics.count("turned_away")
        del self._clients[idle]
        idle.leave()
        return True

    async def _read(self, client: Client) -> None:
        """Reads until the socket closes; each message becomes a pending reply."""
        pause = 1 / self.settings.max_rate
        while True:
            begun = time.monotonic()
            message = await client.socket.receive()
            if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
                return
            if client.full:
                text = b"wait for each answer"
                await client.socket.close(code=WSCloseCode.POLICY_VIOLATION, message=text)
                return
            client.replies.put_nowait(await self._handle(client, message))
            if (early := pause - (time.monotonic() - begun)) > 0:
                await asyncio.sleep(early)

    async def _write(self, client: Client) -> None:
        """Sends the replies in order; drops a client that does not read them."""
        socket = client.socket
        while (reply := await client.replies.get()) is not None:
            try:
                await _send(socket, await reply)
            except (asyncio.TimeoutError, ConnectionError):
                with contextlib.suppress(ConnectionError):
                    await socket.close(code=WSCloseCode.GOING_AWAY)
                return
        await socket.close(code=WSCloseCode.SERVICE_RESTART, message=CHANGED.encode())

    async def _handle(self, client: Client, message: Any) -> Awaitable[Frame]:
        begun = time.monotonic()
        try:
            if message.type is WSMsgType.TEXT:
                raise WireError("a text frame came", "send binary messages")
            needs = self._served_to(client).contract.needs
            asked = await asyncio.to_thread(_read, self._read_request, message.data, needs)
            if asked is not None:
                served = self._served_to(client)
                future = served.backend.submit(client, asked)
        except ObservationError as error:
            self.metrics.count("refused")
            return _done(client.error(_line(error)))
        if asked is None:
            self.metrics.count("resets")
            status = "reset successful"
            return _done(pack({"status": status}) if client.realtime else status)
        client.asked = True
        answer = asyncio.wrap_future(future)
        return asyncio.ensure_future(self._reply(client, served, answer, begun))

    def _served_to(self, client: Client) -> Served:
        """The model at present, if it is the one that the client was told of."""
        if not self.served.same_to_clients(client.met):
            raise ReplacedError(CHANGED, "connect again")
        return self.served

    def _read_request(self, data: bytes, needs: Needs) -> Observation | None:
        """What is asked; None: a reset. Sessions have no state here: each answer is for its
        observation alone."""
        message = unpack_map(data, self._most)
        endpoint = message.pop("endpoint", "infer")
        message.pop("session_id", None)
        if endpoint == "reset":
            return None
        if endpoint != "infer":
            raise WireError(f"there is no endpoint {endpoint!r:.40}", "use infer or reset")
        return self._map.read(message, needs, self.settings.instruction)

    async def _reply(
        self, client: Client, served: Served, answer: asyncio.Future[Answer], begun: float
    ) -> Frame:
        try:
            found = await answer
            reply = pack(_write_reply(client, found, served.convert(found.chunk.actions)))
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

    # -- REST ---------------------------------------------------------------------------------

    async def _tell_model(self, request: web.Request) -> web.Response:
        served = self.served
        return web.json_response({"model": served.name, "metadata": served.metadata})

    async def _change_model(self, request: web.Request) -> web.Response:
        begun = time.monotonic()
        try:
            name, action_space = await self._read_body(request, read_change)
            if self._changing:
                return web.json_response({"error": "another model is being loaded"}, status=409)
            self._changing = True
            try:
                told = await self.change(name, action_space)
            finally:
                self._changing = False
        except VlaError as error:
            return web.json_response({"error": _line(error)}, status=400)
        except asyncio.TimeoutError:
            return _slow()
        except ConnectionError:  # it has gone
            return web.Response(status=400)
        except Exception:  # a fault of the new model's must not end the old one
            log.exception("the model stays as it is")
            return web.json_response({"error": FAILED}, status=500)
        reply = {"model": self.served.name, "changes": told, "seconds": time.monotonic() - begun}
        return web.json_response(reply)

    async def _act(self, request: web.Request) -> web.Response:
        if len(self._posting) >= self.settings.max_clients:
            self.metrics.count("turned_away")
            return web.json_response({"error": "too many clients"}, status=503)
        client = next(self._numbers)
        self._posting.add(client)
        backend = self.served.backend
        try:
            needs, usual = backend.offer.contract.needs, self.settings.instruction
            asked = await self._read_body(request, read_act, needs, usual)
            if asked.space is not None and asked.space not in backend.offer.spaces:
                raise ObservationError("there is no such unnorm_key", "leave it out")
            future = backend.submit(client, asked.observation, asked.space)
            found = await asyncio.wrap_future(future)
        except ObservationError as error:
            self.metrics.count("refused")
            return web.json_response({"error": _line(error)}, status=400)
        except asyncio.TimeoutError:
            return _slow()
        except PolicyFailure:
            return web.json_response({"error": FAILED}, status=500)
        except ConnectionError:  # it has gone
            return web.Response(status=400)
        finally:
            self._posting.discard(client)
            backend.withdraw(client)
        self.metrics.count("answers")
        return web.json_response(text=write_act(found.chunk, asked))

    async def _read_body(self, request: web.Request, read: Callable[..., T], *arguments: Any) -> T:
        body = await asyncio.wait_for(request.read(), REQUEST_SECONDS)
        return await asyncio.to_thread(_read, read, body, *arguments)


async def _send(socket: web.WebSocketResponse, frame: Frame) -> None:
    """Raises TimeoutError if the client does not take it in time.

    `asyncio.wait_for` forgets that it was cancelled where the frame is sent at that moment (Python
    3.10, 3.11): a writer without a client would wait on for replies.
    """
    sent = socket.send_str(frame) if isinstance(frame, str) else socket.send_bytes(frame)
    sending = asyncio.ensure_future(sent)
    try:
        done, _ = await asyncio.wait([sending], timeout=SEND_SECONDS)
        if not done:
            raise asyncio.TimeoutError
        sending.result()
    finally:
        sending.cancel()


def _slow() -> web.Response:
    return web.json_response({"error": "the request came too slowly"}, status=408)


def _write_reply(client: Client, found: Answer, actions: np.ndarray) -> dict[str, Any]:
    """The map that is sent."""
    reply: dict[str, Any] = {"actions": actions}
    if not client.realtime:
        timing = {"infer_ms": 1e3 * found.took, "wait_ms": 1e3 * found.waited}
        if client.total is not None:
            timing["prev_total_ms"] = 1e3 * client.total
        reply["policy_timing"] = {k: float(v) for k, v in found.chunk.timing.items()}
        reply["policy_timing"]["infer_ms"] = timing["infer_ms"]
        reply["server_timing"] = timing
    return reply


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
