"""Tests that start each preset of the studio as people do, and end it with Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import aiohttp
import pytest
from bags import write_bags
from domains import domain
from studio_server import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 120  # s


class Studio:
    """`vla studio --preset ...` in a folder that has the workspace's `models` and `config`."""

    def __init__(self, folder: Path, preset: str):
        for name in ("models", "config"):
            (folder / name).symlink_to(ROOT / name)
        words = ["studio", "--preset", preset, "--port", "0"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vla_inference.cli.main", *words],
            cwd=folder,
            env={**os.environ, "ROS_DOMAIN_ID": str(domain()), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.said.extend(self.process.stdout)

    def until(self, pattern: str) -> re.Match[str]:
        """Waits until it has printed this."""
        end = time.monotonic() + PATIENCE
        while (found := re.search(pattern, "".join(self.said))) is None:
            assert self.process.poll() is None and time.monotonic() < end, "".join(self.said)
            time.sleep(0.1)
        return found

    @contextlib.asynccontextmanager
    async def page(self):
        base = self.until(r"the studio is at (http://\S+?)/?\s")[1]
        headers = {"Origin": base}
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(base + "/socket", headers=headers) as ws,
        ):
            yield Client(ws)

    def end(self) -> None:
        """Ctrl-C ends the page and all that was started with it."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(60) == 0, "".join(self.said)
        self._reader.join(60)  # nobody holds its output open any more
        assert not self._reader.is_alive()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def started(folder: Path, preset: str):
    with contextlib.closing(Studio(folder, preset)) as studio:
        yield studio
        studio.end()


async def hold(page):
    while True:
        await page.tell("hold", press=1)
        await asyncio.sleep(0.03)


def test_servo_has_a_model_and_a_command_node_that_can_be_held(tmp_path):
    async def go(studio):
        async with studio.page() as page:
            hello = await page.until("hello")
            assert hello["title"] == "robot by MoveIt Servo" and hello["starts"] == ["the model"]
            await page.until("inference", lambda data: data["state"] == "active")
            command = await page.until("command", lambda data: data["state"] == "disabled")
            assert command["scale"] == pytest.approx(0.2)
            await page.until("speed", lambda data: data["scale"] == 0.2)
            await page.operate()
            assert not (await page.ask("speed", speed=0.5))["error"]  # also of a locked node
            await page.until("command", lambda data: data["scale"] == pytest.approx(0.1))
            holding = asyncio.create_task(hold(page))
            # The command node hears the button, and has no chunk: nobody publishes images.
            await page.until("event", lambda data: "no usable chunk" in data["text"])
            holding.cancel()

    with started(tmp_path, "servo") as studio:
        asyncio.run(go(studio))


def test_validation_replays_a_bag_and_leaves_a_report(tmp_path):
    write_bags(tmp_path / "bag")

    async def go(studio):
        async with studio.page() as page:
            assert (await page.until("hello"))["title"] == "validation of a bag"
            await page.until("inference", lambda data: data["processed"] > 0)

    with started(tmp_path, "validation") as studio:
        asyncio.run(go(studio))
        end = time.monotonic() + PATIENCE
        while not (tmp_path / "results/validation/report.html").is_file():
            assert time.monotonic() < end, "".join(studio.said)
            time.sleep(0.1)


def test_serve_serves_the_model_beside_the_page(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = (ROOT / "src/vla_studio/config/studio/serve.yaml").read_text()
    assert "--port 8000" in text
    preset = tmp_path / "serve.yaml"
    preset.write_text(text.replace("--port 8000", f"--port {port}"))

    async def healthy(session):
        with contextlib.suppress(aiohttp.ClientError):
            async with session.get(f"http://127.0.0.1:{port}/healthz") as answer:
                return answer.status == 200
        return False

    async def go(studio):
        async with studio.page() as page:
            assert (await page.until("hello"))["title"] == "serve"
            assert not (await page.until("services"))["enable"]
        end = time.monotonic() + PATIENCE
        async with aiohttp.ClientSession() as session:
            while not await healthy(session):
                assert time.monotonic() < end, "".join(studio.said)
                await asyncio.sleep(0.2)

    with started(tmp_path, str(preset)) as studio:
        asyncio.run(go(studio))
