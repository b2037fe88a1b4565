"""Lasting processes that read datasets: one for each that is looked into, and only a few.

A process is `vla data browse PATH`; it ends when it is not used, when another dataset needs its
place, when its files have changed, and with the studio.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vla_inference.errors import VlaError

VLA = (sys.executable, "-m", "vla_inference.cli.main")
MOST = 2  # processes
UNUSED = 120.0  # s until one that is not used ends
SECONDS = 300.0  # for an answer, or for a sign of progress
EDITS = ("delete", "restore", "tag")
LINE = 64 << 20  # bytes of an answer at most
Progress = Callable[[int, int], None]


class Worker:
    """One process; it answers one request after the other."""

    def __init__(self, path: Path, state: object):
        self._path, self.state = path, state
        self.used = time.monotonic()
        self.busy = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._hearing: asyncio.Task[None] | None = None  # what it says on stderr
        self._said: deque[str] = deque(maxlen=20)

    async def ask(self, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Raises VlaError where the answer is one; a process that fails to answer is ended."""
        async with self.busy:
            try:
                answer = await self._ask(request, progress)
            except BaseException:  # what comes later would be taken for the next answer
                self.end()
                raise
            self.used = time.monotonic()
        if "error" in answer:
            raise VlaError(answer["error"])
        return answer

    async def _ask(self, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        process = self._process
        if process is None or process.returncode is not None:
            process = self._process = await self._start()
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(ConnectionError):  # it ends at once where it cannot read
            process.stdin.write(json.dumps(request).encode() + b"\n")
            await process.stdin.drain()
        while True:
            try:
                line = await asyncio.wait_for(process.stdout.readline(), SECONDS)
            except asyncio.TimeoutError:
                raise VlaError(
                    f"{self._path.name} took longer than {SECONDS:g} s", "try it in a terminal"
                ) from None
            if not line:
                raise VlaError(await self._last_words())
            answer = json.loads(line)
            if "progress" not in answer:
                return dict(answer)
            progress(*answer["progress"])

    async def _start(self) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        words = (*VLA, "data", "browse", str(self._path))
        process = await asyncio.create_subprocess_exec(
            *words, stdin=pipe, stdout=pipe, stderr=pipe, limit=LINE
        )
        self._said.clear()
        assert process.stderr is not None
        self._hearing = asyncio.create_task(self._hear(process.stderr))
        return process

    async def _hear(self, stderr: asyncio.StreamReader) -> None:
        async for line in stderr:
            self._said.append(line.decode(errors="replace").strip())

    async def _last_words(self) -> str:
        """Why the process has ended."""
        if self._hearing is not None:
            await asyncio.wait([self._hearing], timeout=1.0)
        said = self._said[-1] if self._said else "the dataset's reader ended"
        return said.removeprefix("vla data: ")[:500]

    def end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            if process.stdin is not None:
                process.stdin.close()

    async def close(self) -> None:
        """Ends the process, and waits until it is gone."""
        process = self._process
        self.end()
        if process is None or process.stdout is None:
            return
        await process.wait()
        with contextlib.suppress(RuntimeError):  # somebody still waits for an answer
            await process.stdout.read()
        if self._hearing is not None:
            await asyncio.wait([self._hearing], timeout=1.0)


class Workers:
    """most: processes at once. unused: seconds until one that nobody uses ends."""

    def __init__(self, most: int = MOST, unused: float = UNUSED):
        self._most, self._unused = most, unused
        self._workers: dict[Path, Worker] = {}

    async def ask(
        self, path: Path, request: Mapping[str, Any], progress: Progress = lambda done, of: None
    ) -> dict[str, Any]:
        """The answer of the dataset's process, which is started where there is none."""
        worker = self._workers.get(path)
        if worker is None or (worker.state != _state(path) and not worker.busy.locked()):
            worker = self._start(path)
        answer = await worker.ask(request, progress)
        if request["do"] in EDITS:  # its own change, after which it opens the dataset again
            worker.state = _state(path)
        return answer

    def _start(self, path: Path) -> Worker:
        if path in self._workers:
            self._workers.pop(path).end()
        while len(self._workers) >= self._most:
            idle = [p for p, worker in self._workers.items() if not worker.busy.locked()]
            if not idle:
                raise VlaError(
                    f"{self._most} other datasets are being read", "try again when one is done"
                )
            oldest = min(idle, key=lambda p: self._workers[p].used)
            self._workers.pop(oldest).end()
        self._workers[path] = Worker(path, _state(path))
        return self._workers[path]

    async def watch(self) -> None:
        """Ends processes that are not used; all of them at the end."""
        try:
            while True:
                await asyncio.sleep(min(self._unused / 4, 5.0))
                before = time.monotonic() - self._unused
                for path, worker in [*self._workers.items()]:
                    if worker.used < before and not worker.busy.locked():
                        self._workers.pop(path).end()
        finally:
            workers = [*self._workers.values()]
            self._workers.clear()
            await asyncio.gather(*(worker.close() for worker in workers))

    def __len__(self) -> int:
        return len(self._workers)


def _state(path: Path) -> object:
    """Changes when the dataset is written anew."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
