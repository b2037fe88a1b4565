"""`Dialogue`: from the audio of a page to a stop or, after a countdown, to an instruction."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from vla_inference.errors import VlaError
from vla_studio.speech.audio import Intake, Samples, check_rate
from vla_studio.speech.recogniser import Heard, Recogniser
from vla_studio.speech.utterances import Utterances

log = logging.getLogger(__name__)
SILENT = 2.0  # s without audio that end a press, as a release does
MOST_PRESSES = 3  # that may wait for the recogniser
NICE = 5  # of the thread that recognises: what moves the robot comes first
TEXTS = ("by", "heard", "sentence", "draft", "note")  # of the state that pages show
Result = TypeVar("Result")


class Speaker(Protocol):
    """A page, as far as it speaks. name: what people call it."""

    name: str


Page = TypeVar("Page", bound=Speaker)
Spoken = TypeVar("Spoken", bound=Speaker, contravariant=True)


class Effects(Protocol[Spoken]):
    """What speech can do; there is nothing else. Called in the server's thread."""

    def known(self) -> Sequence[str]:
        """Sentences in use."""

    def said(self, page: Spoken, text: str) -> None:
        """Somebody has said this."""

    def stop_by(self, page: Spoken) -> None:
        """Somebody has said to stop."""

    async def instruct(self, page: Spoken, sentence: str) -> str:
        """Nobody has cancelled it; returns a remark. Raises VlaError if it has no effect."""

    def speech_changed(self, state: dict[str, Any]) -> None:
        """For the pages."""


class Dialogue(Generic[Page]):
    """load: opens the recogniser, at the first press; None: nothing is recognised here.

    seconds: of the countdown. All but `load` and the recogniser is in the server's thread.
    """

    def __init__(
        self, load: Callable[[], Recogniser] | None, seconds: int, effects: Effects[Page]
    ):
        self._load, self._seconds, self._effects = load, seconds, effects
        self._recogniser: Recogniser | None = None
        self._press: Press[Page] | None = None
        self._following = 0  # presses that are not yet recognised to their end
        self._counting: tuple[Page, asyncio.Task[None]] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._worker = ThreadPoolExecutor(1, "speech", _make_way)
        self.state: dict[str, Any] = {}
        self._show("ready" if load else "off")

    # -- what pages do ------------------------------------------------------------------------

    def talk(self, page: Page, rate: int) -> None:
        """The button is pressed. The caller has checked that this page may operate."""
        if self._load is None:
            raise VlaError("speech is not recognised here", "see `vla studio --speech`")
        check_rate(rate)
        if self._following >= MOST_PRESSES:
            raise VlaError("what was said before is still being recognised", "wait a moment")
        self.cancel()
        self.release()
        self._press = Press(page)
        self._following += 1
        self._show("listening", by=page.name)
        self._start(self._follow(self._press))

    def audio(self, page: Page, frame: bytes) -> None:
        """Part of what is said. Raises VlaError if it is not taken; the press has then ended."""
        if self._press is None or self._press.page is not page:
            return  # sent before the page knew that the press had ended
        try:
            self._press.take(frame)
        except VlaError:
            self.release()
            raise

    def release(self) -> None:
        """The button is let go: what was said until now is still recognised."""
        if self._press is not None:
            self._press.end()
            self._press = None

    def cancel(self) -> None:
        """What is counted down takes no effect."""
        if self._counting is not None:
            self._counting[1].cancel()
            self._counting = None
            self._rest()

    def keep_to(self, operator: Page | None) -> None:
        """Only who operates may speak: another's press and countdown end."""
        if self._press is not None and self._press.page is not operator:
            self.release()
        if self._counting is not None and self._counting[0] is not operator:
            self.cancel()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._worker.shutdown(wait=False, cancel_futures=True)

    # -- what comes of it ---------------------------------------------------------------------

    async def _follow(self, press: Press[Page]) -> None:
        note = ""
        try:
            if self._recogniser is None and self._load is not None:
                self._recogniser = await self._work(self._load)
            assert self._recogniser is not None
            await self._listen(press, self._recogniser)
        except VlaError as error:
            note = str(error)
        except Exception as error:  # native libraries raise what they like; the page goes on
            log.exception("speech")
            note = f"speech could not be recognised ({error})"
        finally:
            self._following -= 1
        if self._press is press:
            self._press = None
        if note:
            self._rest(note)
        elif self._counting is None and self._press is None:
            self._show(**{**self.state, "state": "ready"})

    async def _listen(self, press: Press[Page], recogniser: Recogniser) -> None:
        utterances, last = Utterances(recogniser.speech), False
        while not last:
            samples, last = await press.more()
            if last and self._counting is None:
                self._show(**{**self.state, "state": "recognising"})
            for utterance in await self._work(utterances.add, samples, last):
                known = list(self._effects.known())
                heard = await self._work(recogniser.hear, utterance, known)
                if heard is not None:
                    self._heard(press.page, heard)

    def _heard(self, page: Page, heard: Heard) -> None:
        self.cancel()  # more was said than that
        self._effects.said(page, heard.known or heard.text)
        if heard.stop:
            self._effects.stop_by(page)
            self._rest(heard=heard.text)
        elif not heard.known:
            self._rest("no sentence in use: it waits for Set", heard.text, draft=heard.text)
        else:
            self._counting = page, self._start(self._count(page, heard))

    async def _count(self, page: Page, heard: Heard) -> None:
        about = {"by": page.name, "heard": heard.text, "sentence": heard.known}
        for left in range(self._seconds, 0, -1):
            self._show("counting", seconds=left, **about)
            await asyncio.sleep(1.0)
        self._counting = None
        try:
            remark = await self._effects.instruct(page, heard.known)
        except VlaError as error:
            remark = str(error)
        self._rest(remark, heard.text)

    # -- small things -------------------------------------------------------------------------

    def _rest(self, note: str = "", heard: str = "", draft: str = "") -> None:
        """Nothing is counted down.

        note: what went wrong. heard: what was said last. draft: what a person may send.
        """
        state = "listening" if self._press else "ready"
        self._show(state, note=note, heard=heard, draft=draft)

    def _show(self, state: str, **more: Any) -> None:
        self.state = {"state": state, **dict.fromkeys(TEXTS, ""), "seconds": 0, **more}
        self._effects.speech_changed(self.state)

    async def _work(self, work: Callable[..., Result], *arguments: Any) -> Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, lambda: work(*arguments))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class Press(Generic[Page]):
    """One press of the button, and the audio that waits to be heard."""

    def __init__(self, page: Page):
        self.page = page
        self._intake = Intake(time.monotonic())
        self._waiting: list[Samples] = []
        self._ended, self._wake = False, asyncio.Event()

    def take(self, frame: bytes) -> None:
        """Raises VlaError if the frame is no PCM, or more than was spoken."""
        self._waiting.append(self._intake.take(frame, time.monotonic()))
        self._wake.set()

    def end(self) -> None:
        self._ended = True
        self._wake.set()

    async def more(self) -> tuple[Samples, bool]:
        """What has come since, and whether it is the last."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wake.wait(), SILENT)
        self._ended = self._ended or not self._wake.is_set()
        self._wake.clear()
        waiting, self._waiting = self._waiting, []
        return np.concatenate([np.zeros(0, np.float32), *waiting]), self._ended


def _make_way() -> None:
    """Lowers the priority of this thread, and of those that it starts."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
