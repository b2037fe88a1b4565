"""The inference node: pictures and an instruction in, action chunks out.

Callbacks run in one thread and only file what comes; the model lives in another, which takes the
newest picture out of a mailbox of one. Whatever no action may be computed from is refused: the
status says why, and nothing is published.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.parameter import Parameter
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from vla_inference.errors import ObservationError, VlaError
from vla_inference.mailbox import Mailbox
from vla_inference.ros import qos
from vla_inference.ros.images import compressed_to_rgb, image_to_rgb
from vla_inference.ros.lifecycle import ACTIVE, ERROR, ManagedNode, spin_node
from vla_inference.ros.messages import chunk_to_msg
from vla_inference.types import Observation, check_instruction
from vla_inference.watch import Watch
from vla_inference.worker import Worker
from vla_msgs.msg import ActionChunk, InferenceStatus
from vla_msgs.srv import SetInstruction

MAX_FUTURE = 0.5  # seconds a picture's stamp may be ahead of our clock
STATUS_PERIOD = 0.5
ECHO = 1.0  # seconds within which a latched sentence arrives by both subscriptions

# name: (default, description, range); the first ones are read when the node is configured.
AT_CONFIGURE: dict[str, tuple[Any, str, Any]] = {
    "model": ("", "checkpoint folder", None),
    "unnorm_key": ("", "statistics to un-normalise with; empty: the only ones there are", None),
    "device": ("", "cpu, cuda, cuda:1 ...; empty: CUDA where there is one", None),
    "dtype": ("", "float32, bfloat16 or float16; empty: the device's usual one", None),
    "num_threads": (
        0,
        "CPU threads of the model; 0: as many as PyTorch likes",
        IntegerRange(from_value=0, to_value=256),
    ),
    "image_transport": ("raw", "raw (topic image) or compressed (topic image/compressed)", None),
    "camera": ("image", "the camera's name as the model was trained with", None),
    "frame_id": ("", "frame of the deltas, such as base; empty: what the checkpoint says", None),
    "instruction": ("", "instruction until another one comes", None),
}
AT_ONCE: dict[str, tuple[Any, str, Any]] = {
    "max_image_age": (
        1.0,
        "refuse pictures whose stamp is older than this by our clock [s]; 0: any age",
        FloatingPointRange(from_value=0.0, to_value=3600.0),
    ),
}


@dataclass(frozen=True)
class Letter:
    """A picture as it came, when (monotonic clock), and in which activation of the node."""

    message: Image | CompressedImage
    arrived: float
    activation: int


class InferenceNode(ManagedNode):
    def __init__(self, name: str = "inference", **kwargs):
        super().__init__(name, **kwargs)
        for key, (default, description, bounds) in {**AT_CONFIGURE, **AT_ONCE}.items():
            descriptor = ParameterDescriptor(description=description)
            if isinstance(bounds, FloatingPointRange):
                descriptor.floating_point_range = [bounds]
            elif bounds is not None:
                descriptor.integer_range = [bounds]
            self.declare_parameter(key, default, descriptor)
        self.add_on_set_parameters_callback(self._check_parameters)

        self.policy = None
        self._mailbox: Mailbox[Letter] = Mailbox()
        self._worker: Worker[Letter] | None = None
        self._images = None  # the subscription
        self._instruction = ""
        self._heard: tuple[deque[tuple[float, str]], ...] = (deque(maxlen=32), deque(maxlen=32))
        self._gate = threading.Lock()  # holds off deactivation while a chunk goes out
        self._open, self._activation = False, 0
        self._sequence = 0
        self._lock = threading.Lock()  # of the figures below
        self._reset_figures()

        self._action = self.create_lifecycle_publisher(ActionChunk, "action", qos.CHUNK)
        self._status = self.create_publisher(InferenceStatus, "~/status", qos.LATCHED)
        self._active = self.create_publisher(String, "~/active_instruction", qos.LATCHED)
        # Before the picture's subscription, so that of a sentence and a picture that are both
        # there the sentence is read first.
        for ear, profile in enumerate((qos.INSTRUCTION_VOLATILE, qos.INSTRUCTION_LATCHED)):
            self.create_subscription(String, "instruction", partial(self._hear, ear), profile)
        self.create_service(SetInstruction, "~/set_instruction", self._set_instruction)
        self.create_timer(STATUS_PERIOD, self._publish_status)

    # -- lifecycle ----------------------------------------------------------------------------

    def do_configure(self) -> None:
        transport, text = self._value("image_transport"), self._value("instruction")
        if transport not in ("raw", "compressed"):
            raise VlaError(f"unknown image_transport {transport!r}", "use raw or compressed")
        if text and not self._instruction:
            self._follow(check_instruction(text))
        self._publish_status("loading the model")
        self._mailbox = Mailbox()
        self._worker = Worker(self._load, partial(self._answer, self._mailbox), self._mailbox)
        self._worker.start()
        self._camera = self._value("camera")
        self._unnorm_key = self._value("unnorm_key") or None
        self._frame_id = self._value("frame_id")
        self._subscribe()

    def do_activate(self) -> None:
        self._mailbox.reset()
        self._reset_figures()
        self._activation += 1
        self._open = True

    def do_deactivate(self) -> None:
        with self._gate:
            self._open = False
        self._mailbox.reset()

    def do_cleanup(self) -> None:
        self._open = False
        if self._images is not None:
            self.destroy_subscription(self._images)
            self._images = None
        if self._worker is not None:
            self._worker.stop(timeout=0.5)
            self._worker = None
        self.policy = None

    def state_changed(self) -> None:
        self._publish_status()

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _check_parameters(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        if self._worker is not None:
            for p in parameters:
                if p.name in AT_CONFIGURE:
                    reason = f"{p.name} is read when the node is configured; clean it up first"
                    return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    def _load(self) -> None:
        """Load and warm up; runs in the worker's thread."""
        import torch

        from vla_inference.policy import Policy

        if not self._value("model"):
            raise VlaError("parameter 'model' is empty", "set it to a checkpoint folder")
        if self._value("num_threads"):
            torch.set_num_threads(self._value("num_threads"))
        policy = Policy.from_pretrained(
            self._value("model"),
            device=self._value("device") or None,
            dtype=self._value("dtype") or None,
        )
        key = self._value("unnorm_key") or None
        policy.action_spec(key)  # is it known?
        head = policy.config.head
        if head.num_images > 1 or head.proprio_dim:
            raise VlaError(
                f"model {policy.name} takes {head.num_images} pictures and {head.proprio_dim} "
                "numbers of proprioception; this node feeds one picture",
                "choose a model of one picture, or call Policy.predict_action",
            )
        policy.warm_up(key)
        milliseconds = policy.warm_up(key)
        self.policy = policy
        self.get_logger().info(
            f"model {policy.name} on {policy.device}, {milliseconds:.0f} ms per answer"
        )

    def _subscribe(self) -> None:
        kind, topic = Image, "image"
        if self._value("image_transport") == "compressed":
            # As image_transport does it: remapping `image` moves the compressed one along.
            kind, topic = CompressedImage, self.resolve_topic_name("image") + "/compressed"
        self._images = self.create_subscription(
            kind,
            topic,
            self._receive,
            qos.IMAGE_INPUT,
            qos_overriding_options=qos.overridable(),
        )

    # -- what comes in ------------------------------------------------------------------------

    def _receive(self, message: Image | CompressedImage) -> None:
        if self._open:
            self._mailbox.put(Letter(message, time.monotonic(), self._activation))

    def _hear(self, ear: int, message: String) -> None:
        """A sentence by one of two subscriptions, 0 volatile and 1 latched.

        What a latching publisher says reaches both; the second time it says nothing new, even
        where another sentence came between. (Humble's rclpy tells no source time to go by.)
        """
        now, other = time.monotonic(), self._heard[1 - ear]
        while other and now - other[0][0] > ECHO:
            other.popleft()
        for entry in other:
            if entry[1] == message.data:
                other.remove(entry)
                return
        self._heard[ear].append((now, message.data))
        try:
            text = check_instruction(message.data)
        except ObservationError as error:
            # Whoever sent it no longer wants what was asked before.
            self._follow("")
            self._refuse(str(error))
            return
        if text != self._instruction:
            self._follow(text)

    def _set_instruction(self, request, response):
        try:
            self._follow(check_instruction(request.instruction))
            response.success = True
        except ObservationError as error:
            response.success, response.message = False, str(error)
        return response

    def _follow(self, text: str) -> None:
        self._instruction = text
        self._active.publish(String(data=text))
        # Some tasks change their sentence with every frame: the log need not.
        self.get_logger().info(f"instruction: {text!r}", throttle_duration_sec=10.0)
        self._publish_status()

    # -- what goes out (in the worker's thread) -----------------------------------------------

    def _answer(self, mailbox: Mailbox[Letter], letter: Letter) -> None:
        # What a clean-up may take away in the meantime is held on to.
        policy, text, message = self.policy, self._instruction, letter.message
        begin = time.monotonic()
        try:
            if not text:
                raise ObservationError(
                    "there is no instruction", "publish one or call ~/set_instruction"
                )
            age = self._age(message)
            raw = isinstance(message, Image)
            picture = image_to_rgb(message) if raw else compressed_to_rgb(message)
            decoded = time.monotonic()
            chunk = policy.predict_action(
                Observation({self._camera: picture}, text),
                unnorm_key=self._unnorm_key,
            )
            chunk.timing = {"picture": 1e3 * (decoded - begin), **chunk.timing}
            answer = chunk_to_msg(
                chunk,
                message.header.stamp,
                frame_id=self._frame_id,
                instruction=text,
                model=policy.name,
            )
        except VlaError as error:
            if self._expects(mailbox, letter):
                self._refuse(str(error), pictures=1)
            return
        except Exception as error:
            if not self._expects(mailbox, letter):
                return
            traceback.print_exc()
            reason = f"unexpected {type(error).__name__}: {error}; please report it"
            self.get_logger().error(f"cannot answer: {reason}")
            self._crash = reason
            self._refuse(reason, pictures=1)
            return
        with self._gate:
            if not self._expects(mailbox, letter):
                return
            answer.sequence = self._sequence
            answer.produced = self.get_clock().now().to_msg()
            done = time.monotonic()
            answer.latency_ms = 1e3 * (done - begin)
            self._action.publish(answer)
            self._sequence += 1
        recovered, self._crash = self._crash, ""
        with self._lock:
            self._processed += 1
            self._age_ms = 1e3 * age
            self._stages = chunk.timing
            self._watch.add(1e3 * (done - letter.arrived), done)
        if recovered:
            self._publish_status()

    def _age(self, message: Image | CompressedImage) -> float:
        """Seconds since the picture was taken; raises ObservationError where that won't do."""
        stamp = Time.from_msg(message.header.stamp).nanoseconds
        now = self.get_clock().now().nanoseconds
        if not stamp:
            raise ObservationError("the picture has no stamp", "set header.stamp when taking it")
        if not now:
            raise ObservationError("there is no time yet", "publish /clock or unset use_sim_time")
        age, limit = 1e-9 * (now - stamp), self._value("max_image_age")
        if limit and age > limit:
            raise ObservationError(
                f"the picture is {age:.2f} s old, more than max_image_age ({limit:g} s)",
                "check the camera's clock and the network",
            )
        if age < -MAX_FUTURE:
            raise ObservationError(
                f"the picture's stamp is {-age:.2f} s in the future", "synchronise the clocks"
            )
        return age

    def _expects(self, mailbox: Mailbox[Letter], letter: Letter) -> bool:
        """Whether this picture's answer is still wanted: it may be from an earlier life."""
        return self._open and not mailbox.closed and letter.activation == self._activation

    def _refuse(self, reason: str, pictures: int = 0) -> None:
        with self._lock:
            self._refused += pictures
            self._last_refusal = " ".join(reason.split())
        self.get_logger().warning(
            f"refused: {self._last_refusal}", throttle_duration_sec=5.0, skip_first=False
        )
        self._publish_status()

    # -- status -------------------------------------------------------------------------------

    def _reset_figures(self) -> None:
        with self._lock:
            self._watch = Watch()
            self._processed = self._refused = 0
            self._age_ms, self._stages = 0.0, {}
            self._last_refusal, self._crash = "", ""

    def _publish_status(self, message: str = "") -> None:
        status = InferenceStatus(state=ERROR if self._crash else self.state)
        status.header.stamp = self.get_clock().now().to_msg()
        status.model = self.policy.name if self.policy else ""
        status.instruction = self._instruction
        with self._lock:
            watch = self._watch
            status.rate = watch.rate(time.monotonic())
            if watch.last == watch.last:  # not NaN: there was one
                status.latency_ms = watch.last
                p95 = watch.p95
                status.latency_p95_ms = p95 if p95 == p95 else watch.last
            status.stage_names = list(self._stages)
            status.stage_ms = list(self._stages.values())
            status.input_age_ms = self._age_ms
            status.processed, status.refused = self._processed, self._refused
            status.last_refusal = self._last_refusal
        status.received, status.dropped = self._mailbox.received, self._mailbox.dropped
        status.message = message or self.failure or self._crash or self._remark()
        self._status.publish(status)

    def _remark(self) -> str:
        if self.state != ACTIVE:
            return ""
        others = self.count_publishers(self._action.topic_name) - 1
        if others > 0:
            return f"{others} more publish on {self._action.topic_name}; leave only one"
        if not self._instruction:
            return "no instruction yet; publish one or call ~/set_instruction"
        return ""


def main(args: Sequence[str] | None = None) -> int:
    # OpenMP's threads wait for each other by spinning; with a busy neighbour on the same cores
    # that makes a model 10 to 100 times slower. Must be set before PyTorch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return spin_node(InferenceNode, args)


if __name__ == "__main__":
    sys.exit(main())
