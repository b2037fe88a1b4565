"""Tests of bags in which a person takes over: who acted, and what the person did."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bags import put_image
from geometry_msgs.msg import TwistStamped
from graphs import NodeGraph
from hypothesis import given, settings
from hypothesis import strategies as st
from lifecycle_msgs.msg import Transition
from rclpy.parameter import Parameter
from rclpy.time import Time
from recording_fuzz import fuzz_recordings
from sensor_msgs.msg import Image
from std_srvs.srv import SetBool

from vla_inference.episodes.estimates import estimates
from vla_inference.episodes.interventions import interventions
from vla_inference.errors import DataError
from vla_inference.ros import qos
from vla_inference.ros.command.node import CommandNode
from vla_inference.ros.images import rgb_to_image
from vla_inference.ros.messages import chunk_to_msg
from vla_inference.types import ActionChunk, eef_delta_spec, joint_spec
from vla_msgs.msg import ActionChunk as ActionChunkMsg
from vla_msgs.msg import CommandSource
from vla_training.cli.convert import LOSSLESS
from vla_training.conversion.convert import convert
from vla_training.datasets import open_dataset
from vla_training.datasets.bag.episode_bag import EpisodeBag
from vla_training.datasets.bag.files import message_types as types
from vla_training.datasets.bag.reader import BagSet
from vla_training.datasets.bag.streams import NS, Stream
from vla_training.datasets.bag.takeover import HUMAN, MODEL, find_turns
from vla_training.datasets.bag.writer import _header, _parts
from vla_training.ros.record_node import RecordNode

SPEC = eef_delta_spec()
MS = NS // 1000
GREY = np.full((16, 16), 90, np.uint8)


class Bag:
    """A bag of images each `apart` ms, the first at 1 s, and what is said meanwhile.

    Times are ms after the first image.
    """

    def __init__(self, path, images=6, apart=50):
        self.bag, self.path = EpisodeBag(path), path
        for t in range(images):
            put_image(self.bag, "/image", self.at(apart * t), GREY)

    @staticmethod
    def at(ms):
        return NS + round(ms * MS)

    def chunk(self, topic, ms, *steps, spec=SPEC, **fields):
        header = _header(self.bag, self.at(ms), spec.frame)
        fields = {"parts": _parts(self.bag, spec), "dt": spec.dt, "header": header, **fields}
        actions = np.asarray(steps, np.float64).ravel()
        chunk = self.bag.make(types.CHUNK, actions=actions, **fields)
        self.bag.put(topic, types.CHUNK, self.at(ms), chunk)

    def model(self, images=6, apart=50, spec=SPEC):
        """The model moves by 1 m, to tell it from a person."""
        for t in range(images):
            self.chunk("/action", apart * t, np.ones(len(spec)), spec=spec, instruction="go")

    def source(self, ms, who):
        header = _header(self.bag, self.at(ms), "")
        source = self.bag.make(types.SOURCE, header=header, source=who)
        self.bag.put("/command/source", types.SOURCE, self.at(ms), source)

    def status(self, ms, **fields):
        status = self.bag.make(types.EPISODE, header=_header(self.bag, self.at(ms), ""), **fields)
        self.bag.put("/sim/episode", types.EPISODE, self.at(ms), status)

    def estimate(self, ms, progress, done):
        header = _header(self.bag, self.at(ms), "")
        told = {"instruction": "go", "progress": progress, "done": done}
        estimate = self.bag.make(types.TASK_ESTIMATE, header=header, **told)
        self.bag.put("/estimate", types.TASK_ESTIMATE, self.at(ms), estimate)

    def read(self, **options):
        self.bag.close({}, {})
        return BagSet(self.path, **options)


def delta(x, gripper=0.0):
    return [x, 0, 0, 0, 0, 0, gripper]


def test_an_estimate_holds_within_its_episode(tmp_path):
    bag = Bag(tmp_path / "bag")
    bag.model()
    for begin, end in ((-1, 110), (140, 260)):
        bag.status(begin, step=0, outcome="running")
        bag.status(end, step=3, done=True, outcome="success")
    bag.estimate(100, 1.0, 0.75)
    bag.estimate(200, 0.5, 0.25)
    first, second = (estimates(episode).tolist() for episode in bag.read())
    assert first == [[-1, -1], [-1, -1], [1.0, 0.75]]
    assert second == [[-1, -1], [0.5, 0.25], [0.5, 0.25]]


# -- who acted --------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_larger_part_of_an_images_time_tells_who_acted(data):
    gaps = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    times = np.cumsum(gaps) * MS
    shifts = sorted(data.draw(st.lists(st.integers(0, 200), max_size=6)))
    who = data.draw(st.lists(st.sampled_from([MODEL, HUMAN]), min_size=len(shifts)))
    stamps = np.array(shifts, np.int64) * MS
    turns = find_turns(Stream(stamps, stamps, who[: len(shifts)], True), times)
    ends = np.append(times[1:], times[-1] + (np.median(np.diff(times)) if gaps[1:] else 50 * MS))
    for i, (begin, end) in enumerate(zip(times, ends, strict=True)):
        moments = np.arange(begin, end, MS // 2) + MS // 4  # between all that may happen
        last = np.searchsorted(stamps, moments, "right") - 1
        human = [k >= 0 and who[k] == HUMAN for k in last]
        assert turns.acted[i] == (2 * sum(human) >= len(human) and any(human))
        assert begin <= turns.begins[i] <= turns.ends[i] <= end or not turns.acted[i]


def test_a_hand_over_there_and_back(tmp_path):
    bag = Bag(tmp_path / "bag")
    bag.model()
    for ms, who in ((-400, MODEL), (120, HUMAN), (225, MODEL)):  # 30 of 50 ms, 25 of 50 ms
        bag.source(ms, who)
    for ms in (120, 170, 220):
        bag.chunk("/human_action", ms, delta(0.01), delta(0.01))
    episode = bag.read()[0]
    assert interventions(episode).tolist() == [False, False, True, True, True, False]
    moved = episode.actions[:, 0]
    np.testing.assert_allclose(moved, [1, 1, 0.01, 0.01, 0.01, 1], rtol=1e-6)
    assert episode.instructions == ["go"] * 6


def test_nothing_says_who_acted(tmp_path):
    bag = Bag(tmp_path / "bag")
    bag.model()
    data = bag.read()
    assert interventions(data[0]) is None and data.carried() == frozenset()


def test_an_unknown_source_is_refused(tmp_path):
    bag = Bag(tmp_path / "bag")
    bag.model()
    bag.source(0, "dog")
    with pytest.raises(DataError, match="who commands is 'dog' in a CommandSource"):
        bag.read()


# -- what a person did ------------------------------------------------------------------------


def test_chunks_of_another_rate_add_up(tmp_path):
    """Steps of 20 ms, each 40 ms a chunk; images and actions of 100 ms."""
    quick = eef_delta_spec(dt=0.02)
    bag = Bag(tmp_path / "bag", 4, 100)
    bag.model(4, 100, eef_delta_spec(dt=0.1))
    bag.source(0, MODEL)
    bag.source(100, HUMAN)
    for ms in range(105, 290, 40):
        bag.chunk("/human_action", ms, *[delta(0.002, 1)] * 4, spec=quick)
    bag.chunk("/human_action", 290, *[delta(0, 1)] * 4, spec=quick)  # let go
    data = bag.read()
    assert data[0].actions[:, 0] == pytest.approx([1, 0.0095, 0.009, 0])
    assert interventions(data[0]).tolist() == [False, True, True, True]


def test_a_person_of_whom_nothing_was_recorded_is_left_out(tmp_path):
    bag = Bag(tmp_path / "bag")
    bag.model()
    bag.source(0, MODEL)
    bag.source(200, HUMAN)
    data = bag.read()
    assert interventions(data[0]).tolist() == [False] * 4
    assert any("2 of 6 images left out: a person commanded, and no" in n for n in data.notes)


def test_silence_is_standing_still(tmp_path):
    bag = Bag(tmp_path / "bag")
    bag.source(0, HUMAN)
    bag.model()
    bag.chunk("/human_action", 0, delta(0.01, 1), delta(0.01, 1))
    actions = bag.read()[0].actions
    np.testing.assert_allclose(actions[:, 0], [0.01, 0.01, 0, 0, 0, 0], atol=1e-9)
    assert actions[:, 6].tolist() == [1] * 6  # the gripper stays


def test_a_person_who_only_moves_leaves_the_gripper(tmp_path):
    arm = replace(SPEC, parts=SPEC.parts[:1])
    bag = Bag(tmp_path / "bag")
    bag.model()
    bag.source(0, MODEL)
    bag.source(100, HUMAN)
    for t in range(2, 6):
        bag.chunk("/human_action", 50 * t, delta(0.01)[:6], spec=arm)
    actions = bag.read()[0].actions
    assert actions[:, 6].tolist() == [1] * 6 and actions[5, 0] == np.float32(0.01)


def test_a_teleoperated_episode_needs_no_model(tmp_path):
    bag = Bag(tmp_path / "bag", 6, 100)
    twist = bag.bag.make(types.TWIST, header=_header(bag.bag, bag.at(0), "base"))
    bag.bag.put("/delta_twist", types.TWIST, bag.at(0), twist)  # what was made of it
    for t in range(12):
        bag.chunk("/human_action", 50 * t + 7, *[delta(0.01, t % 2)] * 3)
    data = bag.read()
    episode = data[0]
    assert data.spec.dt == 0.1 and data.carried() == {"intervention"}
    assert interventions(episode).all() and len(episode) == 6
    np.testing.assert_allclose(episode.actions[1:, 0], 0.02, rtol=1e-6)
    assert episode.actions[0, 0] == pytest.approx(0.0186)


def test_joints_follow_the_last_target_and_other_parts_are_left_out(tmp_path):
    spec = joint_spec({"arm": ("a", "b")}, ("gripper",))
    bag = Bag(tmp_path / "bag")
    bag.model(spec=spec)
    bag.source(0, MODEL)
    bag.source(50, HUMAN)
    bag.chunk("/human_action", 60, [0.1, 0.2, 0], spec=spec)
    bag.chunk("/human_action", 120, [0.3, 0.4, 1], spec=spec)
    bag.chunk("/human_action", 210, delta(0.01))  # nothing that this arm's chunks have
    data = bag.read()
    np.testing.assert_allclose(
        data[0].actions, [[1, 1, 1], [0.1, 0.2, 0], [0.3, 0.4, 1], [0.3, 0.4, 1]], rtol=1e-6
    )
    assert any("2 of 6 images left out: a person's action of other parts" in n for n in data.notes)


def test_a_bad_chunk_of_a_person_leaves_out_its_images_alone(tmp_path):
    bag = Bag(tmp_path / "bag")
    bag.model()
    bag.source(100, HUMAN)
    bag.source(200, MODEL)
    bag.chunk("/human_action", 100, delta(float("nan")))
    bag.chunk("/human_action", 150, delta(0.01))
    data = bag.read()
    assert interventions(data[0]).tolist() == [False, False, True, False, False]
    assert any("1 of 6 images left out: a chunk with a number that" in n for n in data.notes)


def test_rotations_come_in_the_models_convention(tmp_path):
    rpy = eef_delta_spec("rpy")
    bag = Bag(tmp_path / "bag")
    bag.model(spec=rpy)
    bag.source(-10, HUMAN)
    turn = [0, 0, 0, 0, 0, 0.04, 1]
    for t in range(12):
        bag.chunk("/human_action", 25 * t - 3, turn)
    data = bag.read()
    assert data.spec.rotation == "rpy"
    np.testing.assert_allclose(data[0].actions[:, 5], 0.04, rtol=1e-6)


# -- recorded ---------------------------------------------------------------------------------


def test_fuzzed_hand_overs_are_recorded_right(tmp_path):
    """In and between episodes, at any time, told late; a thousand in bench/results."""
    found = fuzz_recordings(60, 5, tmp_path)
    assert not found.wrong, found
    assert found.between_episodes > 5 and found.with_a_hand_over > 20 and found.by_hand > 50


def test_a_recorder_that_joins_late_hears_who_commands(tmp_path):
    graph = NodeGraph(RecordNode, {"output": str(tmp_path / "bags"), "split": "off"})
    try:
        make = graph.client.create_publisher
        source = make(CommandSource, "command/source", qos.HISTORY)
        images, chunks = (
            make(Image, "image", qos.IMAGE_OUTPUT),
            make(ActionChunkMsg, "human_action", qos.CHUNK),
        )
        for number, who in enumerate((CommandSource.MODEL, CommandSource.HUMAN)):
            told = CommandSource(source=who, sequence=number)
            told.header.stamp = Time(nanoseconds=NS + number).to_msg()
            source.publish(told)
        assert graph.change(Transition.TRANSITION_CONFIGURE), graph.node.failure
        assert graph.change(Transition.TRANSITION_ACTIVATE), graph.node.failure
        graph.until(
            lambda: images.get_subscription_count() and chunks.get_subscription_count(), "it"
        )
        for t in range(3):
            stamp = Time(nanoseconds=5 * NS + t * NS // 20).to_msg()
            chunks.publish(
                chunk_to_msg(ActionChunk([delta(0.01 * t)], SPEC), stamp, model="keyboard")
            )
            images.publish(rgb_to_image(np.full((16, 16, 3), t, np.uint8), stamp, "front_optical"))
            graph.idle(0.05)
        heard = graph.node._recording._current.bag.messages
        graph.until(lambda: sum(heard.values()) == 8, "all messages")
    finally:
        graph.close()
    (episode,) = open_dataset(tmp_path / "bags")
    assert interventions(episode).all()
    assert episode.actions[:, 0].tolist() == [0, np.float32(0.01), np.float32(0.02)]


def test_what_a_killed_recorder_leaves_tells_who_acted_too(tmp_path):
    """A bag without metadata and an end, as a recorder that was killed leaves it."""
    bag = Bag(tmp_path / "bag")
    bag.model()
    bag.source(100, HUMAN)
    bag.chunk("/human_action", 100, *[delta(0.01)] * 4)
    bag.bag._writer.storage.close_chunk()
    bag.bag._writer.storage.bio.flush()
    (file,) = (tmp_path / "bag").glob("*.mcap")
    left = tmp_path / "left.mcap"
    left.write_bytes(file.read_bytes())
    data = BagSet(left)
    assert interventions(data[0]).tolist() == [False, False, True, True, True, True]
    assert data.carried() == {"intervention"}


class TakeoverGraph(NodeGraph):
    """A recorder and a command node; a camera, a model that moves ahead and a person who, in
    charge, moves back, each 20 times a second."""

    def __init__(self, output):
        super().__init__(RecordNode, {"output": str(output), "split": "service"})
        self.twists: list[tuple[int, float]] = []  # stamp, m/s
        self.sources: list[CommandSource] = []
        self.frames, self.person = 0, False
        patient = {"max_image_age": 5.0, "stall_timeout": 5.0, "human_timeout": 2.0}
        self.command = CommandNode(
            parameter_overrides=[Parameter(k, value=v) for k, v in patient.items()],
            context=self.context,
            namespace=self.client.get_namespace(),
        )
        self._node_executor.add_node(self.command)
        listen = self.client.create_subscription
        listen(TwistStamped, "delta_twist", self._twist, 100)
        listen(CommandSource, "command/source", self.sources.append, qos.HISTORY)
        make = self.client.create_publisher
        self.images = make(Image, "image", qos.IMAGE_OUTPUT)
        self.model = make(ActionChunkMsg, "action", qos.CHUNK)
        self.human = make(ActionChunkMsg, "human_action", qos.CHUNK)
        for node in (self.node, self.command):
            started = self._node_executor.create_task(node.start)
            self.until(started.done, "the start")
            assert started.result(), node.failure
        everybody = (self.images, 1), (self.model, 2), (self.human, 2)
        self.until(lambda: all(p.get_subscription_count() == n for p, n in everybody), "all")
        self.client.create_timer(0.05, self._send)

    def _twist(self, msg: TwistStamped) -> None:
        self.twists.append((Time.from_msg(msg.header.stamp).nanoseconds, msg.twist.linear.x))

    def _send(self) -> None:
        stamp = self.client.get_clock().now().to_msg()
        self.frames += 1
        image = np.full((16, 16, 3), self.frames % 250, np.uint8)
        self.images.publish(rgb_to_image(image, stamp, "front_optical"))
        ahead = ActionChunk([delta(0.004, 1)] * 8, SPEC)
        self.model.publish(chunk_to_msg(ahead, stamp, instruction="go", model="m"))
        if self.person:
            back = ActionChunk([delta(-0.002, 1)] * 3, SPEC)
            self.human.publish(chunk_to_msg(back, stamp, model="keyboard"))

    def ask(self, name: str, on: bool) -> str:
        return self.call(SetBool, name, SetBool.Request(data=on)).message

    def close(self) -> None:
        super().close()
        self.command.destroy_node()


def test_model_person_model_of_real_nodes_in_all_formats(tmp_path):
    graph = TakeoverGraph(tmp_path / "bags")
    try:
        graph.until(lambda: graph.frames > 3 and not graph.ask("command/enable", True), "motion")
        assert graph.ask("recorder/record", True) == "episode_000000"
        for turn in range(4):
            graph.person = turn % 2 == 0
            assert graph.ask("command/take_over", graph.person) == ""
            graph.idle(0.4 + 0.07 * turn)
        assert graph.ask("recorder/record", False) == ""
        graph.until(lambda: len(graph.sources) == 5, "who commanded")
        graph.idle(0.1)
    finally:
        graph.close()
    (episode,) = open_dataset(tmp_path / "bags")
    acted, moved = interventions(episode), episode.actions[:, 0]
    stamps = np.array([round(s.observation.stamp * NS) for s in episode.steps])
    assert len(episode) > 15 and 5 < acted.sum() < len(acted) - 5
    assert (moved[~acted] == np.float32(0.004)).all()
    np.testing.assert_allclose(moved[acted & (moved != 0)], -0.002, rtol=1e-3)
    shifts = np.array([Time.from_msg(m.header.stamp).nanoseconds for m in graph.sources])
    for time, x in graph.twists:  # what the robot was told, where it moves as one of the two does
        k = np.searchsorted(stamps, time, "right") - 1
        if 0 <= k < len(stamps) - 1 and min(abs(x - 0.08), abs(x + 0.04)) < 1e-3:
            after, before = min(stamps[k], time - NS // 5), max(stamps[k + 1], time)
            if not ((after < shifts) & (shifts < before)).any():
                assert (x < 0) == acted[k]
    for kind in ("lerobot", "rlds", "hdf5"):
        there = tmp_path / (f"{kind}.hdf5" if kind == "hdf5" else kind)
        convert(tmp_path / "bags", there, kind, workers=1, writing=LOSSLESS.get(kind))
        convert(there, tmp_path / f"{kind}_back", "bag", workers=1)
        for path in (there, tmp_path / f"{kind}_back"):
            (same,) = open_dataset(path)
            np.testing.assert_array_equal(interventions(same), acted)
            np.testing.assert_array_equal(same.actions, episode.actions)
            assert same.instructions == episode.instructions
            seen = [s.observation.images["front"] for e in (same, episode) for s in e.steps]
            np.testing.assert_array_equal(seen[: len(acted)], seen[len(acted) :])
