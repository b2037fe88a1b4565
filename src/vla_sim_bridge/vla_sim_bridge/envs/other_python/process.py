"""Runs `server.py` under another Python; its death or silence is reported as one clear error."""

from __future__ import annotations

import contextlib
import difflib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vla_inference.errors import VlaError
from vla_sim_bridge.envs.other_python import server
from vla_sim_bridge.envs.other_python.server import FrameError, read_frame, write_frame

SLOW, QUICK = 300.0, 60.0  # s: imports and models (the first ones compile), anything else
STDERR_LINES = 5  # quoted when it dies
AGAIN = "fix that and start again: what it was at is lost"

Reply = tuple[dict, dict[str, np.ndarray]]


class ProcessLostError(VlaError):
    """The process ended or fell silent; a new one may do what it was at."""


class OtherPython:
    """One server process. After its death or silence every call raises the same error."""

    def __init__(
        self,
        package: str,
        python: str,
        serves: Path,
        variable: str,
        environment: Mapping[str, str] | None = None,
    ):
        """serves: the file whose `Server` makes the package's environments.

        variable: the environment variable that names the Python, for remedies. environment:
        variables that the process is to have besides ours.
        """
        self.package, self.python = package, python
        self._broken = ""  # why nothing can be asked any more
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed in `close`
        try:
            self._process = subprocess.Popen(
                [python, str(Path(server.__file__).resolve()), str(serves)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                bufsize=0,
                env={**_environment(), **(environment or {})},
                start_new_session=True,  # Ctrl-C is for us; it ends with its standard input
            )
        except OSError as error:
            self._log.close()
            raise VlaError(
                f"{python} cannot be run ({error.strerror})", f"correct {variable}"
            ) from error
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # pipes, as asked
        self._stdin, self._stdout = stdin, stdout
        os.set_blocking(stdin.fileno(), False)
        try:
            self.about = self.ask("hello", timeout=SLOW, package=package)[0]
            if not isinstance(self.about.get("environments"), list):
                self._fail("answers, but is not our server")
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def check_registered(self, env: str) -> None:
        """Refuses an environment that the package does not register."""
        there = self.about["environments"]
        if env not in there:
            near = difflib.get_close_matches(env, there, n=8, cutoff=0.3) or there[:8]
            raise VlaError(
                f"the {self.package} of {self.python} registers no environment {env!r}",
                f"it registers {len(there)}, such as {', '.join(near)}" if near else "it has none",
            )

    def ask(
        self,
        do: str,
        arrays: Mapping[str, np.ndarray] | None = None,
        timeout: float | None = None,
        **request,
    ) -> Reply:
        """One request and its reply. An error there becomes a VlaError here; the server stays
        alive.

        timeout: s, `QUICK` unless told.
        """
        if self._broken:
            raise ProcessLostError(self._broken, AGAIN)
        timeout = timeout or QUICK
        end = time.monotonic() + timeout
        try:
            write_frame(lambda data: self._send(data, end), {"do": do, **request}, arrays)
            header, out = read_frame(lambda count: self._receive(count, end))
        except FrameError as error:
            self._fail(f"sent something else than a reply to '{do}': {error}")
        except TimeoutError:
            self._fail(f"did not answer to '{do}' within {timeout:g} s")
        except EOFError:
            self._fail(f"ended at '{do}' ({self._how_it_ended()})")
        except KeyboardInterrupt:  # a reply without its request would answer the next one
            self._break("was interrupted")
            raise
        if "error" in header:
            raise VlaError(
                f"in {self.python}: {header['error']}", header.get("remedy") or self._last_words()
            )
        return header, out

    def close(self) -> None:
        """Ends it in any state."""
        self._broken = self._broken or f"{self.package}'s process ({self.python}) was closed"
        self._kill()
        for pipe in (self._stdin, self._stdout, self._log):
            with contextlib.suppress(OSError):
                pipe.close()

    # -- bytes ----------------------------------------------------------------------------------

    def _send(self, data: bytes, end: float) -> None:
        pipe, view = self._stdin, memoryview(data)
        while view:
            if not select.select([], [pipe], [], max(0.0, end - time.monotonic()))[1]:
                raise TimeoutError
            try:
                view = view[os.write(pipe.fileno(), view) :]
            except BrokenPipeError:
                return  # reading tells whether it said something before it ended

    def _receive(self, count: int, end: float) -> bytes:
        pipe, data = self._stdout, bytearray()
        while len(data) < count:
            if not select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError
            part = os.read(pipe.fileno(), count - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    # -- its end --------------------------------------------------------------------------------

    def _fail(self, what: str) -> None:
        self._break(what)
        raise ProcessLostError(self._broken, AGAIN) from None

    def _break(self, what: str) -> None:
        self._broken = f"{self.package}'s process ({self.python}) {what}; {self._last_words()}"
        self._kill()

    def _kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"

    def _last_words(self) -> str:
        """The end of its output, on one line."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 4000))
        lines = self._log.read().decode(errors="replace").split("\n")
        self._log.seek(0, os.SEEK_END)
        said = " | ".join([text.strip() for text in lines if text.strip()][-STDERR_LINES:])
        return f"it said: {said}" if said else "it said nothing"


def _environment() -> dict[str, str]:
    """Our environment without what would make the other Python import our packages."""
    ours = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    return {name: value for name, value in os.environ.items() if name not in ours}
