#!/usr/bin/env python3
"""Hostile clients against `vla serve`: a good client is answered throughout, memory stays flat.

    python test/robustness/hostile_clients.py [--minutes 30] [--connections 10000] [--seed 0]

A server process with a small random model. All of `ATTACKS` run beside each other, round after
round, while a good client asks and compares each answer with the model's own. Every few seconds
the server's memory, threads and open files are sampled: the series are in the result.
`wrong` must be empty, else the exit status is 1: an answer of the good client that failed, was
late or differed; a new client that was not let in; a broken frame without a reply; growth of
memory; a payload that was executed; a server that ended.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import functools
import json
import os
import pickle
import random
import resource
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import aiohttp
import msgpack
import numpy as np
from common import add_output, keep
from hostile_frames import FRAMES, array
from model_server import connected, seen, serving
from resources import growth, sample

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.registry import load_policy
from vla_inference.serving.openpi.wire import pack
from vla_inference.types import Observation

MEGABYTES = 20.0  # growth of a server's memory
WARM_UP = 360.0  # seconds (at most half of a run) until buffers of large messages have settled
EVERY = 2.0  # seconds between samples
PERIOD = 0.1  # seconds between two requests of the good client
PATIENCE = 30.0  # seconds for an answer: attackers and server share the processors
KEY = "AAAAAAAAAAAAAAAAAAAAAA=="
UPGRADE = (
    "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
).encode()
BROKEN_HTTP = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,  # TLS
    b"GET / HTTP/9.9\r\n\r\n",
    b"\r\n" * 1000,
    b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n",
    b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\nx",
    b"POST /act HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\nx",
    b"POST /act HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0",
    UPGRADE.replace(KEY.encode(), b"!"),
    UPGRADE.replace(b": 13", b": 99"),
    b"\0" * 10_000,
)


@dataclass
class Target:
    """What is attacked. canary: a file that exists once a payload was executed."""

    port: int
    canary: Path
    random: random.Random
    connections: int
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def pickled(self) -> bytes:
        return pickle.dumps(_Execute(str(self.canary)))


class _Execute:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


# -- attacks: each is one round ---------------------------------------------------------------


async def broken_frames(target: Target) -> None:
    """Each broken frame gets its one line, and the socket goes on."""
    async with connected(target.url) as client:
        for name, frame in FRAMES.items():
            told = await client.ask(frame)
            if told is None:
                raise ConnectionResetError  # its place was given to another
            if not (isinstance(told, str) and told.startswith("bad request: ")):
                target.wrong.append(f"frame {name!r} was answered by {told!r:.60}")
            target.done["broken frames"] += 1


async def mutants(target: Target) -> None:
    """Right observations with bytes changed, left out, or repeated."""
    async with connected(target.url) as client:
        for _ in range(50):
            told = await client.ask(mutate(pack(seen()), target.random))
            if told is None:
                raise ConnectionResetError
            if not isinstance(told, (str, dict)):
                target.wrong.append(f"a changed observation was answered by {told!r:.60}")
                return
            target.done["changed observations"] += 1


async def code(target: Target) -> None:
    """Payloads that something careless would execute."""
    data = target.pickled()
    text = base64.b64encode(data).decode()
    async with connected(target.url) as client:
        for value in (
            array("|O", data=data),
            array("|V8", (len(data) // 8,), data[: len(data) // 8 * 8]),
            {"nd": True, "type": "O", "kind": b"O", "shape": [1], "data": data},
            {b"nd": True, b"type": b"|O", b"kind": b"O", b"shape": [1], b"data": data},
            {"__ndarray__": True, "data": data, "dtype": "O", "shape": []},
            msgpack.ExtType(42, data),
            data,
        ):
            told = await client.ask(msgpack.packb({"image": value, "prompt": "go"}))
            if told is None:
                raise ConnectionResetError
            if not isinstance(told, str):
                target.wrong.append(f"a payload was answered by {told!r:.60}")
            target.done["payloads"] += 1
        await client.ask(data)
    body = {"image": {"__numpy__": text, "dtype": "|O", "shape": [1]}, "instruction": "go"}
    async with aiohttp.ClientSession() as session:
        for value in (body, {"py/object": "os.system"}, {"encoded": json.dumps(body)}):
            async with session.post(f"http://127.0.0.1:{target.port}/act", json=value) as reply:
                if reply.status != 400:
                    target.wrong.append(f"a payload to /act was answered by {reply.status}")
            target.done["payloads"] += 1


async def huge_frames(target: Target) -> None:
    """Frames that promise up to 2^63 bytes, and one over the limit that is sent."""
    for size in (2**63 - 1, 2**40, 2**31, (64 << 20) + 1):
        async with upgraded(target) as (reader, writer):
            writer.write(struct.pack("!BBQI", 0x82, 0x80 | 127, size, 0) + b"\0" * 65_536)
            await ended(reader)
            target.done["huge frames"] += 1
    async with connected(target.url) as client:
        with contextlib.suppress(ConnectionError, aiohttp.ClientError):
            await client.ask(b"\0" * ((64 << 20) + 1))
        target.done["huge frames"] += 1
    await asyncio.sleep(10.0)  # memory of 64 MB a message: a few a minute


async def large_frames(target: Target) -> None:
    """Messages as large as may be: images that are too large, or many."""
    side = np.zeros((4000, 4000, 3), np.uint8)
    async with connected(target.url) as client:
        for value in (
            seen(**{"observation/image": side}),
            {f"i{k}": side[:300] for k in range(9)},
        ):
            await client.ask(value)
            target.done["large messages"] += 1
    await asyncio.sleep(5.0)


async def broken_websockets(target: Target) -> None:
    """Frames that are none: reserved bits, unknown kinds, endless pieces, no mask."""
    piece = struct.pack("!BBI", 0x02, 0x80 | 1, 0) + b"x"
    for data in (
        b"\xf2\x80\0\0\0\0",
        b"\x83\x80\0\0\0\0",
        b"\x82\x01x",
        b"\x89\xfe\x10\x00\0\0\0\0" + b"x" * 4096,  # a ping too long
        b"\x88\x81\0\0\0\0x",
        piece + piece.replace(b"\x02", b"\x00", 1) * 10_000,
        os.urandom(4096),
    ):
        async with upgraded(target) as (reader, writer):
            writer.write(data)
            await ended(reader, 1.0)
        target.done["broken websockets"] += 1


async def broken_http(target: Target) -> None:
    for data in BROKEN_HTTP:
        async with opened(target) as (reader, writer):
            writer.write(data)
            await ended(reader, 1.0)
        target.done["broken HTTP"] += 1


async def slow_loris(target: Target) -> None:
    """Requests, bodies and frames that come byte by byte, for as long as the server lets them."""
    body = b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    frame = struct.pack("!BBQI", 0x82, 0x80 | 127, 1 << 20, 0)
    begins = (b"", body, UPGRADE + frame)
    drips = (UPGRADE.replace(b"\r\n\r\n", b"\r\nX: " + b"y" * 60), b"x" * 60, b"x" * 60)
    await asyncio.gather(
        *(drip(target, *each) for each in zip(begins * 4, drips * 4, strict=True))
    )


async def drip(target: Target, begin: bytes, rest: bytes) -> None:
    async with opened(target) as (_, writer):
        writer.write(begin)
        for byte in rest:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(1.0)
    target.done["slow clients"] += 1


async def half_open(target: Target) -> None:
    """Clients that ask and never read, that close their side of the connection alone, and that
    go without a word."""
    asked = pack(seen())
    header = struct.pack("!BBHI", 0x82, 0x80 | 126, len(asked), 0)
    for i in range(8):
        async with upgraded(target) as (_, writer):
            for _ in range(target.random.randrange(1, 12)):
                writer.write(header + asked)
            if i % 2:
                writer.write_eof()
            await asyncio.sleep(target.random.random())
        target.done["clients that never read"] += 1


async def silent(target: Target) -> None:
    """Clients that are let in, say nothing more and answer no ping, as after a cable was cut."""

    async def one() -> None:
        async with upgraded(target) as (reader, _):
            await ended(reader, 90.0)
        target.done["silent clients"] += 1

    await asyncio.gather(*(one() for _ in range(32)), return_exceptions=True)


async def bombs(target: Target) -> None:
    """Little that unfolds to much: packed images, packed bodies, deep JSON."""
    async with connected(target.url) as client:
        large = await asyncio.to_thread(png, 10_000)
        for image in (large, large[:60], b"\xff\xd8" + frame_header(65_500)):
            told = await client.ask(seen(**{"observation/image": image}))
            if told is None:
                raise ConnectionResetError
            if not isinstance(told, str):
                target.wrong.append(f"a packed image was answered by {told!r:.60}")
            target.done["bombs"] += 1
    packed = await asyncio.to_thread(spaces, 256 << 20)
    deep = b'{"image": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    digits = b'{"image": ' + b"9" * 1_000_000 + b"}"
    async with aiohttp.ClientSession() as session:
        for body, encoding in ((packed, "deflate"), (deep, "identity"), (digits, "identity")):
            async with session.post(
                f"http://127.0.0.1:{target.port}/act",
                data=body,
                headers={"Content-Encoding": encoding},
            ) as reply:
                if not 400 <= reply.status < 500:
                    target.wrong.append(f"a packed body was answered by {reply.status}")
            target.done["bombs"] += 1
    await asyncio.sleep(2.0)


async def impatient(target: Target) -> None:
    """Clients that are gone before or while they are let in."""
    for _ in range(100):
        async with opened(target) as (_, writer):
            if target.random.random() < 0.5:
                writer.write(UPGRADE)
        target.done["connections"] += 1
    await asyncio.sleep(1.0)


async def crowd(target: Target) -> None:
    """Very many connections at once; half of them ask to be let in."""
    async with contextlib.AsyncExitStack() as stack:
        for i in range(target.connections):
            with contextlib.suppress(OSError):
                _, writer = await stack.enter_async_context(opened(target))
                target.done["connections"] += 1
                if i % 2:
                    writer.write(UPGRADE)
        await asyncio.sleep(5.0)
    await asyncio.sleep(60.0)


async def flood(target: Target) -> None:
    """More requests than it can answer, without waiting."""
    asked = pack(seen())
    for _ in range(10):
        with contextlib.suppress(ConnectionError, aiohttp.ClientError):
            async with connected(target.url) as client:
                for _ in range(100):
                    await client.say(asked)
                    target.done["requests without waiting"] += 1
        await asyncio.sleep(0.2)


ATTACKS: tuple[Callable[[Target], Awaitable[None]], ...] = (
    broken_frames,
    mutants,
    code,
    huge_frames,
    large_frames,
    broken_websockets,
    broken_http,
    bombs,
    slow_loris,
    half_open,
    silent,
    impatient,
    crowd,
    flood,
)
# What the server may do to these clients: close, refuse (503 while there are too many), be slow.
EXPECTED = (OSError, aiohttp.ClientError, asyncio.TimeoutError, asyncio.IncompleteReadError)


def mutate(message: bytes, rng: random.Random) -> bytes:
    changed = bytearray(message)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        # The structure is in the first bytes and the last: these most often.
        where = rng.choice((rng.randrange(64), rng.randrange(len(changed)), -rng.randrange(1, 64)))
        match rng.randrange(4):
            case 0:
                changed[where] = rng.randrange(256)
            case 1:
                changed[where] ^= 1 << rng.randrange(8)
            case 2:
                del changed[where : where + rng.randrange(1, 9)]
            case 3:
                changed[where:where] = changed[where : where + rng.randrange(1, 9)]
    return bytes(changed)


@functools.cache
def spaces(count: int) -> bytes:
    """Deflated, a thousandth of their size."""
    return zlib.compress(b" " * count)


@functools.cache
def png(side: int) -> bytes:
    """A black image of so many pixels, squared: a thousandth of its size."""
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(b"\0" * (1 + side)) for _ in range(side)) + rows.flush()
    header = struct.pack("!IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", data), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack("!I", len(body)) + kind + body + struct.pack("!I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def frame_header(side: int) -> bytes:
    """A JPEG's, and no data."""
    return b"\xff\xc0\x00\x11\x08" + struct.pack("!HH", side, side) + b"\x03\x01\x22\x00" * 3


@contextlib.asynccontextmanager
async def opened(target: Target):
    """A connection that ends by a reset, as of a client that was unplugged."""
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    try:
        yield reader, writer
    finally:
        linger = struct.pack("ii", 1, 0)
        with contextlib.suppress(OSError):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()


@contextlib.asynccontextmanager
async def upgraded(target: Target):
    """A websocket without a library."""
    async with opened(target) as (reader, writer):
        writer.write(UPGRADE)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        if b" 101 " not in head:
            raise ConnectionRefusedError
        yield reader, writer


async def ended(reader: asyncio.StreamReader, seconds: float = 10.0) -> None:
    """Waits until the server has closed the connection, or so long."""
    with contextlib.suppress(asyncio.TimeoutError, OSError):
        await asyncio.wait_for(reader.read(), seconds)


async def attack(target: Target, until: float, attacks=ATTACKS) -> None:
    """All attacks beside each other, again and again."""

    async def repeat(one: Callable[[Target], Awaitable[None]]) -> None:
        while True:
            try:
                await one(target)
            except EXPECTED:
                target.done["turned away"] += 1
            target.done[one.__name__] += 1
            await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(repeat(one)) for one in attacks]
    done, running = await asyncio.wait(tasks, timeout=max(0.0, until - time.monotonic()))
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    for task in done:  # an attack that failed by a fault of its own
        task.result()


# -- who must not notice ----------------------------------------------------------------------


class GoodClient:
    """Asks in a thread and compares each answer; after every 50th it connects anew.

    turned_away: connections refused because of the server's limit of clients.
    """

    def __init__(self, url: str, model: Path):
        self.url = f"openpi:{url}?timeout={PATIENCE}"
        local = load_policy(str(model), LoadOptions(device="cpu", engine="plain"))
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (8, 32, 48, 3), np.uint8)
        self.observations = [Observation({"image": image}, "go") for image in images]
        self.wanted = [local.act(o).actions for o in self.observations]
        self.policy = load_policy(self.url, LoadOptions())
        self.times_ms: list[float] = []
        self.connects = self.turned_away = 0
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(PERIOD):
            i = len(self.times_ms) % len(self.observations)
            newcomer = len(self.times_ms) % 50 == 49
            begun = time.monotonic()
            try:
                if newcomer:
                    actions = self._newcomer(i)
                else:
                    actions = self.policy.act(self.observations[i]).actions
                # The server's number of threads need not be ours: sums may end differently.
                if not np.allclose(actions, self.wanted[i], rtol=0, atol=1e-5):
                    off = np.abs(actions - self.wanted[i]).max()
                    self.wrong.append(f"answer {len(self.times_ms)} differs by {off:.2g}")
            except Exception as error:  # each is a finding
                if newcomer and "too many clients" in str(error):
                    self.turned_away += 1
                else:
                    self.wrong.append(f"answer {len(self.times_ms)}: {error}")
            self.times_ms.append(1e3 * (time.monotonic() - begun))

    def _newcomer(self, i: int) -> np.ndarray:
        """The same answer to a client that has just come."""
        with contextlib.closing(load_policy(self.url, LoadOptions())) as policy:
            self.connects += 1
            return policy.act(self.observations[i]).actions

    def stop(self) -> dict:
        self._stop.set()
        self._thread.join(60)
        self.policy.close()
        times = self.times_ms
        return {
            "answers": len(times),
            "connections": self.connects,
            "turned_away": self.turned_away,
            "failed": len(self.wrong),
            "median_ms": round(statistics.median(times), 1),
            "p99_ms": round(float(np.percentile(times, 99)), 1),
            "worst_ms": round(max(times), 1),
        }


class Sampler:
    """The server's memory, threads and open files over time, in a thread."""

    def __init__(self, pid: int):
        self.pid, self.rows = pid, []
        self._stop = threading.Event()
        self._begun = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(EVERY):
            with contextlib.suppress(OSError, KeyError):  # it has ended
                at = round(time.monotonic() - self._begun, 1)
                self.rows.append({"seconds": at, **sample(self.pid)})

    def stop(self) -> list[dict[str, float]]:
        self._stop.set()
        self._thread.join()
        return self.rows


def run(minutes: float, connections: int, seed: int, attacks=ATTACKS) -> dict:
    """The result; "wrong" in it: what must not have happened."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the server's as well
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model"
        write_random_checkpoint(model, "tiny")
        options = ("--max-clients", 256, "--num-threads", 1, "--engine", "plain")
        with serving(model, *options) as (process, url):
            canary = Path(name) / "executed"
            port = int(url.rpartition(":")[2])
            target = Target(port, canary, random.Random(seed), connections)
            good, sampler = GoodClient(url, model), Sampler(process.pid)
            begun = time.monotonic()
            asyncio.run(attack(target, begun + 60 * minutes, attacks))
            seconds = time.monotonic() - begun
            answers, series = good.stop(), sampler.stop()
            wrong = [*target.wrong, *good.wrong]
            if process.poll() is not None:
                wrong.append(f"the server ended with status {process.returncode}")
            if canary.exists():
                wrong.append("a payload was executed")
    warm_up = min(0.5, max(0.2, WARM_UP / seconds))
    grown = growth([row["mb"] for row in series], warm_up)
    if grown > MEGABYTES:
        wrong.append(f"the server grew by {grown:.1f} MB")
    return {
        "minutes": round(seconds / 60, 2),
        "seed": seed,
        "load_average": [round(v, 2) for v in os.getloadavg()],
        "good_client": answers,
        "attacks": dict(sorted(target.done.items())),
        "warm_up_share": round(warm_up, 3),
        "mb_growth": round(grown, 1),
        "mb_peak": max((row["mb"] for row in series), default=None),
        "wrong": Counter(wrong),
        "series": {name: [row[name] for row in series[::5]] for name in series[0]},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--connections", type=int, default=10_000, help="at once, every minute")
    parser.add_argument("--seed", type=int, default=0)
    add_output(parser)
    args = parser.parse_args()
    found = run(args.minutes, args.connections, args.seed)
    keep(found, args.output, show=False)
    print(json.dumps({k: v for k, v in found.items() if k != "series"}, indent=1))
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
