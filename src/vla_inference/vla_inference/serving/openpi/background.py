"""A server beside other work: it runs in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading

from vla_inference.errors import VlaError
from vla_inference.serving.openpi.batcher import Backend
from vla_inference.serving.openpi.server import Server


class BackgroundServer:
    """Runs a server that has its model.

    Example::

        background = BackgroundServer(server)
        port = background.start()
        background.stop()
    """

    def __init__(self, server: Server):
        self.server = server
        self._loop: asyncio.AbstractEventLoop | None = None
        self._port: concurrent.futures.Future[int] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)

    def start(self) -> int:
        """The port, once it listens; raises VlaError if it cannot."""
        self._thread.start()
        return self._port.result()

    def serve(self, backend: Backend) -> None:
        """Serves this from now on; raises VlaError if it does not fit or the server has ended."""
        assert self._loop is not None, "start it first"
        coroutine = self._serve(backend)
        try:
            asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10.0)
        except (RuntimeError, concurrent.futures.TimeoutError):
            coroutine.close()
            raise VlaError("the server has ended") from None

    def stop(self, timeout: float = 5.0) -> None:
        self.server.stop()
        self._thread.join(timeout)

    async def _serve(self, backend: Backend) -> None:
        self.server.serve(backend)

    def _run(self) -> None:
        try:
            asyncio.run(self.server.run(self._listens))
        except BaseException as error:  # raised again by `start`
            if self._port.done():
                raise
            self._port.set_exception(error)

    def _listens(self, port: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._port.set_result(port)
