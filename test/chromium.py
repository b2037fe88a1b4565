"""A headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 120.0  # s


def find_chromium() -> str | None:
    """The program; CHROMIUM names another."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One page. errors: what its console says is wrong."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self._socket, self._count = socket, 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.errors: list[str] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            found = json.loads(message.data)
            if "id" in found:
                self._answers.pop(found["id"]).set_result(found)
            elif found["method"] == "Runtime.exceptionThrown":
                details = found["params"]["exceptionDetails"]
                about = details.get("exception", {}).get("description", "")
                self.errors.append(f"{details['text']} {about}")
            elif found["method"] == "Log.entryAdded":
                entry = found["params"]["entry"]
                if entry["level"] == "error":
                    self.errors.append(entry["text"])

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        answer = self._answers[self._count] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._count, "method": method, "params": parameters})
        found = await asyncio.wait_for(answer, PATIENCE)
        assert "error" not in found, found
        return found["result"]

    async def evaluate(self, expression: str) -> Any:
        found = await self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Waits until the expression is true; what is not there yet is no error."""
        end = asyncio.get_running_loop().time() + PATIENCE
        calm = f"(() => {{ try {{ return {expression}; }} catch {{ return null; }} }})()"
        while not (value := await self.evaluate(calm)):
            assert asyncio.get_running_loop().time() < end, (expression, self.errors)
            await asyncio.sleep(0.05)
        return value

    async def text(self, selector: str) -> str:
        return await self.evaluate(f"document.querySelector({selector!r}).textContent")

    async def click(self, selector: str) -> None:
        await self.down(selector)
        await self.up(selector)

    async def down(self, selector: str) -> None:
        """Presses the pointer's button on an element."""
        await self._mouse("mousePressed", selector)

    async def up(self, selector: str) -> None:
        await self._mouse("mouseReleased", selector)

    async def _mouse(self, kind: str, selector: str) -> None:
        x, y = await self.evaluate(
            f"(() => {{ const e = document.querySelector({selector!r});"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        await self.send(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
        )

    async def key(self, kind: str, key: str, code: str) -> None:
        """kind: keyDown or keyUp."""
        await self.send("Input.dispatchKeyEvent", type=kind, key=key, code=code)

    async def write(self, selector: str, text: str) -> None:
        await self.evaluate(f"document.querySelector({selector!r}).focus()")
        await self.send("Input.insertText", text=text)

    async def resize(self, width: int, height: int) -> None:
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )

    async def screenshot(self, path: Path) -> None:
        """The whole page, as PNG."""
        found = await self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


class Browser:
    """process: the browser's own. Its pages share cookies and nothing else."""

    def __init__(self, process: Any, address: str, session: aiohttp.ClientSession):
        self.process, self._address, self._session = process, address, session

    async def open(self, url: str) -> Tab:
        async with self._session.put(f"{self._address}/json/new?about:blank") as answer:
            target = await answer.json(content_type=None)
        socket = await self._session.ws_connect(
            target["webSocketDebuggerUrl"], max_msg_size=0, origin=self._address
        )
        tab = Tab(socket)
        for domain in ("Page", "Runtime", "Log"):
            await tab.send(f"{domain}.enable")
        await tab.send("Page.navigate", url=url)
        return tab


def _microphone(file: Path) -> list[str]:
    return [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",  # which allows it
        f"--use-file-for-fake-audio-capture={file}%noloop",
    ]


@contextlib.asynccontextmanager
async def chromium(*prefix: str, microphone: Path | None = None) -> AsyncIterator[Browser]:
    """prefix: a command that starts it, such as `chrt --idle 0`. microphone: a WAV, said once."""
    program = find_chromium()
    assert program, "there is no Chromium"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = await asyncio.create_subprocess_exec(
            *prefix,
            program,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--remote-debugging-port=0",
            "--remote-allow-origins=*",
            f"--user-data-dir={folder}",
            *(_microphone(microphone) if microphone else ()),
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        try:
            port = None
            while port is None:
                line = await asyncio.wait_for(process.stderr.readline(), PATIENCE)
                assert line, "Chromium has ended"
                port = re.search(rb"listening on ws://127\.0\.0\.1:(\d+)/", line)
            drain = asyncio.create_task(process.stderr.read())
            async with aiohttp.ClientSession() as session:
                yield Browser(process, f"http://127.0.0.1:{port[1].decode()}", session)
            drain.cancel()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
