"""A model server in a thread, test policies, and a client that sends arbitrary bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence

import aiohttp
import numpy as np

from vla_inference.errors import ObservationError
from vla_inference.policies.base import Needs, Policy
from vla_inference.serving.openpi.background import BackgroundServer
from vla_inference.serving.openpi.server import Server
from vla_inference.serving.openpi.settings import ServeSettings
from vla_inference.serving.openpi.wire import pack, unpack
from vla_inference.types import ActionChunk, Observation, check_instruction, eef_delta_spec

SPEC = eef_delta_spec()
IMAGE = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)


class StubPolicy(Policy):
    """Answers with the images' mean and the number of its call.

    "wait N" in the instruction takes N seconds, "nan" and "crash" do what they say.
    """

    name, placement = "stub", "cpu by NumPy"

    def __init__(self, needs: Needs = Needs(), chunk: int = 5, spec=SPEC):
        self.needs, self.chunk, self.spec = needs, chunk, spec
        self.calls = 0
        self.batches: list[list[str]] = []

    def action_spec(self):
        return self.spec

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        texts = [check_instruction(o.instruction) for o in observations]
        self.batches.append(texts)
        self.calls += 1
        for text in texts:
            if text.startswith("wait "):
                time.sleep(float(text.split()[1]))
        if "crash" in texts:
            raise RuntimeError("secret/path/of/the/model")
        if "refuse" in texts:
            raise ObservationError("the instruction is refused", "say another")
        return [self._chunk(o) for o in observations]

    def _chunk(self, observation: Observation) -> ActionChunk:
        actions = np.zeros((self.chunk, len(self.spec)), np.float32)
        actions[:, 0] = np.mean([image.mean() for image in observation.images.values()])
        actions[:, 1] = self.calls
        if observation.state is not None:
            actions[:, 2] = observation.state.sum()
        if observation.instruction == "nan":
            actions[0, 0] = np.nan
        return ActionChunk(actions, self.spec, timing={"total": 1.0})


class Running:
    """A server that listens. url, http: its addresses."""

    def __init__(self, load: Callable[[], Policy], **settings):
        self.server = Server(load, ServeSettings(**{"port": 0, **settings}))
        self.policy = self.server.load()
        self._background = BackgroundServer(self.server)
        self.port = self._background.start()
        self.url, self.http = f"ws://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.port}"

    def stop(self) -> float:
        """Seconds that it took."""
        begun = time.monotonic()
        self._background.stop(30)
        return time.monotonic() - begun


@contextlib.contextmanager
def running(policy: Policy | Callable[[], Policy] | None = None, **settings) -> Iterator[Running]:
    policy = policy or StubPolicy()
    load = policy if not isinstance(policy, StubPolicy) else lambda: policy
    found = Running(load, **settings)
    try:
        yield found
    finally:
        found.stop()


@contextlib.contextmanager
def serving(model, *options, port: int = 0) -> Iterator[tuple[subprocess.Popen, str]]:
    """`vla serve` as a process of its own, on the CPU: the process and its address."""
    command = [sys.executable, "-m", "vla_inference.cli.main", "serve", str(model)]
    command += ["--port", str(port), "--device", "cpu", *map(str, options)]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        line = process.stdout.readline()
        assert line.startswith("serving "), f"the server ended with {process.wait(10)}"
        yield process, line.split()[3]
    finally:
        process.kill()
        process.communicate()


@contextlib.asynccontextmanager
async def connected(url: str, **headers: str):
    """A websocket whose metadata has been read, with `say` and `hear`."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, headers=headers, max_msg_size=0) as ws,
    ):
        metadata = unpack((await ws.receive(10)).data)
        yield Raw(ws, metadata)


class Raw:
    def __init__(self, ws, metadata):
        self.ws, self.metadata = ws, metadata
        self.close_code: int | None = None  # that the server gave

    async def say(self, value) -> None:
        await self.ws.send_bytes(value if isinstance(value, bytes) else pack(value))

    async def hear(self, timeout: float = 10.0):
        """What a reply holds: text of a text frame, else what is unpacked; None: closed."""
        message = await self.ws.receive(timeout)
        if message.type is aiohttp.WSMsgType.CLOSE:
            self.close_code = message.data
        if message.type is aiohttp.WSMsgType.TEXT:
            return message.data
        return unpack(message.data) if message.type is aiohttp.WSMsgType.BINARY else None

    async def ask(self, value):
        await self.say(value)
        return await self.hear()


def seen(prompt: str = "go", **more):
    """An observation that the stub takes, as openpi's LIBERO client sends it."""
    return {"observation/image": IMAGE, "prompt": prompt, **more}


def talk(coroutine, *arguments):
    """The result of a coroutine function in an event loop of its own."""
    return asyncio.run(asyncio.wait_for(coroutine(*arguments), 60))


def post(http: str, payload) -> tuple[int, object]:
    """Status and reply of a request to /act of the server at this address."""
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    request = urllib.request.Request(http + "/act", body)
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
