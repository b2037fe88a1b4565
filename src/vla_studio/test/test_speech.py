"""Tests of speech: audio, pauses, sentences, the recogniser itself, and `vla listen`."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
import wave

import numpy as np
import pytest
from domains import domain
from graphs import NodeGraph, environment
from hypothesis import given, settings
from hypothesis import strategies as st
from speech_standin import DATA, ToldRecogniser, pcm, quiet, tone
from std_msgs.msg import String
from std_srvs.srv import SetBool

from vla_inference.cli.main import main
from vla_inference.errors import VlaError
from vla_inference.ros import qos
from vla_studio.ros.node import StudioNode
from vla_studio.settings import StudioSettings
from vla_studio.speech import recogniser
from vla_studio.speech.audio import LONGEST, RATE, Intake, check_rate, from_pcm, read_audio
from vla_studio.speech.listening import Listening
from vla_studio.speech.recogniser import Heard, is_installed, open_recogniser, wanted
from vla_studio.speech.sentences import alike, same, says_stop
from vla_studio.speech.utterances import Utterances

RED_ON_GREEN = "stack the red block on the green block"
GREEN_ON_RED = "stack the green block on the red block"

# -- audio ------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [b"\0", b"RIFF\0\0", b"OggS", b"\x1aE\xdf\xa3" + bytes(96)])
def test_what_is_no_pcm_is_refused(frame):
    with pytest.raises(VlaError, match="no PCM"):
        from_pcm(frame)


def test_pcm_becomes_samples_and_other_rates_are_refused():
    assert from_pcm(pcm(np.array([0, -1.0, 0.5]))).tolist() == pytest.approx(
        [0, -1, 0.5], abs=1e-3
    )
    with pytest.raises(VlaError, match="48000 Hz"):
        check_rate(48000)


def test_a_press_takes_no_more_than_was_spoken():
    second = pcm(quiet(1))
    intake = Intake(0.0)
    for now in (0.0, 0.1):
        intake.take(second, now)
    with pytest.raises(VlaError, match="more audio"):
        intake.take(second, 0.2)
    slow = Intake(0.0)
    with pytest.raises(VlaError, match="at once"):
        for now in range(int(LONGEST) + 2):
            slow.take(second, float(now))


def test_files_are_read_at_any_rate_and_damaged_ones_refused(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(44100)
        file.writeframes(bytes(4 * 44100))
    assert len(read_audio(tmp_path / "a.wav")) == pytest.approx(RATE, abs=40)
    (tmp_path / "b.wav").write_bytes(b"RIFF" + bytes(100))
    for name in ("b.wav", "missing.wav"):
        with pytest.raises(VlaError, match="cannot be read"):
            read_audio(tmp_path / name)


# -- pauses -----------------------------------------------------------------------------------


def cut(samples, sizes):
    """The utterances, of samples that come in pieces of these sizes, over and over."""
    utterances, found, at = Utterances(ToldRecogniser().speech), [], 0
    for index in range(10**6):
        end = at + sizes[index % len(sizes)]
        found += utterances.add(samples[at:end], last=end >= len(samples))
        at = end
        if at >= len(samples):
            return found


def test_utterances_end_at_pauses_and_keep_their_edges():
    said = [quiet(1), tone(0.8), quiet(0.3), tone(0.4), quiet(1.2), tone(0.5), quiet(0.2)]
    found = cut(np.concatenate(said), [800])
    assert [round(len(each) / RATE, 1) for each in found] == pytest.approx([2.1, 1.0], abs=0.15)


def test_silence_and_clicks_are_no_utterances_and_endless_speech_is_cut():
    assert cut(quiet(20), [800]) == []
    assert cut(np.concatenate([quiet(1), tone(0.02), quiet(2)]), [800]) == []
    lengths = [len(each) / RATE for each in cut(tone(30), [800])]
    assert all(length < 13 for length in lengths) and sum(lengths) >= 30


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=5))
def test_the_pieces_that_audio_comes_in_change_nothing(sizes):
    said = np.concatenate([quiet(0.5), tone(0.7), quiet(0.8), tone(0.3), quiet(0.7)])
    whole, pieces = cut(said, [800]), cut(said, [max(sum(sizes), 200), *(200 + s for s in sizes)])
    assert len(whole) == len(pieces) == 2
    for one, other in zip(whole, pieces, strict=True):
        assert abs(len(one) - len(other)) <= 8 * 512


# -- sentences --------------------------------------------------------------------------------


def test_stop_is_a_word_and_no_part_of_one():
    assert all(map(says_stop, ("Stop.", "No, STOP!", "please stop the robot")))
    assert not any(map(says_stop, ("put it on top", "unstoppable", "stops", "")))


def test_sentences_are_compared_by_their_words():
    known = [RED_ON_GREEN, "put the milk into the bin"]
    assert same("Stack the red block on the green block.", known) == RED_ON_GREEN
    assert same("Put the milk in to the bin!", known) == known[1]
    assert same("Stack the red block.", known) == ""
    assert alike(["stag the red lock on the green block"], known, 3)[0] == RED_ON_GREEN
    assert alike(["stag the red lock on the green block"], known, 1) == [RED_ON_GREEN]
    assert alike(["hm"], known, 3) == []


# -- what is missing --------------------------------------------------------------------------


def test_missing_packages_are_named_and_auto_goes_without(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        recogniser.importlib.util,
        "find_spec",
        lambda name: None if name == "faster_whisper" else find(name),
    )
    assert not wanted("auto") and not wanted("off")
    for setting in ("auto", str(tmp_path)):
        with pytest.raises(VlaError, match=r"faster-whisper.*\n?.*requirements/speech\.txt"):
            open_recogniser(setting)
    with pytest.raises(VlaError, match="faster-whisper"):
        StudioSettings(speech=str(tmp_path)).check()


def test_other_weights_in_the_package_are_refused(monkeypatch, tmp_path):
    (tmp_path / "model.bin").write_bytes(b"another")
    monkeypatch.setattr(recogniser, "weights", lambda setting: tmp_path)
    with pytest.raises(VlaError, match="not those that were tested"):
        open_recogniser()


def test_listening_without_its_packages_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(recogniser, "NEEDED", ("nobodys_package",))
    assert main(["listen", "--file", str(DATA / "stop.ogg")]) == 2
    assert "requirements/speech.txt" in capsys.readouterr().err


def test_a_missing_microphone_library_is_named(monkeypatch):
    from vla_studio.speech.microphone import microphone

    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(VlaError, match="sounddevice and PortAudio"), microphone():
        pass


# -- the recogniser itself --------------------------------------------------------------------

real = pytest.mark.skipif(
    not is_installed(), reason="nothing recognises speech: pip install -r requirements/speech.txt"
)


@pytest.fixture(scope="module")
def whisper():
    return open_recogniser()


def heard(whisper, name, known):
    """What is understood of a file, all that is between pauses."""
    utterances = Utterances(whisper.speech).add(read_audio(DATA / name), last=True)
    return [whisper.hear(each, known) for each in utterances]


@real
def test_a_sentence_in_use_is_recognised(whisper):
    (found,) = heard(whisper, "red_on_green.ogg", [GREEN_ON_RED, RED_ON_GREEN, "open the door"])
    assert found.known == RED_ON_GREEN and not found.stop


@real
def test_a_sentence_is_never_taken_for_its_opposite(whisper):
    (found,) = heard(whisper, "red_on_green.ogg", [GREEN_ON_RED, "stack the red block"])
    assert found.known == "" and "red block" in found.text


@real
def test_stop_is_recognised(whisper):
    assert [each.stop for each in heard(whisper, "stop.ogg", [RED_ON_GREEN])] == [True]


@real
def test_silence_and_noise_say_nothing(whisper):
    rng = np.random.default_rng(0)
    for noise in (quiet(3), rng.normal(0, 0.1, 3 * RATE).astype(np.float32), tone(3, 0.3)):
        found = Utterances(whisper.speech).add(noise, last=True)
        assert all(whisper.hear(each, [RED_ON_GREEN]) is None for each in found)
        assert whisper.hear(noise, [RED_ON_GREEN]) is None


@real
def test_a_damaged_folder_of_weights_is_refused(tmp_path):
    with pytest.raises(VlaError, match="no Whisper weights"):
        StudioSettings(speech=str(tmp_path)).check()
    for name in ("model.bin", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(VlaError, match="cannot be loaded"):
        open_recogniser(str(tmp_path))


# -- listening --------------------------------------------------------------------------------


class Told:
    """`Actions` that keeps what it is told."""

    def __init__(self):
        self.told = []

    def known(self):
        return [RED_ON_GREEN]

    def said(self, text):
        self.told.append(("said", text))

    def stop(self):
        self.told.append(("stop",))

    def count(self, sentence, seconds):
        self.told.append(("count", seconds))

    def instruct(self, sentence):
        self.told.append(("instruct", sentence))


def listened(*heard, seconds, wait):
    """What comes of utterances, each `wait` seconds after the one before."""
    told, clock = Told(), [0.0]
    listening = Listening(ToldRecogniser(*heard), told, seconds, lambda: clock[0])
    for _ in heard:
        listening.take(np.concatenate([tone(0.5), quiet(1.5)]))
        for _ in range(int(wait / 0.5)):
            clock[0] += 0.5
            listening.look()
    return told.told


MEANT = Heard("Stack the red block...", RED_ON_GREEN)


def test_a_sentence_in_use_becomes_the_instruction_after_the_countdown():
    counted = [("count", n) for n in (3, 2, 1)]
    expected = [("said", RED_ON_GREEN), *counted, ("instruct", RED_ON_GREEN)]
    assert listened(MEANT, seconds=3, wait=4) == expected


def test_whatever_is_said_next_cancels_and_stop_stops_at_once():
    told = listened(MEANT, Heard("Stop.", stop=True), seconds=3, wait=1)
    assert told[-3:] == [("count", 0), ("said", "Stop."), ("stop",)]
    told = listened(MEANT, Heard("no, the blue one"), seconds=3, wait=1)
    assert told[-2:] == [("count", 0), ("said", "no, the blue one")]


def test_without_the_flag_and_for_other_sentences_text_is_all():
    assert listened(MEANT, seconds=0, wait=4) == [("said", RED_ON_GREEN)]
    assert listened(Heard("Open it."), None, seconds=3, wait=4) == [("said", "Open it.")]


@real
@pytest.mark.parametrize("name", ["red_on_green", "stop"])
def test_vla_listen_tells_the_graph_what_a_file_says_and_stops(name):
    with contextlib.closing(NodeGraph(StudioNode, {})) as graph:  # not started: for its client
        graph.patience = 120.0
        told = []
        for topic in ("instruction/audio_text", "instruction"):
            graph.client.create_subscription(
                String, topic, lambda message: told.append(message.data), qos.CHUNK
            )

        def enable(request, response):
            told.append(request.data)
            return response

        graph.client.create_service(SetBool, "command/enable", enable)
        words = ["listen", "--file", str(DATA / f"{name}.ogg"), "--instruct", "--countdown", "1"]
        words += ["--sentence", RED_ON_GREEN, "--namespace", graph.node.get_namespace()]
        process = subprocess.Popen(
            [sys.executable, "-m", "vla_inference.cli.main", *words],
            env=environment(domain()),
            stdout=subprocess.PIPE,
            text=True,
        )
        graph.until(lambda: process.poll() is not None, "the end of the file")
        graph.until(lambda: len(told) == 2, "what it says")
        said, _ = process.communicate()
    if name == "stop":
        assert told == ["Stop.", False] and "stopped" in said
    else:
        assert told == [RED_ON_GREEN, RED_ON_GREEN] and f"in 1 s: {RED_ON_GREEN}" in said
    assert process.returncode == 0
