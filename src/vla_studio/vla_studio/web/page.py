"""One open page: what it is still to be sent, newest values only."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

IN_FLIGHT = 2  # images of a camera that a page has not drawn yet
EVENTS = 200  # messages that none replaces and that wait; the oldest are dropped
PACE = 0.1  # s between two sendings of values and samples: each costs the browser work
SEND_SECONDS = 5.0  # until a page that does not read is given up


def as_text(name: str, value: Any) -> str:
    """What a page is sent, encoded once for all of them."""
    return json.dumps({"type": name, "data": value}, allow_nan=False)


@dataclass(frozen=True)
class Frame:
    """An image of a camera, encoded once for all pages.

    stamp: seconds of the ROS clock. received: seconds, monotonic. rate: images per second.
    number: counts the camera's images.
    """

    camera: str
    jpeg: bytes
    stamp: float
    received: float
    rate: float
    number: int

    def pack(self, dropped: int) -> bytes:
        """JSON on one line, then the JPEG. dropped: images that this page was not sent."""
        about = {
            "camera": self.camera,
            "stamp": self.stamp,
            "age_ms": 1e3 * (time.monotonic() - self.received),
            "rate": self.rate,
            "dropped": dropped,
        }
        return json.dumps(about).encode() + b"\n" + self.jpeg


@dataclass(eq=False)
class Page:
    """name: what people call it. role: viewer or operator. speaks: whether it may send audio."""

    socket: web.WebSocketResponse
    name: str
    role: str
    speaks: bool = False
    _events: deque[str] = field(default_factory=lambda: deque(maxlen=EVENTS))
    _samples: deque[str] = field(default_factory=lambda: deque(maxlen=EVENTS))
    _values: dict[str, str] = field(default_factory=dict)
    _frames: dict[str, Frame] = field(default_factory=dict)
    _undrawn: Counter[str] = field(default_factory=Counter)
    _first: dict[str, int] = field(default_factory=dict)  # number of the first image
    _shown: Counter[str] = field(default_factory=Counter)
    _told: float = -PACE  # when values and samples were sent last
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, name: str, text: str) -> None:
        """A value as `as_text` makes it; it replaces the one of this name that still waits."""
        self._values[name] = text
        self._wake.set()

    def sample(self, text: str) -> None:
        """One of a series, as `as_text` makes it."""
        self._samples.append(text)
        self._wake.set()

    def happened(self, name: str, value: Any) -> None:
        """What is sent at once, and in order."""
        self._events.append(as_text(name, value))
        self._wake.set()

    def show(self, frame: Frame) -> None:
        """A camera's newest image."""
        self._frames[frame.camera] = frame
        self._wake.set()

    def drawn(self, camera: str) -> None:
        """The page has drawn an image of this camera."""
        self._undrawn[camera] = max(self._undrawn[camera] - 1, 0)
        self._wake.set()

    async def write(self) -> None:
        """Sends what waits, until the socket closes; raises TimeoutError if it does not read."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._events:
                await self._send(self._events.popleft())
            for camera in [c for c in self._frames if self._undrawn[c] < IN_FLIGHT]:
                await self._send_frame(self._frames.pop(camera))
            if self._values or self._samples:
                await self._send_values()

    async def _send(self, text: str) -> None:
        await asyncio.wait_for(self.socket.send_str(text), SEND_SECONDS)

    async def _send_frame(self, frame: Frame) -> None:
        camera = frame.camera
        first = self._first.setdefault(camera, frame.number)
        dropped = max(frame.number - first - self._shown[camera], 0)
        self._shown[camera] += 1
        self._undrawn[camera] += 1
        await asyncio.wait_for(self.socket.send_bytes(frame.pack(dropped)), SEND_SECONDS)

    async def _send_values(self) -> None:
        """All of them as one message, or later if it is too soon."""
        now = time.monotonic()
        wait = self._told + PACE - now
        if wait > 0:
            asyncio.get_running_loop().call_later(wait, self._wake.set)
            return
        self._told = now
        texts = [*self._values.values(), *self._samples]
        self._values.clear()
        self._samples.clear()
        await self._send(f'{{"type": "several", "data": [{", ".join(texts)}]}}')
