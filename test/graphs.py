"""Shared code of tests that start ROS graphs: a node under test, a client, processes.

Test files import it by its plain name (`pythonpath` in pyproject.toml).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from domains import domain
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from vla_inference.ros import qos
from vla_inference.ros.images import rgb_to_image
from vla_inference.ros.inference.node import InferenceNode
from vla_msgs.msg import ActionChunk, InferenceStatus
from vla_msgs.srv import SetInstruction

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
_numbers = itertools.count()


def environment(number: int) -> dict[str, str]:
    """For processes: this domain, this machine alone."""
    more = {"ROS_LOCALHOST_ONLY": "1"} if os.environ.get("ROS_DISTRO") == "humble" else {}
    return {
        **os.environ,
        "ROS_DOMAIN_ID": str(number),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "PYTHONUNBUFFERED": "1",
        **more,
    }


class NodeGraph:
    """A managed node under test, spun in a thread of its own, and a client that talks to it.

    The node does everything in that thread, as it does in its own process.

    Graphs live beside each other, each in a namespace: all names of our nodes are relative.
    """

    patience = 30.0  # seconds until a test gives up

    def __init__(self, make: Callable[..., Any], parameters: Mapping[str, Any], **kwargs):
        """make: the node's class. kwargs: more for it."""
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        if os.environ.get("ROS_DISTRO") == "humble":
            os.environ["ROS_LOCALHOST_ONLY"] = "1"  # its word for the same
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain())
        where = {"context": self.context, "namespace": f"/graph{next(_numbers)}"}
        overrides = [Parameter(k, value=v) for k, v in parameters.items()]
        self.node = make(parameter_overrides=overrides, **kwargs, **where)
        self.client = rclpy.create_node("client", **where)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.client)
        self._ending = False
        self._node_executor = SingleThreadedExecutor(context=self.context)
        # A graph whose test failed before it could be closed must not hold up the end.
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        self._node_executor.add_node(self.node)
        while not self._ending:
            self._node_executor.spin_once(timeout_sec=0.05)
        self._node_executor.shutdown()
        self.node.trigger_shutdown()

    def start_node(self) -> bool:
        """Configures and activates the node; its `failure` says why that failed."""
        started = self._node_executor.create_task(self.node.start)
        self.until(started.done, "the node's start")
        return bool(started.result())

    def close(self) -> None:
        self._ending = True
        self._thread.join()
        self.executor.shutdown()
        self.node.destroy_node()
        self.client.destroy_node()
        rclpy.shutdown(context=self.context)

    def said(self) -> Any:
        """What tells most about a wait that was in vain."""
        return self.node.failure

    def until(self, condition: Callable[[], object], what: str = "") -> None:
        end = time.monotonic() + self.patience
        while not condition():
            assert time.monotonic() < end, f"waited in vain for {what}; {self.said()}"
            self.executor.spin_once(timeout_sec=0.05)

    def idle(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.02)

    def call(self, kind: Any, name: str, request: Any) -> Any:
        client = self.client.create_client(kind, name)
        assert client.wait_for_service(self.patience)
        future = client.call_async(request)
        self.until(future.done, name)
        self.client.destroy_client(client)
        return future.result()

    def change(self, transition: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=transition))
        return self.call(ChangeState, f"{self.node.get_name()}/change_state", request).success

    def state(self) -> str:
        answer = self.call(GetState, f"{self.node.get_name()}/get_state", GetState.Request())
        return answer.current_state.label


class InferenceGraph(NodeGraph):
    """An inference node, and the camera and listeners around it."""

    def __init__(self, parameters: dict, start: bool = True):
        # The images of tests are one and the same, as a frozen camera's.
        super().__init__(InferenceNode, {"max_same_image": 0.0, **parameters})
        self.chunks: list[ActionChunk] = []
        self.status = InferenceStatus()
        self.active: list[str] = []
        make = self.client.create_subscription
        make(ActionChunk, "action", self.chunks.append, qos.CHUNK)
        make(InferenceStatus, "inference/status", self._keep, qos.LATCHED)
        make(
            String,
            "inference/active_instruction",
            lambda m: self.active.append(m.data),
            qos.LATCHED,
        )
        self.images = self.client.create_publisher(Image, "image", qos.IMAGE_OUTPUT)
        self.compressed = self.client.create_publisher(
            CompressedImage, "image/compressed", qos.IMAGE_OUTPUT
        )
        if start:
            assert self.change(Transition.TRANSITION_CONFIGURE), self.node.failure
            assert self.change(Transition.TRANSITION_ACTIVATE), self.node.failure

    def _keep(self, status: InferenceStatus) -> None:
        self.status = status

    def said(self) -> InferenceStatus:
        return self.status

    def instruct(self, text: str) -> SetInstruction.Response:
        request = SetInstruction.Request(instruction=text)
        return self.call(SetInstruction, "inference/set_instruction", request)

    def now(self) -> Time:
        return self.client.get_clock().now().to_msg()

    def frame(self, **changes) -> Image:
        """A good image of this moment, with some fields changed."""
        msg = rgb_to_image(IMAGE, self.now(), "camera")
        for name, value in changes.items():
            setattr(msg, name, value)
        return msg

    def meet(self, publisher=None, frame=None) -> None:
        """Send images until one is answered: now everybody has found everybody."""
        publisher, frame = publisher or self.images, frame or self.frame
        while not self.chunks:
            publisher.publish(frame())
            for _ in range(4):
                self.executor.spin_once(timeout_sec=0.05)
        self.answer(frame(), publisher)
        self.chunks.clear()

    def answer(self, msg, publisher=None) -> ActionChunk:
        """Send an image and wait for the chunk that answers it."""
        (publisher or self.images).publish(msg)
        stamp = msg.header.stamp
        self.until(lambda: any(c.header.stamp == stamp for c in self.chunks), "an answer")
        return next(c for c in self.chunks if c.header.stamp == stamp)

    def refuse(self, msg, publisher=None) -> str:
        """Send an image that must be refused; returns the reason the status gives."""
        before = self.node._figures.refused
        (publisher or self.images).publish(msg)
        self.until(lambda: self.status.refused > before, "a refusal")
        return self.status.last_refusal

    def sentinel(self, publisher=None, frame=None) -> None:
        """Nothing but the answer to this good image has been published."""
        before = self.node._sequence
        chunk = self.answer((frame or self.frame)(), publisher)
        assert [c.sequence for c in self.chunks] == [before] == [chunk.sequence]
        self.chunks.clear()


@contextlib.contextmanager
def inference_graphs(**defaults: Any) -> Iterator[Callable[..., InferenceGraph]]:
    """Makes inference graphs with these parameters and those of each call; closes them all."""
    with contextlib.ExitStack() as stack:

        def make(start: bool = True, **parameters: Any) -> InferenceGraph:
            graph = InferenceGraph({**defaults, **parameters}, start)
            stack.callback(graph.close)
            return graph

        yield make


@contextlib.contextmanager
def processes(number: int) -> Iterator[Callable[..., subprocess.Popen]]:
    """A function that starts Python processes in this domain; all end with the block."""
    started: list[subprocess.Popen] = []

    def start(*command: str, **more: Any) -> subprocess.Popen:
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        process = subprocess.Popen(
            [sys.executable, *map(str, command)], env=environment(number), text=True, **given
        )
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.communicate()
