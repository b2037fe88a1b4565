"""The inference node: images and an instruction in, action chunks out.

Callbacks run in one thread and only file what comes; the model lives in another, which takes the
latest image out of a slot for one. Whatever no action may be computed from is refused: the
status says why, and nothing is published.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rclpy.clock import Clock, ClockType

from vla_inference.errors import ObservationError, VlaError
from vla_inference.policies.base import Policy
from vla_inference.policies.confined import find_model
from vla_inference.ros import diagnostics, qos
from vla_inference.ros.background_service import BackgroundService
from vla_inference.ros.inference.executed import ExecutedChunks
from vla_inference.ros.inference.inputs import Inputs, View
from vla_inference.ros.inference.instructions import Instructions
from vla_inference.ros.inference.parameters import InferenceConfig
from vla_inference.ros.inference.thoughts import Thoughts
from vla_inference.ros.lifecycle import ACTIVE, ERROR, INACTIVE, ManagedNode, configured, spin_node
from vla_inference.ros.messages import chunk_to_msg, policy_info
from vla_inference.ros.stamps import stamp_seconds
from vla_inference.serving.inference_metrics import InferenceMetrics
from vla_inference.serving.model_thread import ModelThread, changes, release_memory
from vla_inference.serving.openpi.settings import ServeSettings
from vla_inference.system.workspace import unexpected
from vla_inference.types import check_instruction
from vla_msgs.msg import ActionChunk, InferenceStatus, ModelInfo
from vla_msgs.srv import LoadModel

if TYPE_CHECKING:  # aiohttp is for those who serve
    from vla_inference.serving.openpi.background import BackgroundServer

STATUS_PERIOD = 0.5
HANGING = 5.0  # seconds at one image before the status says so


@dataclass(frozen=True)
class ViewRequest:
    """An observation, and the activation of the node in which it was made."""

    view: View
    activation: int


class InferenceNode(ManagedNode):
    TASK = "inference"

    def __init__(self, name: str = "inference", **kwargs):
        super().__init__(name, InferenceConfig, **kwargs)
        self._config = InferenceConfig()  # what it was configured with
        self._model: ModelThread[ViewRequest] | None = None
        self._inputs: Inputs | None = None
        self._server: BackgroundServer | None = None
        self._executed = ExecutedChunks(self)
        self._gate = threading.Lock()  # holds off deactivation and a new model while a chunk goes
        self._open, self._activation = False, 0
        self._sequence = 0
        self._figures = InferenceMetrics()

        self._action = self.create_lifecycle_publisher(
            ActionChunk, "action", **qos.overridable(qos.CHUNK)
        )
        self._status = self.create_publisher(InferenceStatus, "~/status", qos.LATCHED)
        self._info = self.create_publisher(ModelInfo, "~/model", qos.LATCHED)
        self._thoughts = Thoughts(self)
        # Before the image's subscription, so that of a sentence and an image that are both
        # there the sentence is read first.
        self._instructions = Instructions(
            self, self._publish_status, self._refuse, self._never_heard
        )
        self._loader = BackgroundService(self, LoadModel, "~/load_model", self._load_model)
        # Steady: where simulated time stands still, the status must not.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(STATUS_PERIOD, self._publish_status, clock=steady)

    def destroy_node(self) -> None:
        self._loader.close()
        super().destroy_node()

    @property
    def _instruction(self) -> str:
        return self._instructions.text

    @property
    def policy(self) -> Policy | None:
        """The model's policy, or None; for code in the same process."""
        model = self._model
        return model.policy if model else None

    # -- lifecycle ----------------------------------------------------------------------------

    def do_configure(self) -> None:
        self._config = config = self.read(InferenceConfig)
        if config.instruction and not self._instruction:
            self._instructions.follow(check_instruction(config.instruction))
        self._publish_status("loading the model")
        self._inputs = Inputs(
            self,
            cameras=config.cameras,
            transport=config.image_transport,
            layout=config.layout,
            tolerance=config.tolerance,
            receive=self._receive,
            history=config.history,
            interval=config.history_interval,
        )
        self._model = self._load(config.model, config.unnorm_key)
        self._introduce(self._model)
        self._executed.begin(config.running)
        if config.serving is not None:
            self._serve(self._model, config.serving)

    def do_activate(self) -> None:
        configured(self._model).latest.reset()
        configured(self._inputs).reset()
        self._executed.drop()
        if (policy := self.policy) is not None:
            policy.forget()
        self._figures.reset()
        self._activation += 1
        self._open = True

    def do_deactivate(self) -> None:
        with self._gate:
            self._open = False
        if self._model is not None:
            self._model.latest.reset()

    def do_cleanup(self) -> None:
        with self._gate:
            self._open = False
            model, self._model = self._model, None
        self._executed.end()
        if self._server is not None:
            self._server.stop()
            self._server = None
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
        if model is not None:
            model.stop(timeout=0.5)

    def state_changed(self) -> None:
        self._publish_status()

    # -- the model ----------------------------------------------------------------------------

    def _load(self, model: str, unnorm_key: str) -> ModelThread[ViewRequest]:
        """A warm model; VlaError if it cannot be loaded or needs other inputs."""
        thread = ModelThread(self._config.settings(model, unnorm_key).load, self._answer)
        thread.start()
        return thread

    def _introduce(self, model: ModelThread[ViewRequest]) -> None:
        policy = configured(model.policy)
        info = policy_info(policy, self._config.frame_id)
        info.header.stamp = self.get_clock().now().to_msg()
        info.cameras = list(self._config.cameras)
        info.load_time, info.latency_ms = model.load_seconds, model.latency_ms
        self._info.publish(info)
        self.get_logger().info(
            f"model {policy.name} on {policy.placement}, {model.latency_ms:.0f} ms per answer"
        )

    def _serve(self, model: ModelThread[ViewRequest], settings: ServeSettings) -> None:
        """Serves the model over the network as well."""
        from vla_inference.serving.openpi.background import BackgroundServer
        from vla_inference.serving.openpi.server import Server

        server = Server(None, settings)
        server.serve(server.batcher(model))
        self._server = BackgroundServer(server)
        port = self._server.start()
        self.get_logger().info(f"model served on {settings.host}, port {port}")

    def _load_model(self, request, response):
        """Runs in its own thread; the old model answers until the new one is warm."""
        begun = time.monotonic()
        try:
            response.message = self._change_model(request.model, request.unnorm_key)
            response.success = True
        except VlaError as error:
            response.message = " ".join(str(error).split())
        except Exception as error:  # a fault of the new model's must not end the old one
            traceback.print_exc()
            response.message = unexpected(error)
        response.load_time = time.monotonic() - begun
        if not response.success:
            self.get_logger().error(f"the model stays as it is: {response.message}")
        return response

    def _change_model(self, name: str, unnorm_key: str) -> str:
        """Returns what changes; raises if the old model stays active."""
        old = self._model
        before = old.policy if old is not None else None
        if old is None or before is None or self.state not in (ACTIVE, INACTIVE):
            raise VlaError(f"the node is {self.state}", "configure it first")
        model = self._load(str(find_model(self._config.model_root, name)), unnorm_key)
        if self._server is not None:
            self._change_served(self._server, model)
        told = ", ".join(changes(before.contract, configured(model.policy).contract))
        with self._gate:  # no chunk of the old one goes out any more
            stale = self._model is not old
            if not stale:
                model.latest.take_over(old.latest)
                self._model = model
                self._executed.drop()
        (model if stale else old).stop(timeout=10.0)
        release_memory()
        if stale:
            raise VlaError("the node was cleaned up meanwhile", "configure it and try again")
        self._figures.crash = ""
        self._introduce(model)
        if told:
            self.get_logger().warning(f"the new model's actions are others: {told}")
        self._publish_status()
        return told

    def _change_served(self, server: BackgroundServer, model: ModelThread[ViewRequest]) -> None:
        """Has the network's clients answered by the new model; VlaError if it does not fit."""
        try:
            server.serve(server.server.batcher(model))
        except VlaError:
            model.stop(timeout=0.5)
            raise

    # -- what comes in ------------------------------------------------------------------------

    def _receive(self, view: View) -> None:
        model = self._model
        if self._open and model is not None:
            model.latest.put(ViewRequest(view, self._activation))

    def callback_refused(self, where: str, reason: str) -> None:
        """An unusable message is counted as a refusal in the status."""
        cameras = map(self.resolve_topic_name, self._config.cameras)
        topic = self.resolve_topic_name(where).removesuffix("/compressed")
        self._refuse(reason, images=int(topic in cameras))

    # -- what goes out (in the worker's thread) -----------------------------------------------

    def _answer(self, model: ModelThread[ViewRequest], request: ViewRequest) -> None:
        # What a clean-up may take away in the meantime is held on to.
        policy, inputs, text = model.policy, self._inputs, self._instruction
        if policy is None or inputs is None:
            return
        begin, header = time.monotonic(), request.view.header
        try:
            if not text:
                raise ObservationError(
                    "there is no instruction", "publish one or call ~/set_instruction"
                )
            now = self.get_clock().now().nanoseconds
            age = request.view.age(now, self.value("max_image_age"))
            seen = inputs.observe(request.view, text, self._most_same())
            decoded = time.monotonic()
            with self._thoughts.about(policy, header, text) as tell:
                chunk = self._executed.act(policy, seen)
                tell(chunk.reasoning)
            chunk.timing = {"image": 1e3 * (decoded - begin), **chunk.timing}
            answer = chunk_to_msg(
                chunk,
                header.stamp,
                frame_id=self._config.frame_id,
                instruction=text,
                model=policy.name,
            )
        except VlaError as error:
            if self._expects(model, request):
                self._refuse(str(error), images=1)
            return
        except Exception as error:  # a model's fault is a refused image; the node lives on
            if not self._expects(model, request):
                return
            traceback.print_exc()
            reason = unexpected(error)
            self.get_logger().error(f"cannot answer: {reason}")
            self._figures.crash = reason
            self._refuse(reason, images=1)
            return
        with self._gate:
            if not self._expects(model, request):
                return
            answer.sequence = self._sequence
            answer.produced = self.get_clock().now().to_msg()
            self._executed.published(chunk, seen, stamp_seconds(answer.produced))
            done = time.monotonic()
            answer.latency_ms = 1e3 * (done - begin)
            self._action.publish(answer)
            self._sequence += 1
        if self._figures.answered(1e3 * (done - request.view.arrived), 1e3 * age, chunk.timing):
            self._publish_status()

    def _most_same(self) -> float:
        """Seconds for which a camera may repeat exactly the same image; 0: any time."""
        simulated = self.value("use_sim_time")
        return 0.0 if simulated else self.value("max_same_image")

    def _expects(self, model: ModelThread[ViewRequest], request: ViewRequest) -> bool:
        """Whether this image's answer is still wanted; it may be from an earlier activation."""
        return self._open and model is self._model and request.activation == self._activation

    def _refuse(self, reason: str, images: int = 0) -> None:
        reason = " ".join(reason.split())
        self._figures.refuse(reason, images)
        self.get_logger().warning(
            f"refused: {reason}", throttle_duration_sec=5.0, skip_first=False
        )
        self._publish_status()

    # -- status -------------------------------------------------------------------------------

    def _publish_status(self, message: str = "") -> None:
        status = InferenceStatus(state=ERROR if self._figures.crash else self.state)
        status.header.stamp = self.get_clock().now().to_msg()
        policy, model = self.policy, self._model
        status.model = policy.name if policy else ""
        status.instruction = self._instruction
        self._figures.fill(status)
        if model is not None:
            status.received, status.dropped = model.latest.received, model.latest.dropped
        status.message = message or self.failure or self._figures.crash or self._remark()
        self._status.publish(status)

    def _remark(self) -> str:
        """Why an active node does not answer; empty: it does."""
        model, inputs = self._model, self._inputs
        if self.state != ACTIVE or model is None or inputs is None:
            return ""
        others = self.count_publishers(self._action.topic_name) - 1
        if others > 0:
            return f"{others} more publish on {self._action.topic_name}; leave only one"
        if not self._instruction:
            return "no instruction yet; publish one or call ~/set_instruction"
        busy = model.busy(time.monotonic())
        if busy > HANGING:
            return f"the model has been at one image for {busy:.0f} s; restart the node"
        missing = inputs.missing(self.value("max_image_age") or 1.0)
        return missing or self._executed.remark or self._never_heard(self._instruction)

    def _never_heard(self, instruction: str) -> str:
        """Words that the model does not know and will ignore."""
        policy = self.policy
        words = policy.unknown_words(instruction) if policy else []
        return f"the model was trained without: {', '.join(words)}" if words else ""

    def diagnose(self) -> diagnostics.Report:
        values, refused = self._figures.values()
        if self._server is not None:
            values.update(self._server.server.values())
        if self._figures.crash:
            return diagnostics.ERROR, self._figures.crash, values
        remark = self._remark() or (self._figures.last_refusal if refused else "")
        return diagnostics.WARN if remark else diagnostics.OK, remark or self.state, values


def main(args: Sequence[str] | None = None) -> int:
    return spin_node(InferenceNode, args)


if __name__ == "__main__":
    sys.exit(main())
