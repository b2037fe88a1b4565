"""The studio's server: sockets in its own thread, values from the node's."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from vla_inference.errors import VlaError
from vla_inference.serving.connections import Sweeper, is_own_fault, keep_alive, listen
from vla_inference.serving.network import tls_context
from vla_inference.teleop.wish import CLOSE, OPEN, TOGGLE
from vla_studio.presets import load_preset
from vla_studio.settings import StudioSettings
from vla_studio.speech.dialogue import Dialogue
from vla_studio.speech.recogniser import open_recogniser, wanted
from vla_studio.web.access import OPERATOR, ROLES, Access, is_local_name, is_own_page
from vla_studio.web.cameras import Camera
from vla_studio.web.files import HEADERS, Files
from vla_studio.web.graph import Graph
from vla_studio.web.library import Library
from vla_studio.web.operation import Operation
from vla_studio.web.page import EVENTS, Frame, Page, as_text
from vla_studio.web.requests import SERVICES, Request
from vla_studio.web.trials import Trials
from vla_studio.web.verdicts import keep_verdict

log = logging.getLogger(__name__)
http_log = logging.getLogger(f"{__name__}.http")  # aiohttp's
LARGEST = 16 << 10  # bytes of a message
LOOK = 1.0  # s between looks for services
SPEEDS = 0.01, 1.0  # of the command node's `speed`
# What lies on this machine; the operator alone may change it, or have a model answer.
LOOK_UPS = ("reports", "datasets", "episode", "doctor")
EDITS = ("compare", "delete", "restore", "tag")


class StudioServer:
    """Example::

    server = StudioServer(settings, graph)
    asyncio.run(server.run(lambda port: print(server.url(port))))
    """

    def __init__(self, settings: StudioSettings, graph: Graph):
        settings.check()
        self.settings, self.graph = settings, graph
        self.access = Access(settings.token(), time.monotonic)
        self._tls = tls_context(settings.tls_cert, settings.tls_key)
        self._files, self._sweeper = Files(), Sweeper()
        self._preset = load_preset(settings.preset)
        self._library = Library(settings.results, settings.data, settings.models)
        self._trials = Trials(self._ask, lambda: self.happened("all trials are over"))
        self._pages: set[Page] = set()
        self._values: dict[str, Any] = {}
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS // 2)
        self._numbers = itertools.count(1)
        self._cameras = {
            name: Camera(name, settings.quality, settings.max_image_rate, self._send)
            for name in self._preset.cameras or settings.cameras
        }
        self.operation = Operation(graph, settings.hold_timeout, self.happened, self._changed)
        load = partial(open_recogniser, settings.speech) if wanted(settings.speech) else None
        self._dialogue = Dialogue(load, settings.countdown, self)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    @property
    def cameras(self) -> tuple[str, ...]:
        """Topics of the images to show."""
        return tuple(self._cameras)

    # -- from any thread ----------------------------------------------------------------------

    def tell(self, name: str, value: Any) -> None:
        """A new value for all pages, plain data."""
        self._soon(self._tell, name, value)

    def sample(self, name: str, value: Any) -> None:
        """One of a series: none replaces another."""
        if self._pages:
            self._soon(self._sample, name, value)

    def show(self, camera: str, message: Any) -> None:
        """A camera's message."""
        self._soon(lambda: self._cameras[camera].show(message, bool(self._pages)))

    def stop(self) -> None:
        if self._stop is not None:
            self._soon(self._stop.set)

    def _soon(self, work: Callable[..., Any], *arguments: Any) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(work, *arguments)

    # -- from start to end --------------------------------------------------------------------

    async def run(self, ready: Callable[[int], None] = lambda port: None) -> None:
        """Serves until `stop`. ready: called with the port when it listens."""
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        http_log.addFilter(is_own_fault)
        app = web.Application(client_max_size=LARGEST, middlewares=[self._admit])
        app.router.add_get("/socket", self._socket)
        app.router.add_get("/enter", self._enter)
        app.router.add_post("/link", self._link)
        app.router.add_get("/results/{path:.*}", self._report)
        app.router.add_get("/{path:.*}", self._file)
        app.on_shutdown.append(self._close_pages)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, logger=http_log)
        await runner.setup()
        work = [self._sweeper.run(runner), self.operation.watch(), self._look()]
        work.append(self._library.watch())
        tasks = [asyncio.create_task(one) for one in work]
        try:
            ready(await listen(runner, self.settings.host, self.settings.port, self._tls))
            await self._stop.wait()
        finally:
            for task in tasks:
                task.cancel()
            self._dialogue.close()
            await runner.cleanup()
            await asyncio.gather(*tasks, return_exceptions=True)

    def url(self, port: int) -> str:
        """Where the page is; with a one-time link's code where one has to log in."""
        host = self.settings.host
        host = socket.gethostname() if host in ("0.0.0.0", "::") else host
        host = f"[{host}]" if ":" in host else host
        path = "/" if self.access.open else f"/enter?code={self.access.make_link(OPERATOR)}"
        return f"{self._scheme}://{host}:{port}{path}"

    @property
    def _scheme(self) -> str:
        return "https" if self._tls else "http"

    async def _close_pages(self, app: web.Application) -> None:
        closing = [page.socket.close(code=WSCloseCode.GOING_AWAY) for page in self._pages]
        if closing:
            await asyncio.wait([asyncio.ensure_future(c) for c in closing], timeout=0.5)

    async def _look(self) -> None:
        while True:
            services = self.graph.available()
            if services.get("enable") and not self._values.get("services", {}).get("enable"):
                self.operation.start(self._learn_speed())
            self._tell("services", services)
            await asyncio.sleep(LOOK)

    async def _learn_speed(self) -> None:
        with contextlib.suppress(VlaError):  # without an answer the page offers no speed
            self._tell("speed", await self.graph.speed())

    # -- who may come in ----------------------------------------------------------------------

    @web.middleware
    async def _admit(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self._sweeper.knows(request)
        reason, status = self._refusal(request)
        if reason:
            log.warning(
                "refused %s %.80r from %s: %s",
                request.method,
                request.path,
                request.remote,
                reason,
            )
            response: web.StreamResponse = web.Response(status=status, text=reason + "\n")
        else:
            try:
                response = await handler(request)
            except web.HTTPException as error:
                response = web.Response(status=error.status, text=error.reason + "\n")
        if not response.prepared:
            for header, value in HEADERS.items():
                response.headers.setdefault(header, value)
        return response

    def _refusal(self, request: web.Request) -> tuple[str, int]:
        """Why a request is not let in; empty: it is."""
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        if self.access.open and not is_local_name(host):  # another site's name for this machine
            return "not by this name", 403
        if origin is not None and not is_own_page(origin, host, self._scheme):
            return "not from another site's page", 403
        if request.path == "/socket" and origin is None:
            return "only from the page", 403
        if request.path not in ("/enter", "/link") and self._role(request) is None:
            return "ask an operator for a link", 401
        return "", 200

    def _role(self, request: web.Request) -> str | None:
        return self.access.role_of(request.cookies.get("studio", ""))

    async def _enter(self, request: web.Request) -> web.Response:
        cookie = self.access.enter(request.query.get("code", ""))
        if cookie is None:
            log.warning("refused a link from %s", request.remote)
            return web.Response(status=401, text="this link is used up; ask for another\n")
        response = web.Response(status=303, headers={"Location": "/"})
        response.set_cookie(
            "studio", cookie, httponly=True, samesite="Lax", secure=self._tls is not None
        )
        return response

    async def _link(self, request: web.Request) -> web.Response:
        """A new one-time link for a caller that knows the token."""
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not self.access.is_token(given):
            log.warning("refused a token from %s", request.remote)
            return web.Response(status=401, text="the token is wrong or missing\n")
        return web.Response(text=self._new_link(request, request.query.get("role", "")) + "\n")

    def _new_link(self, request: web.Request, role: str) -> str:
        role = role if role in ROLES else ROLES[0]
        return f"{self._scheme}://{request.host}/enter?code={self.access.make_link(role)}"

    async def _file(self, request: web.Request) -> web.Response:
        return self._files.answer(request)

    async def _report(self, request: web.Request) -> web.StreamResponse:
        return self._library.answer(request)

    # -- pages --------------------------------------------------------------------------------

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if len(self._pages) >= self.settings.max_clients:
            return web.Response(status=503, text="too many pages are open\n")
        ws = web.WebSocketResponse(max_msg_size=LARGEST, timeout=1.0, heartbeat=10.0)
        name = f"page {next(self._numbers)} ({request.remote})"
        page = Page(ws, name, self._role(request) or "")
        self._pages.add(page)
        writer = None
        try:
            await ws.prepare(request)
            keep_alive(request)
            self._greet(page)
            writer = asyncio.create_task(self._write(page))
            await self._read(page, request)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # it has gone
        finally:
            self._pages.discard(page)
            self.operation.leave(page)
            if writer is not None:
                writer.cancel()
        return ws

    def _greet(self, page: Page) -> None:
        settings = self.settings
        page.happened(
            "hello",
            {
                "name": page.name,
                "role": page.role,
                "cameras": list(self._cameras),
                "title": self._preset.title,
                "starts": self._preset.starts,
                "presets": [*settings.presets, *self._preset.instructions],
                "auto_prompt": [asdict(each) for each in self._preset.auto_prompt],
                **self._library.parts(),
                "log_in": not self.access.open,
                "verdicts": bool(settings.verdicts),
            },
        )
        latest = {"operation": self.operation.state(), "speech": self._dialogue.state}
        for name, value in {**self._values, **latest}.items():
            page.tell(name, as_text(name, value))
        for event in self._events:
            page.happened("event", {**event, "old": True})
        for camera in self._cameras.values():
            camera.again()

    async def _write(self, page: Page) -> None:
        try:
            await page.write()
        except (asyncio.TimeoutError, ConnectionError):
            with contextlib.suppress(ConnectionError):
                await page.socket.close(code=WSCloseCode.GOING_AWAY)

    async def _read(self, page: Page, request: web.Request) -> None:
        """Reads until the socket closes, or sends more than it may."""
        rate = self.settings.max_rate
        credit, last = rate, time.monotonic()
        async for message in page.socket:
            now = time.monotonic()
            credit, last = min(credit + rate * (now - last), rate) - 1, now
            speaks = message.type is WSMsgType.BINARY and page.speaks
            if not (speaks or message.type is WSMsgType.TEXT) or credit < 0:
                text = b"too many messages" if credit < 0 else b"send text"
                log.warning("closed %s: %s", page.name, text.decode())
                await page.socket.close(code=WSCloseCode.POLICY_VIOLATION, message=text)
                return
            if speaks:
                self._listen(page, message.data)
            else:
                self._handle(page, message.data, request)

    # -- what pages ask for -------------------------------------------------------------------

    def _handle(self, page: Page, text: str, request: web.Request) -> None:
        number = 0
        try:
            asked = Request.read(text)
            number = asked.number
            if asked.name == "invite":
                self._operates(page)
                self._answer(page, number, {"link": self._new_link(request, asked.text("role"))})
            elif asked.name == "speed":
                self.operation.seat.check(page)
                self.operation.start(self._set_speed(page, asked))
            elif asked.name in SERVICES:
                self.operation.start(self._call(page, asked))
            elif asked.name in LOOK_UPS or asked.name in EDITS:
                self.operation.start(self._look_up(page, asked))
            elif not self._direct(page, asked):
                raise VlaError(f"there is no request {asked.name!r:.40}", "reload the page")
        except VlaError as error:
            self._answer(page, number, {}, str(error))

    def _direct(self, page: Page, asked: Request) -> bool:
        """Does what needs no service's answer; False: there is no such request."""
        operation = self.operation
        if asked.name == "hold":
            operation.held(page, asked.whole("press", 1, 2**31))
        elif asked.name == "move":
            self._move(page, asked)
        elif asked.name == "release":
            operation.released(page)
        elif asked.name == "drawn":
            page.drawn(asked.text("camera", 200))
        elif asked.name == "stop":
            self.stop_by(page)
        elif asked.name == "talk":
            self._talk(page, asked)
        elif asked.name == "unsay":
            self._dialogue.cancel()
        elif asked.name == "take":
            self._operates(page)
            operation.take(page)
        elif asked.name == "leave":
            operation.leave(page)
        elif asked.name == "hand_over":
            operation.hand_over(page, asked.flag("agreed"))
        elif asked.name == "verdict":
            operation.seat.check(page)
            self._judge(page, asked)
        elif asked.name == "trials":
            operation.seat.check(page)
            self._start_trials(page, asked)
        elif asked.name == "end_trials":
            operation.seat.check(page)
            self._trials.stop()
            self._tell_trials()
        else:
            return False
        return True

    def _move(self, page: Page, asked: Request) -> None:
        x, y, z, rx, ry, rz = asked.reals("shares", 6, -1, 1)
        acts = tuple(act for act in asked.texts("acts", 8) if act in (OPEN, CLOSE, TOGGLE))
        self.operation.moved(page, (x, y, z, rx, ry, rz), acts)

    def _operates(self, page: Page) -> None:
        if page.role != OPERATOR:
            raise VlaError("this page's link is for watching", "ask for an operator's link")

    async def _call(self, page: Page, asked: Request) -> None:
        service = SERVICES[asked.name]
        try:
            if service.seat:
                self.operation.seat.check(page)
            fields = service.fields(asked)
            if asked.name == "instruct":  # people have the last word
                self._dialogue.cancel()
                self._trials.stop()
                self._tell_trials()
            answer = await self.graph.call(asked.name, **fields)
            if service.told:
                self.happened(f"{page.name}: {service.told.format(**fields)}")
            self._answer(page, asked.number, answer)
        except VlaError as error:
            self._answer(page, asked.number, {}, str(error))

    async def _set_speed(self, page: Page, asked: Request) -> None:
        try:
            speed = asked.real("speed", *SPEEDS)
            await self.graph.set_speed(speed)
            self.happened(f"{page.name}: speed {100 * speed:.0f} %")
            self._answer(page, asked.number, {})
        except VlaError as error:
            self._answer(page, asked.number, {}, str(error))
        await self._learn_speed()

    async def _look_up(self, page: Page, asked: Request) -> None:
        """What lies on this machine: looks at it, or changes it for the operator."""
        try:
            if asked.name in EDITS:
                self.operation.seat.check(page)
            self._answer(page, asked.number, await self._found(page, asked))
        except VlaError as error:
            self._answer(page, asked.number, {}, str(error))

    async def _found(self, page: Page, asked: Request) -> dict[str, Any]:
        library, name = self._library, asked.name
        if name == "reports":
            return {"reports": await asyncio.to_thread(library.reports)}
        if name == "datasets":
            return await asyncio.to_thread(library.datasets)
        if name == "doctor":
            return await library.doctor()
        dataset = asked.text("dataset")
        if name == "restore":
            found = await library.restore(dataset)
            self.happened(f"{page.name}: restored {found['name']} of {dataset}")
            return found
        index = asked.whole("index", 0, 2**31)
        if name == "episode":
            return await library.episode(dataset, index)
        if name == "compare":

            def progress(done: int, of: int) -> None:
                page.tell("compared", as_text("compared", {"done": done, "of": of}))

            return await library.compare(dataset, index, asked.text("model"), progress)
        if name == "delete":
            found = await library.delete(dataset, index, asked.text("named", 100))
            self.happened(f"{page.name}: deleted {found['name']} of {dataset}")
            return found
        return await library.tag(dataset, index, asked.text("named", 100), asked.text("tags", 900))

    def _start_trials(self, page: Page, asked: Request) -> None:
        instructions, wanted = asked.texts("instructions", 100), asked.whole("trials", 1, 10_000)
        self._trials.start(instructions, wanted)
        self.happened(f"{page.name}: {wanted} trials")
        self._tell_trials()
        self._answer(page, asked.number, {})

    def _tell_trials(self) -> None:
        self._tell("trials", self._trials.state())

    def _ask(self, instruction: str) -> None:
        """The next trial's instruction."""
        self.operation.start(self._instruct(instruction))

    async def _instruct(self, instruction: str) -> None:
        try:
            await self.graph.call("instruct", instruction=instruction)
            self.happened(f"instruction: {instruction}")
        except VlaError as error:
            self._trials.stop()
            self._tell_trials()
            self.happened(f"the trials have ended: {error}")

    def _judge(self, page: Page, asked: Request) -> None:
        """Keeps a verdict of the current episode."""
        verdict, note = asked.text("verdict", 20), asked.text("note", 500, "")
        entry = {"by": page.name, "instruction": self._values.get("instruction", "")}
        episode = (self._values.get("sim") or {}).get("episode") or {}
        if estimate := self._values.get("estimate"):  # what was suggested, for who compares
            entry |= {name: estimate[name] for name in ("suggested", "progress", "done")}
        keep_verdict(self.settings.verdicts, verdict, note, episode, entry)
        self.happened(f"{page.name}: verdict {verdict}")
        self._trials.verdict(verdict, entry["instruction"])
        self._tell_trials()
        self._answer(page, asked.number, {})

    # -- speech: what a `Dialogue` can do ------------------------------------------------------

    def _talk(self, page: Page, asked: Request) -> None:
        if asked.flag("on"):
            self.operation.seat.check(page)
            self._dialogue.talk(page, asked.whole("rate", 1, 10**6))
            page.speaks = True
        elif self.operation.seat.holder is page:
            self._dialogue.release()

    def _listen(self, page: Page, frame: bytes) -> None:
        try:
            self._dialogue.audio(page, frame)
        except VlaError as error:
            self._answer(page, 0, {}, str(error))

    def known(self) -> Sequence[str]:
        prompts = [text for each in self._preset.auto_prompt for text in each.instructions]
        offered = [*self.settings.presets, *self._preset.instructions, *prompts]
        return list(filter(None, dict.fromkeys([*offered, self._values.get("instruction", "")])))

    def said(self, page: Page, text: str) -> None:
        self.happened(f"{page.name} said: {text}")
        self.graph.said(text)

    def stop_by(self, page: Page) -> None:
        """Anybody may stop, in whatever way."""
        self._dialogue.cancel()
        self.operation.stop(page)

    async def instruct(self, page: Page, sentence: str) -> str:
        self.operation.seat.check(page)
        if self._trials.wanted:
            raise VlaError("trials are under way", "end them first")
        answer = await self.graph.call("instruct", instruction=sentence)
        self.happened(f"{page.name}: instruction: {sentence}")
        return answer.get("message", "")

    def speech_changed(self, state: dict[str, Any]) -> None:
        self._tell_all("speech", state)

    def _answer(self, page: Page, number: int, data: dict[str, Any], error: str = "") -> None:
        page.happened("answer", {"id": number, "error": error, **data})

    # -- what pages are told ------------------------------------------------------------------

    def happened(self, text: str) -> None:
        """A line for the event log."""
        log.info("%s", text)
        event = {"time": time.time(), "text": text}
        self._events.append(event)
        self._broadcast("event", event)

    def _tell(self, name: str, value: Any) -> None:
        if name == "command":
            self.operation.command_state(value["state"], self._episode_over())
        elif name == "source":
            self.operation.commands(value)
            self.happened(f"commands the robot: {value}")
        if self._values.get(name) == value:
            return
        if name == "estimate" and value:
            known = self._values.get("instruction", value["instruction"])
            if value["instruction"] != known:
                return  # it is of another task
        before, self._values[name] = self._values.get(name), value
        if name == "sim":
            old, new = (before or {}).get("episode"), value["episode"]
            if old and any(old.get(key) != new.get(key) for key in ("seed", "index")):
                self._tell("estimate", None)  # it is of the episode before
            self._trials.episode(value["episode"], self._values.get("instruction", ""))
            self._tell_trials()
        elif name == "instruction":
            self._trials.heard(value)
            self._tell("estimate", None)
            if (self._values.get("reasoning") or {}).get("instruction", value) != value:
                self._tell("reasoning", None)
        self._tell_all(name, value)

    def _episode_over(self) -> bool:
        """Whether a simulation has ended its episode, or has begun the next one just now."""
        episode = (self._values.get("sim") or {}).get("episode") or {}
        return bool(episode.get("done") or (episode and not episode.get("step")))

    def _tell_all(self, name: str, value: Any) -> None:
        if self._pages:
            text = as_text(name, value)
            for page in self._pages:
                page.tell(name, text)

    def _sample(self, name: str, value: Any) -> None:
        text = as_text(name, value)
        for page in self._pages:
            page.sample(text)

    def _broadcast(self, name: str, value: Any) -> None:
        for page in self._pages:
            page.happened(name, value)

    def _changed(self) -> None:
        self._dialogue.keep_to(self.operation.seat.holder)
        self._tell_all("operation", self.operation.state())

    def _send(self, frame: Frame) -> None:
        for page in self._pages:
            page.show(frame)
