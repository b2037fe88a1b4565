"""Tests of recording and live validation: each episode goes into its own bag."""

from __future__ import annotations

import array
import json
import os
import random
import signal

import numpy as np
import pytest
from bags import Maker, write_bags
from graphs import NodeGraph
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lifecycle_msgs.msg import Transition
from rclpy.time import Time
from rosbags.rosbag2 import WriterError
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from std_msgs.msg import Float32, String
from std_srvs.srv import SetBool

from vla_inference.errors import DataError, VlaError
from vla_inference.ros import qos
from vla_inference.ros.images import rgb_to_image
from vla_inference.ros.messages import chunk_to_msg
from vla_inference.types import ActionChunk, eef_delta_spec
from vla_msgs.msg import ActionChunk as ActionChunkMsg
from vla_msgs.msg import EpisodeStatus, InferenceStatus
from vla_training.cli.record import record
from vla_training.datasets.bag.files import message_types as types
from vla_training.datasets.bag.reader import BagSet
from vla_training.datasets.bag.streams import NS
from vla_training.datasets.bag.writer import _parts
from vla_training.ros.record_node import RecordNode
from vla_training.ros.recording import ReceivedMessage, Recording
from vla_training.ros.validation_node import ValidationNode


def run_of(episodes: int, frames: int, rng: random.Random) -> list[ReceivedMessage]:
    """Messages of a run in lock step, each topic late by times of its own but in order."""
    m, at, heard = Maker(), 100 * NS, []
    last = {"episode": 0, "image": 0, "action": 0}

    def say(role, kind, **fields):
        # later than made, never before what was said on the topic before; 0.3 s at most
        last[role] = max(at + rng.randrange(NS * 3 // 10), last[role] + 1)
        heard.append(m.heard(role, kind, at, last[role], **fields))

    still = {"parts": _parts(m, eef_delta_spec()), "dt": 0.05, "actions": np.zeros(7)}
    for index in range(episodes):
        at += NS // 10
        say("episode", types.EPISODE, index=index, step=0, outcome="running")
        for t in range(frames):
            at += NS // 10
            pixel = np.full(256, 16 * index + t, np.uint8)
            say("image", types.IMAGE, encoding="mono8", height=16, width=16, step=16, data=pixel)
            say("action", types.CHUNK, instruction=f"do {index}", **still)
            done = t == frames - 1
            say(
                "episode",
                types.EPISODE,
                index=index,
                step=t + 1,
                done=done,
                outcome="success" if done else "running",
            )
    return sorted(heard, key=lambda h: h.log)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 4))
@example(1, 3, 1)  # three episodes are over before the first one's image is there
def test_every_message_gets_into_its_episode_however_late(tmp_path_factory, seed, count, frames):
    folder = tmp_path_factory.mktemp("run") / "bags"
    recording = Recording(folder)
    for message in run_of(count, frames, random.Random(seed)):
        recording.hear(message)
    recording.close()
    read = BagSet(folder)
    assert len(read) == count and recording.late == 0
    for index, episode in enumerate(read):
        grey = [int(s.observation.images["image"][0, 0, 0]) for s in episode.steps]
        assert grey == [16 * index + t for t in range(frames)]
        assert episode.metadata["outcome"] == "success"
        assert episode.metadata["episode_index"] == index
        assert episode.instructions == [f"do {index}"] * frames
    assert sorted(p.name for p in folder.iterdir()) == [f"episode_{i:06d}" for i in range(count)]


def test_an_unfinished_episode_is_kept_and_numbers_go_on(tmp_path):
    for outcome in ("first", "second"):
        recording = Recording(tmp_path, images="raw", storage="sqlite3")
        for message in run_of(1, 3, random.Random(0))[:-2]:
            recording.hear(message)
        assert recording.recording, outcome
        recording.close()
    read = BagSet(tmp_path)
    assert [read[i].metadata["outcome"] for i in range(2)] == ["unfinished"] * 2
    assert [read.bag_path(i).name for i in range(2)] == ["episode_000000", "episode_000001"]
    with pytest.raises(VlaError, match="unknown split 'x'; use status, service, off"):
        Recording(tmp_path, split="x")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write into"):
        Recording(tmp_path / "file")


def test_what_a_killed_recorder_leaves_can_be_read(tmp_path):
    """Whatever their process numbers: here all three have the same one, as in a container."""
    killed = as_process_1(tmp_path, 60)
    with pytest.raises(DataError, match=r"another recorder writes into .*; end it, or choose"):
        Recording(tmp_path)
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    second = as_process_1(tmp_path, 3, ends=True)
    assert os.waitpid(second, 0)[1] == 0
    recording = Recording(tmp_path)
    (left,) = recording.left_behind
    recording.close()
    read = BagSet(left)
    assert left.name == "episode_000000" and len(read[0]) > 50
    assert any("the recorder may have been killed" in n for n in read.notes)
    assert sorted(p.name for p in tmp_path.iterdir()) == [left.parent.name, "episode_000000"]


def as_process_1(folder, frames: int, ends: bool = False) -> int:
    """A recorder that takes itself for process 1; it has written nearly all when this returns."""
    ready, told = os.pipe()
    child = os.fork()
    if child:
        os.close(told)
        assert os.read(ready, 1) == b"x"
        os.close(ready)
        return child
    os.getpid = lambda: 1
    recording = Recording(folder)
    for message in run_of(1, frames, random.Random(0))[: None if ends else -15]:
        recording.hear(message)
    if ends:
        recording.close()
    else:
        recording._current.bag._writer.storage.close_chunk()  # as happens each MB
        recording._current.bag._writer.storage.bio.flush()
    os.write(told, b"x")
    while not ends:
        signal.pause()
    os._exit(0)


def test_a_complete_bag_takes_the_next_free_name_and_is_never_removed(tmp_path, monkeypatch):
    recording = Recording(tmp_path)
    messages = run_of(2, 3, random.Random(0))
    for message in messages:
        recording.hear(message)
    for taken in ("episode_000000", "episode_000002"):  # by somebody else, meanwhile
        (tmp_path / taken).mkdir()
        (tmp_path / taken / "precious").write_text("")
    (tmp_path / "episode_000003").write_text("")
    recording.close()
    assert [p.name for p in sorted(tmp_path.iterdir())] == [f"episode_00000{i}" for i in range(5)]
    assert len(BagSet(tmp_path / "episode_000004")) == 1

    recording = Recording(tmp_path)
    for message in messages:
        recording.hear(message)
    monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError(5, "I/O error")))
    with pytest.raises(OSError, match="I/O error"):
        recording.close()
    monkeypatch.undo()
    left = list(tmp_path.glob(".recording-*/episode_*"))
    assert len(left) == 2 and all(len(BagSet(path)) == 1 for path in left)


# -- in a graph -------------------------------------------------------------------------------


class RecordGraph(NodeGraph):
    def __init__(self, output, camera=qos.IMAGE_OUTPUT, **parameters):
        super().__init__(RecordNode, {"output": str(output), **parameters})
        make = self.client.create_publisher
        self.images = make(Image, "image", camera)
        self.chunks = make(ActionChunkMsg, "action", qos.CHUNK)
        self.episodes = make(EpisodeStatus, "sim/episode", qos.CHUNK)
        self.texts = make(String, "instruction", qos.LATCHED)
        self.rewards = make(Float32, "reward", qos.CHUNK)
        assert self.change(Transition.TRANSITION_CONFIGURE), self.node.failure
        assert self.change(Transition.TRANSITION_ACTIVATE), self.node.failure
        everything = (self.images, self.chunks, self.episodes, self.texts, self.rewards)
        self.until(lambda: all(p.get_subscription_count() for p in everything), "the recorder")
        self.stamp = 5 * NS

    def play(self, index: int, images: list[np.ndarray]) -> list[list[float]]:
        self.texts.publish(String(data=f"task {index}"))
        self.status(index, 0)
        done = []
        for t, image in enumerate(images):
            self.stamp += NS // 20
            stamp = Time(nanoseconds=self.stamp).to_msg()
            self.images.publish(rgb_to_image(image, stamp, "front_optical"))
            done.append([0.001 * t, 0.1 / 3, -index])
            chunk = ActionChunk([[*done[-1], 0, 0, 0, 1]], eef_delta_spec())
            msg = chunk_to_msg(chunk, stamp, instruction=f"task {index}", model="m")
            msg.actions[:3] = array.array("d", done[-1])  # float64, as others may send them
            self.chunks.publish(msg)
            self.rewards.publish(Float32(data=float(t)))
            self.idle(0.02)
            self.status(index, t + 1, t == len(images) - 1)
        return done

    def status(self, index, step, done=False):
        self.stamp += NS // 100
        msg = EpisodeStatus(
            index=index,
            step=step,
            done=done,
            task="T",
            seed=9,
            outcome="success" if done else "running",
        )
        msg.header.stamp = Time(nanoseconds=self.stamp).to_msg()
        self.episodes.publish(msg)


def test_episodes_of_a_graph_pixel_for_pixel(tmp_path):
    rng = np.random.default_rng(0)
    graph = RecordGraph(tmp_path / "bags", episodes=2)
    try:
        wanted = []
        for index in range(2):
            images = [rng.integers(0, 256, (32, 40, 3), np.uint8) for _ in range(3)]
            wanted.append((images, graph.play(index, images)))
        graph.until(lambda: graph.node.exit_status == 0, "both bags")
    finally:
        graph.close()
    read = BagSet(tmp_path / "bags")
    assert read.cameras() == ["front"] and len(read) == 2
    for index, (images, done) in enumerate(wanted):
        np.testing.assert_array_equal(read.actions(index)[:, :3], done)
        assert read[index].instructions == [f"task {index}"] * 3
        assert read[index].metadata["seed"] == 9
        for step, image in zip(read[index].steps, images, strict=True):
            np.testing.assert_array_equal(step.observation.images["front"], image)


def test_messages_that_cannot_be_read_are_left_out_and_the_rest_recorded(tmp_path):
    graph = RecordGraph(tmp_path / "bags", split="off")
    try:
        images = [np.full((16, 16, 3), 10 * i, np.uint8) for i in range(3)]
        broken = rgb_to_image(images[0], Time(nanoseconds=graph.stamp).to_msg(), "front_optical")
        broken.height = 4000  # its data are not what it says
        graph.images.publish(broken)
        topic = graph.images.topic_name
        graph.until(lambda: graph.node.refused[topic] == 1, "the refusal")
        short = graph.node._recorded[topic][0].callback
        short(b"\0\1\0\0")  # no header in it: rclpy hands raw messages over as they come
        assert graph.node.refused[topic] == 2 and graph.node.exit_status is None
        before = broken.header.stamp
        before.sec = -1
        graph.images.publish(rgb_to_image(images[0], before, "front_optical"))
        graph.play(0, images)
        heard = graph.node._recording._current.bag.messages
        graph.until(lambda: sum(n for t, n in heard.items() if "/action" in t) == 3, "the chunks")
    finally:
        graph.close()
    read = BagSet(tmp_path / "bags")
    assert len(read[0]) == 3 and graph.node.exit_status is None


def test_a_recorder_that_cannot_write_ends_with_one_line(tmp_path, capfd):
    graph = RecordGraph(tmp_path / "bags", split="off")
    try:

        def full(*_):
            raise WriterError("no space left")

        graph.texts.publish(String(data="begin"))
        graph.until(lambda: graph.node._recording.recording, "a bag")
        graph.node._recording._current.bag._writer.write = full
        graph.rewards.publish(Float32(data=1.0))
        graph.until(lambda: graph.node.exit_status == 2, "the end")
    finally:
        graph.close()
    said = capfd.readouterr().err
    assert "cannot record: no space left" in said and "Traceback" not in said


def test_episodes_by_hand(tmp_path):
    graph = RecordGraph(tmp_path / "bags", qos.IMAGE_INPUT, split="service")  # best effort
    try:

        def ask(data):
            return graph.call(SetBool, "recorder/record", SetBool.Request(data=data))

        assert not ask(False).success
        assert ask(True).message == "episode_000000"
        assert "is being recorded" in ask(True).message
        graph.stamp = graph.client.get_clock().now().nanoseconds
        graph.play(0, [np.zeros((16, 16, 3), np.uint8)] * 2)
        heard = graph.node._recording._current.bag.messages
        # Four steps' worth: each topic is heard when its turn comes.
        graph.until(
            lambda: sum(n for t, n in heard.items() if "/image" in t or "/action" in t) == 4,
            "both images and chunks",
        )
        assert ask(False).success
    finally:
        graph.close()
    assert len(BagSet(tmp_path / "bags")[0]) == 2


def test_by_a_simulations_time_which_may_stand_still(tmp_path, monkeypatch):
    graph = RecordGraph(tmp_path / "bags", split="service", episodes=1, use_sim_time=True)
    try:
        clock = graph.client.create_publisher(Clock, "/clock", 1)
        graph.until(lambda: clock.get_subscription_count(), "the recorder's clock")
        clock.publish(Clock(clock=Time(nanoseconds=graph.stamp).to_msg()))
        node = graph.node
        graph.until(lambda: node.get_clock().now().nanoseconds == graph.stamp, "the time")
        assert graph.call(SetBool, "recorder/record", SetBool.Request(data=True)).success
        graph.play(0, [np.zeros((16, 16, 3), np.uint8)] * 2)
        heard = node._recording._current.bag.messages
        graph.until(lambda: sum(n for t, n in heard.items() if "/action" in t) == 2, "the chunks")
        assert graph.call(SetBool, "recorder/record", SetBool.Request(data=False)).success
        graph.until(lambda: node.exit_status == 0, "the end, though no time passes")
    finally:
        graph.close()
    (episode,) = BagSet(tmp_path / "bags")
    assert len(episode) == 2
    asked = []
    monkeypatch.setattr("vla_training.ros.record_node.main", lambda words: asked.append(words))
    record(tmp_path / "more", use_sim_time=True)
    record(tmp_path / "more")
    assert ["use_sim_time:=true" in words for words in asked] == [True, False]


class Model:
    """Answers each image with what was recorded, but for those of `silent`."""

    def __init__(self, graph: NodeGraph, bags: BagSet, silent=()):
        self.answers = {
            int(s): a
            for i in range(len(bags))
            for s, a in zip(bags.episode(i).stamps, bags.actions(i), strict=True)
            if int(s) not in silent
        }
        self.out = graph.client.create_publisher(ActionChunkMsg, "action", qos.CHUNK)
        self.status = graph.client.create_publisher(
            InferenceStatus, "inference/status", qos.LATCHED
        )
        graph.client.create_subscription(Image, "image", self.see, qos.IMAGE_OUTPUT)
        self.heard = []
        graph.client.create_subscription(
            String, "instruction", lambda m: self.heard.append(m.data), qos.LATCHED
        )

    def start(self, graph: NodeGraph) -> None:
        """The validation hears an active model from here on."""
        assert graph.change(Transition.TRANSITION_CONFIGURE), graph.node.failure
        assert graph.change(Transition.TRANSITION_ACTIVATE), graph.node.failure
        graph.until(lambda: self.out.get_subscription_count(), "the validation")
        self.status.publish(InferenceStatus(state=InferenceStatus.ACTIVE))

    def see(self, msg: Image) -> None:
        stamp = Time.from_msg(msg.header.stamp).nanoseconds
        if stamp not in self.answers:
            return
        answer = ActionChunk(self.answers[stamp][None], eef_delta_spec())
        chunk = chunk_to_msg(answer, msg.header.stamp)
        chunk.produced = Time(nanoseconds=stamp + NS // 25).to_msg()
        self.out.publish(chunk)


def test_a_bag_is_played_into_the_graph_and_its_answers_compared(tmp_path):
    path = write_bags(tmp_path / "set", (4, 3))
    bags = BagSet(path)
    silent = {int(bags.episode(1).stamps[1])}
    parameters = {
        "bag": str(path),
        "wait": True,
        "answer_timeout": 2.0,
        "rate": 5.0,
        "output": str(tmp_path / "out"),
        "min_coverage": 0.99,
    }
    graph = NodeGraph(ValidationNode, parameters)
    try:
        model = Model(graph, bags, silent)
        model.start(graph)
        graph.until(lambda: graph.node.exit_status is not None, "the end")
    finally:
        graph.close()
    assert graph.node.exit_status == 1  # 6 of 7 images were answered
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    v = found["validation"]
    assert found["mean"]["accuracy"] == pytest.approx(1, abs=1e-6)
    assert (v["unanswered"], found["mean"]["timesteps"]) == (1, 6) and model.heard == ["go"]
    assert v["input_age_ms"]["median"] == pytest.approx(40)
    assert found["failures"] == ["coverage 0.8571 is below 0.99"]
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("wait", [True, False])
def test_the_clock_does_not_jump_before_the_last_answer_of_an_episode(wait, tmp_path):
    """Episodes are an hour apart; the model takes 0.15 s and reads the clock when it is done."""
    path = write_bags(tmp_path / "set", (2, 2))
    parameters = {"bag": str(path), "wait": wait, "rate": 0.2, "answer_timeout": 20.0}
    graph = NodeGraph(ValidationNode, parameters)
    try:
        model = Model(graph, BagSet(path))
        clock, late = [], []
        graph.client.create_subscription(Clock, "/clock", clock.append, qos.CHUNK)
        answer = model.out.publish

        def slowly(chunk: ActionChunkMsg) -> None:
            timer = graph.client.create_timer(0.15, lambda: done(timer, chunk))

        def done(timer, chunk: ActionChunkMsg) -> None:
            graph.client.destroy_timer(timer)
            chunk.produced = clock[-1].clock
            late.append(chunk)
            answer(chunk)

        model.out.publish = slowly
        model.start(graph)
        graph.until(lambda: graph.node.exit_status is not None, "the end")
    finally:
        graph.close()
    v = graph.node.statistics["validation"]
    assert v["coverage"] == 1 and len(late) == 4
    assert v["input_age_ms"]["max"] < 10_000


def test_it_listens_while_somebody_else_plays(tmp_path):
    path = write_bags(tmp_path / "set", (3,))
    bags = BagSet(path)
    graph = NodeGraph(ValidationNode, {"bag": str(path), "play": False, "min_accuracy": 0.99})
    try:
        model = Model(graph, bags)
        model.start(graph)
        for bad in ("header.stamp", "produced"):  # no time: left out, and it listens on
            chunk, (field, *more) = ActionChunkMsg(), bad.split(".")
            inner = getattr(getattr(chunk, field), more[0]) if more else chunk.produced
            inner.sec = -1
            model.out.publish(chunk)
        graph.until(lambda: graph.node.refused["action"] == 2, "two refusals")
        for stamp in bags.episode(0).stamps.tolist():
            header = Time(nanoseconds=stamp).to_msg()
            model.see(rgb_to_image(np.zeros((16, 16, 3), np.uint8), header, "x"))
        graph.until(lambda: graph.node.exit_status is not None, "the end")
    finally:
        graph.close()
    assert graph.node.exit_status == 0
    assert graph.node.statistics["validation"]["coverage"] == 1


def test_a_bag_that_is_not_there_leaves_the_node_unconfigured(tmp_path):
    graph = NodeGraph(ValidationNode, {"bag": str(tmp_path / "nowhere")})
    try:
        assert not graph.change(Transition.TRANSITION_CONFIGURE)
        assert "there is no bag at" in graph.node.failure
    finally:
        graph.close()
