"""The estimate node in a graph: one estimate for each look, and none that would mislead."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from graphs import NodeGraph
from rclpy.time import Time
from sensor_msgs.msg import Image
from std_msgs.msg import String

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.estimate.estimator import Estimator, Eyes, Heads
from vla_inference.ros import qos
from vla_inference.ros.estimate.node import EstimateNode
from vla_inference.ros.images import rgb_to_image
from vla_msgs.msg import EpisodeStatus, TaskEstimate

NS = 10**9


@pytest.fixture(scope="module")
def estimator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimator")
    write_random_checkpoint(folder / "l1", "tiny", "l1")
    eyes = Eyes(folder / "l1", "cpu")
    torch.manual_seed(0)
    return Estimator(eyes, Heads.untrained(eyes.sizes), 0.5, {}).save(folder / "estimator")


class Graph(NodeGraph):
    def __init__(self, folder, **parameters):
        given = {"estimator": str(folder), "device": "cpu", **parameters}
        super().__init__(EstimateNode, given)
        self.heard: list[TaskEstimate] = []
        make = self.client.create_publisher
        self.images = make(Image, "image", qos.IMAGE_OUTPUT)
        self.texts = make(String, "inference/active_instruction", qos.LATCHED)
        self.episodes = make(EpisodeStatus, "sim/episode", qos.CHUNK)
        self.client.create_subscription(TaskEstimate, "estimate", self.heard.append, qos.CHUNK)

    def begin(self):
        assert self.start_node(), self.node.failure
        self.until(self.images.get_subscription_count, "the node's subscription")
        self.until(self.episodes.get_subscription_count, "the node's subscription")

    def tell(self, text):
        self.texts.publish(String(data=text))
        self.until(lambda: self.node._text == text, "the instruction")

    def episode(self, **fields):
        told = EpisodeStatus(**fields)
        self.episodes.publish(told)
        self.until(lambda: self.node._status == told, "the episode's status")

    def show(self, at: float, broken: bool = False, light: int | None = None):
        light = int(100 * at) % 256 if light is None else light
        image = np.full((64, 64, 3), light, np.uint8)
        msg = rgb_to_image(image, Time(nanoseconds=round(at * NS)).to_msg(), "front_optical")
        msg.height = 9000 if broken else msg.height
        self.images.publish(msg)


def test_it_looks_at_its_rate_and_tells_of_which_image(estimator):
    g = Graph(estimator)
    try:
        g.begin()
        g.show(9.0)  # no instruction yet: of nothing
        g.until(lambda: g.node._next > 9, "the image")
        g.tell("lift it")
        for step in range(9):  # 20 Hz, of which it takes 5
            g.show(10 + 0.05 * step)
            g.until(lambda n=1 + step // 4: len(g.heard) >= n, "the estimates")
        stamps = [Time.from_msg(m.header.stamp).nanoseconds for m in g.heard]
        assert stamps == [10 * NS, 10 * NS + NS // 5, 10 * NS + 2 * NS // 5]
        assert all(m.instruction == "lift it" and 0 <= m.done <= 1 for m in g.heard)
        assert {m.suggested for m in g.heard} <= {"success", "failure"}
        g.show(11.0, broken=True)  # which is one estimate less
        g.tell("put it down")
        g.show(3.0)  # another clock
        g.until(lambda: len(g.heard) == 4, "the next estimate")
        assert g.heard[-1].instruction == "put it down"
    finally:
        g.close()


def test_another_episode_of_the_same_instruction_has_no_past(estimator):
    g = Graph(estimator)
    try:
        g.begin()
        g.tell("lift it")
        seen = []  # at the beginning, after some images, and at two beginnings more
        moments = ((0, 0, 0, 10.0), (0, 0, 4, 10.2), (0, 0, 8, 10.4), (0, 1, 0, 10.45))
        for seed, index, step, at in (*moments, (7, 0, 0, 10.5)):
            g.episode(seed=seed, index=index, step=step)
            g.show(at, light=60 + 12 * step)
            g.until(lambda: len(g.heard) == len(seen) + 1, "its estimate")
            seen.append((g.heard[-1].progress, g.heard[-1].done))
        assert seen[0] == seen[3] == seen[4] and seen[2] != seen[0]
        g.show(10.55, light=60)  # of the same episode, so too early
        g.episode(seed=7, index=0, step=0)
        g.show(10.7, light=60)
        g.until(lambda: len(g.heard) == 6, "the next estimate")
        assert Time.from_msg(g.heard[-1].header.stamp).nanoseconds == round(10.7 * NS)
    finally:
        g.close()


def test_a_look_at_an_episode_that_is_over_is_not_told(estimator):
    g = Graph(estimator)
    try:
        g.begin()
        g.tell("lift it")
        g.episode(step=8)
        look, begun, go = g.node._watch.look, threading.Event(), threading.Event()

        def slow(*args):
            begun.set()
            assert go.wait(20)
            return look(*args)

        g.node._watch.look = slow
        g.show(10.0)
        g.until(begun.is_set, "the model's look")
        g.show(10.2)  # waits for the model meanwhile
        g.until(lambda: g.node._model.latest.received == 2, "the next image")
        g.episode(index=1, step=0)
        go.set()
        g.show(10.25)
        g.until(lambda: g.heard, "an estimate")
        assert Time.from_msg(g.heard[0].header.stamp).nanoseconds == round(10.25 * NS)
    finally:
        g.close()


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"estimator": ""}, "parameter 'estimator' is empty"),
        ({"estimator": "/nowhere"}, "/nowhere is no estimator"),
        ({"cameras": ["image", "image_wrist"]}, "sees 1 images, 'cameras' has 2"),
    ],
)
def test_what_cannot_be_watched_is_refused(estimator, parameters, told):
    g = Graph(estimator, **parameters)
    try:
        assert not g.start_node() and told in g.node.failure
    finally:
        g.close()
