"""Tests of speech over the studio's websocket: who may speak, what follows, hostile audio."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import aiohttp
import numpy as np
import pytest
from speech_standin import DATA, ToldRecogniser, pcm, quiet, tone
from studio_server import eventually, with_studio

from vla_studio.speech.audio import RATE, read_audio
from vla_studio.speech.recogniser import Heard, is_installed
from vla_studio.web import server as studio_server

TOKEN = "0123456789abcdefghij"
SENTENCE = "stack the red block on the green block"
MEANT = Heard("Stack the red block on the green block.", SENTENCE)
STOP = Heard("Stop.", stop=True)


@pytest.fixture
def recogniser(monkeypatch):
    """The one that the server opens."""
    told = ToldRecogniser()
    monkeypatch.setattr(studio_server, "wanted", lambda setting: True)
    monkeypatch.setattr(studio_server, "open_recogniser", lambda setting: told)
    return told


def speaking(test, **settings):
    """Runs a coroutine with a page that has control."""

    async def go(studio, graph):
        async with studio.page() as page:
            await page.operate()
            await test(page, graph)

    with_studio(go, **{"presets": (SENTENCE,), "countdown": 1, **settings})


async def say(page, seconds=0.6):
    """A press with an utterance in it, as the page sends it."""
    await page.tell("talk", on=True, rate=RATE)
    samples = pcm(np.concatenate([tone(seconds), quiet(0.2)]))
    for start in range(0, len(samples), 1600):
        await page.socket.send_bytes(samples[start : start + 1600])
    await page.tell("talk", on=False)


async def speech(page, state, **fits):
    """The next news of speech that fits."""
    page.heard.clear()
    return await page.until(
        "speech",
        lambda now: now["state"] == state and all(now[k] == v for k, v in fits.items()),
    )


def test_a_spoken_sentence_takes_effect_after_the_countdown(recogniser):
    recogniser.heard = [MEANT]

    async def test(page, graph):
        await say(page)
        counting = await speech(page, "counting")
        assert (counting["sentence"], counting["seconds"]) == (SENTENCE, 1)
        assert graph.spoken == [SENTENCE] and not graph.calls
        await speech(page, "ready")
        assert graph.calls == [("instruct", {"instruction": SENTENCE})]
        assert recogniser.known == [SENTENCE]

    speaking(test)


def test_stop_is_obeyed_at_once_and_speech_never_enables(recogniser):
    recogniser.heard = [MEANT, STOP]

    async def test(page, graph):
        await say(page)
        await speech(page, "counting")
        await say(page)
        await eventually(lambda: graph.calls)
        await asyncio.sleep(1.2)  # the countdown that was cancelled would be over
        assert graph.calls == [("enable", {"data": False})]

    speaking(test)


def test_stop_is_heard_before_the_button_is_let_go(recogniser):
    recogniser.heard = [STOP]

    async def test(page, graph):
        await page.tell("talk", on=True, rate=RATE)
        await page.socket.send_bytes(pcm(tone(0.4)))
        for _ in range(3):
            await page.socket.send_bytes(pcm(quiet(0.4)))
        await eventually(lambda: ("enable", {"data": False}) in graph.calls)

    speaking(test)


async def cancel(page):
    await page.tell("unsay")


async def stop(page):
    await page.tell("stop")


async def type_another(page):
    await page.ask("instruct", instruction="open the door")


async def press_again(page):
    await page.tell("talk", on=True, rate=RATE)


async def leave(page):
    await page.tell("leave")


@pytest.mark.parametrize("how", [cancel, stop, type_another, press_again, leave])
def test_a_countdown_can_be_cancelled(recogniser, how):
    recogniser.heard = [MEANT]

    async def test(page, graph):
        await say(page)
        await speech(page, "counting")
        await how(page)
        await asyncio.sleep(1.3)
        assert ("instruct", {"instruction": SENTENCE}) not in graph.calls

    speaking(test)


def test_a_page_that_closes_takes_its_countdown_along(recogniser):
    recogniser.heard = [MEANT]

    async def test(studio, graph):
        async with studio.page() as page:
            await page.operate()
            await say(page)
            await speech(page, "counting")
        await asyncio.sleep(1.3)
        assert not graph.calls

    with_studio(test, presets=(SENTENCE,), countdown=1)


def test_other_sentences_are_shown_and_wait(recogniser):
    recogniser.heard = [Heard("It was the best of times.")]

    async def test(page, graph):
        await say(page)
        assert (await speech(page, "ready"))["draft"] == "It was the best of times."
        await asyncio.sleep(1.2)
        assert not graph.calls and graph.spoken == ["It was the best of times."]

    speaking(test)


def test_speech_ends_no_trials(recogniser):
    recogniser.heard = [MEANT]

    async def test(page, graph):
        await page.ask("trials", instructions=["lift the cube"], trials=3)
        await say(page)
        assert "trials are under way" in (await speech(page, "ready"))["note"]
        assert graph.calls == [("instruct", {"instruction": "lift the cube"})]
        assert all(data["running"] for name, data in page.heard if name == "trials")

    speaking(test)


def test_nothing_heard_says_nothing(recogniser):
    recogniser.heard = [None]

    async def test(page, graph):
        await say(page)
        now = await speech(page, "ready")
        assert not now["heard"] and not now["note"]
        assert not graph.calls and not graph.spoken

    speaking(test)


def test_a_recogniser_that_fails_is_told_and_the_page_goes_on(recogniser):
    def fail(utterance, known):
        raise RuntimeError("out of memory")

    recogniser.hear, hear = fail, recogniser.hear

    async def test(page, graph):
        await say(page)
        assert "out of memory" in (await speech(page, "ready"))["note"]
        recogniser.hear, recogniser.heard = hear, [MEANT]
        await say(page)
        await speech(page, "counting")

    speaking(test)


# -- who may speak ----------------------------------------------------------------------------


async def closed(page, code=aiohttp.WSCloseCode.POLICY_VIOLATION):
    while (message := await page.socket.receive()).type is aiohttp.WSMsgType.TEXT:
        pass
    assert message.data == code


def test_only_who_has_control_may_speak(recogniser):
    async def test(studio, graph):
        async with studio.page() as operator, studio.page() as other:
            await operator.operate()
            await other.until("hello")
            assert "only watches" in (await other.ask("talk", on=True, rate=RATE))["error"]
            await other.socket.send_bytes(pcm(tone(0.2)))
            await closed(other)
        assert not recogniser.utterances and not graph.calls

    with_studio(test)


def test_viewers_may_not_speak(recogniser, tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN)

    async def test(studio, graph):
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with studio.session.post(studio.base + "/link?role=viewer", headers=headers) as link:
            url = (await link.text()).strip()
        async with studio.session.get(url, allow_redirects=False) as answer:
            cookie = answer.cookies["studio"].value
        async with studio.page(cookie=cookie) as page:
            assert "only watches" in (await page.ask("talk", on=True, rate=RATE))["error"]
            await page.socket.send_bytes(pcm(tone(0.2)))
            await closed(page)
        assert not recogniser.utterances

    with_studio(test, token_file=str(path))


def test_who_loses_control_is_heard_no_longer(recogniser):
    recogniser.heard = [MEANT]

    async def test(studio, graph):
        async with studio.page() as first, studio.page() as second:
            await first.operate()
            await second.until("hello")
            await second.tell("take")
            await first.until("operation", lambda now: now["asking"])
            await say(first)
            await speech(first, "counting")
            await first.tell("hand_over", agreed=True)
            await asyncio.sleep(1.3)
            await first.tell("talk", on=True, rate=RATE)
        assert not [call for call in graph.calls if call[0] == "instruct"]
        assert len(recogniser.utterances) == 1

    with_studio(test, presets=(SENTENCE,), countdown=1)


# -- hostile audio ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([b"\0"], "no PCM"),
        ([b"RIFF" + bytes(100)], "no PCM"),
        ([b"\x1aE\xdf\xa3" + bytes(100)], "no PCM"),
        ([bytes(16_000)] * 30, "more audio came than time has passed"),
    ],
)
def test_audio_that_is_none_ends_the_press_by_one_error(recogniser, frames, reason):
    async def test(page, graph):
        await page.tell("talk", on=True, rate=RATE)
        for frame in frames:
            await page.socket.send_bytes(frame)
        await page.until("answer", lambda answer: reason in answer["error"])
        for frame in frames[:3]:  # on their way when the press ended
            await page.socket.send_bytes(frame)
        page.heard = [(name, data) for name, data in page.heard if name != "answer"]
        await page.ask("jobs")
        assert not [data for name, data in page.heard if name == "answer" and data["error"]]
        recogniser.heard = [MEANT]
        await say(page)  # and the next press is heard
        await speech(page, "counting")

    speaking(test)


@pytest.mark.parametrize("rate", [8000, 48000, 0, -1, "16000", None])
def test_other_rates_are_refused(recogniser, rate):
    async def test(page, graph):
        assert (await page.ask("talk", on=True, rate=rate))["error"]
        await page.socket.send_bytes(pcm(tone(0.2)))
        await closed(page)
        assert not recogniser.utterances

    speaking(test)


def test_a_frame_that_is_too_long_closes_the_page(recogniser):
    async def test(page, graph):
        await page.tell("talk", on=True, rate=RATE)
        with contextlib.suppress(ConnectionError):
            await page.socket.send_bytes(bytes(studio_server.LARGEST + 2))
        await closed(page, aiohttp.WSCloseCode.MESSAGE_TOO_BIG)

    speaking(test)


def test_a_press_without_audio_ends_by_itself(recogniser, monkeypatch):
    monkeypatch.setattr("vla_studio.speech.dialogue.SILENT", 0.2)

    async def test(page, graph):
        await page.tell("talk", on=True, rate=RATE)
        await speech(page, "listening")
        await speech(page, "ready")

    speaking(test)


def test_presses_do_not_pile_up(recogniser):
    freed = threading.Event()
    recogniser.hear = lambda utterance, known: freed.wait(30) and None

    async def test(page, graph):
        for _ in range(6):
            await say(page)
            await asyncio.sleep(0.05)
        await page.until("answer", lambda answer: "still being recognised" in answer["error"])
        freed.set()
        await speech(page, "ready")

    speaking(test)


def test_without_a_recogniser_pages_are_told_so():
    async def test(page, graph):
        assert (await page.until("speech"))["state"] == "off"
        assert "not recognised here" in (await page.ask("talk", on=True, rate=RATE))["error"]

    speaking(test, speech="off")


# -- the recogniser itself --------------------------------------------------------------------


@pytest.mark.skipif(
    not is_installed(), reason="nothing recognises speech: pip install -r requirements/speech.txt"
)
@pytest.mark.parametrize("name", ["red_on_green", "stop"])
def test_what_a_voice_says_reaches_the_graph(name):
    async def test(page, graph):
        await page.tell("talk", on=True, rate=RATE)
        samples = pcm(read_audio(DATA / f"{name}.ogg"))
        for start in range(0, len(samples), 1600):
            await page.socket.send_bytes(samples[start : start + 1600])
            await asyncio.sleep(0.04)  # a little faster than it was spoken
        await page.tell("talk", on=False)
        await eventually(lambda: graph.calls, 60)
        effect = {
            "red_on_green": ("instruct", {"instruction": SENTENCE}),
            "stop": ("enable", {"data": False}),
        }
        assert graph.calls == [effect[name]]

    speaking(test)
