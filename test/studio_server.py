"""A studio's server over a stand-in for the ROS graph, and clients of its websocket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp

from vla_inference.errors import VlaError
from vla_inference.teleop.wish import Wish
from vla_studio.settings import StudioSettings
from vla_studio.web.server import StudioServer


class StubGraph:
    """A command node that agrees once it hears heartbeats; `calls` keeps all that was asked."""

    def __init__(self, timeout: float = 0.25):
        self.timeout, self.calls, self.beats, self.enabled = timeout, [], 0, False
        self.speed_set = 1.0
        self.spoken: list[str] = []
        self.driven: list[Wish | None] = []  # None: a halt
        self.tell: Callable[[str, Any], None] = lambda name, value: None

    async def call(self, name: str, **fields: Any) -> dict[str, Any]:
        self.calls.append((name, fields))
        if name == "enable":
            if fields["data"] and not self.beats:
                raise VlaError("there is no heartbeat")
            self.enabled = fields["data"]
            self.tell("command", {"state": "enabled" if self.enabled else "disabled"})
        elif name == "take_over":
            self.tell("source", "human" if fields["data"] else "model")
        return {"message": ""}

    async def heartbeat_timeout(self) -> float:
        return self.timeout

    async def speed(self) -> dict[str, float | None]:
        return {"speed": self.speed_set, "scale": 0.5}

    async def set_speed(self, speed: float) -> None:
        if self.enabled:
            raise VlaError("the robot is enabled")
        self.speed_set = speed

    def heartbeat(self) -> None:
        self.beats += 1

    def drive(self, wish: Wish) -> None:
        self.driven.append(wish)

    def halt(self) -> None:
        if self.driven and self.driven[-1] is not None:
            self.driven.append(None)

    def said(self, text: str) -> None:
        self.spoken.append(text)

    def available(self) -> dict[str, bool]:
        return {"enable": True, "take_over": True}


class Client:
    """A page's websocket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self.socket, self._count = socket, 0
        self.heard: list[tuple[str, Any]] = []

    async def tell(self, name: str, **given: Any) -> None:
        await self.socket.send_str(json.dumps({"do": name, **given}))

    async def until(self, kind: str, fits: Callable[[Any], bool] = lambda data: True) -> Any:
        """The newest value of this type once it fits, or the first event or answer that does."""
        known = [data for name, data in self.heard if name == kind]
        for data in known if kind in ("answer", "event") else known[-1:]:
            if fits(data):
                return data
        while True:
            message = await asyncio.wait_for(self.socket.receive(), 60)
            if message.type is aiohttp.WSMsgType.BINARY:  # an image
                continue
            assert message.type is aiohttp.WSMsgType.TEXT, message
            found = json.loads(message.data)
            several = found["data"] if found["type"] == "several" else [found]
            self.heard += [(one["type"], one["data"]) for one in several]
            for one in several:
                if one["type"] == kind and fits(one["data"]):
                    return one["data"]

    async def ask(self, name: str, **given: Any) -> dict[str, Any]:
        self._count += 1
        await self.tell(name, id=self._count, **given)
        return await self.until("answer", lambda data: data["id"] == self._count)

    async def operate(self) -> None:
        hello = await self.until("hello")
        await self.tell("take")
        await self.until("operation", lambda data: data["operator"] == hello["name"])


class Running:
    """A server that runs, and its address."""

    def __init__(self, server: StudioServer, port: int, session: aiohttp.ClientSession):
        self.server, self.port, self.session = server, port, session
        self.base = f"http://127.0.0.1:{port}"

    @contextlib.asynccontextmanager
    async def page(self, origin: str = "", cookie: str = "") -> AsyncIterator[Client]:
        headers = {"Origin": origin or self.base}
        if cookie:
            headers["Cookie"] = f"studio={cookie}"
        async with self.session.ws_connect(self.base + "/socket", headers=headers) as socket:
            yield Client(socket)


def with_studio(
    test: Callable[[Running, StubGraph], Awaitable[None]],
    graph: StubGraph | None = None,
    **settings: Any,
) -> None:
    """Runs a coroutine against a server on a free port of loopback."""

    async def go() -> None:
        found = graph or StubGraph()
        server = StudioServer(StudioSettings(port=0, **settings), found)
        found.tell = server.tell
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        running = asyncio.create_task(server.run(port.set_result))
        jar = aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(cookie_jar=jar) as session:
            try:
                await test(Running(server, await port, session), found)
            finally:
                server.stop()
                await asyncio.wait_for(running, 20)

    asyncio.run(go())


async def eventually(condition: Callable[[], object], seconds: float = 20) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < end, "waited in vain"
        await asyncio.sleep(0.01)
