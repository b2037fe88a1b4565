"""Executes action chunks in the simulation, in lock step or in real time.

A drive hears the chunks, decides when a frame or a control period is due, and notices what is too
late. Everything it does runs in the node's one thread.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from vla_inference.episodes.robosuite import CONTROL_FREQ
from vla_inference.errors import VlaError
from vla_inference.ros.messages import msg_to_chunk
from vla_inference.ros.qos import CHUNK, LATCHED
from vla_inference.ros.stamps import stamp_ns
from vla_msgs.msg import ActionChunk, InferenceStatus, SimStatus
from vla_sim_bridge.evaluation.answers import Answers
from vla_sim_bridge.ros.chunk_to_actions import sim_actions
from vla_sim_bridge.ros.lock_step import LockStep, Verdict
from vla_sim_bridge.ros.real_time import RealTime

if TYPE_CHECKING:
    from vla_sim_bridge.ros.sim_node import SimNode


class Drive:
    """What any drive has: a subscription for chunks, the lock, the time-outs."""

    def __init__(self, node: SimNode):
        self.node, self.settings = node, node.settings
        s = self.settings
        self.lock = LockStep(s.action_timeout, s.start_timeout)
        self.answers = Answers()
        self._created = time.monotonic()
        self._viewers = 0
        self._inference: InferenceStatus | None = None

    def start(self) -> None:
        """Everything else is there: begin to listen."""
        node, s = self.node, self.settings
        node.create_subscription(ActionChunk, "action", node.guard(self._on_chunk), CHUNK)
        node.create_subscription(InferenceStatus, "inference/status", self._on_inference, LATCHED)
        if not s.lock_step:
            pace = 1.0 / s.real_time_factor
            node.create_timer(pace / s.control_rate, node.guard(self._control_period))
            node.create_timer(pace / s.frame_rate, node.guard(self._frame_period))

    # -- what a drive fills in ----------------------------------------------------------------

    def begin(self) -> None:
        """An episode begins: publish its first frame, or see to it."""
        raise NotImplementedError

    def resume(self) -> None:
        """After a pause in the midst of an episode."""
        self.begin()

    def answered(self, msg: ActionChunk) -> None:
        """Lock step: the frame that is out has its answer."""
        raise NotImplementedError

    def accept(self, msg: ActionChunk, stamp: int, now: int) -> bool:
        """Real time: a chunk came in; whether it counts. Stamps in nanoseconds."""
        raise NotImplementedError

    def _control_period(self) -> None:
        """Real time: a control period begins."""
        raise NotImplementedError

    def results(self) -> dict:
        """What the run's results say of it."""
        return {"chunks_ignored": self.lock.ignored}

    # -- frames and chunks --------------------------------------------------------------------

    def sent(self, stamp: int) -> None:
        """A frame was published."""
        self._viewers = self.node.topics.viewers
        self.answers.sent(stamp)
        if self.settings.lock_step and not self.node.paused:
            self.lock.sent(stamp, time.monotonic())
            self.node.set_state(SimStatus.WAITING)

    def withdraw(self) -> None:
        """No answer to what is out is wanted any more."""
        self.lock.withdraw()

    def _on_chunk(self, msg: ActionChunk) -> None:
        node = self.node
        try:
            stamp = stamp_ns(msg.header.stamp, "the chunk")
        except VlaError as error:  # no frame of ours had that one
            self.lock.ignored += 1
            return node.callback_refused("action", str(error))
        self.answers.heard(stamp, node.resolve_topic_name("action"))
        if not self.settings.lock_step:
            now = node.topics.time()
            if self.accept(msg, stamp, now):
                self.lock.started = True
                node.measure(msg, (now - stamp) / 1e6)
                if not node.paused:
                    node.set_state(SimStatus.RUNNING)
            return
        expected = node.sim.instruction
        verdict = self.lock.judge(stamp, msg.instruction, expected, time.monotonic())
        if verdict is Verdict.EXECUTE:
            self.answered(msg)

    def _frame_period(self) -> None:
        if not self.node.paused:
            self.node.publish_frame()

    # -- time passes --------------------------------------------------------------------------

    def poll(self) -> None:
        """Called between callbacks: time-outs and copies of the frame."""
        now = time.monotonic()
        if self._inference is not None and self._inference.state == InferenceStatus.ERROR:
            raise VlaError("the model's node reports an error", self._inference.message)
        if not self.settings.lock_step:
            late = not self.lock.started and now - self._created > self.settings.start_timeout
            verdict = Verdict.TOO_LATE if late else Verdict.WAIT
        else:
            if not self.lock.started and self.node.topics.viewers > self._viewers:
                self.lock.resend_now(now)  # a model came up
            verdict = self.lock.poll(now)
        if verdict is Verdict.TOO_LATE:
            raise VlaError(*self._too_late())
        if verdict is Verdict.RESEND:
            self.node.publish_frame(again=True)

    def _too_late(self) -> tuple[str, str]:
        """What is wrong and what to do."""
        run, timeout = self.node.evaluation.run, self.lock.timeout
        what = f"no action for the frame of episode {run.index}, step {run.step_count}"
        if self.lock.other_instruction:
            return (
                f"{what} within {timeout:g} s: the model answers to "
                f"{self.lock.other_instruction!r} instead of {self.node.sim.instruction!r}",
                "check that nothing else publishes on the topic instruction",
            )
        said, status = "", self._inference
        if status is not None:
            words = status.last_refusal or status.message
            said = f" (it was {status.state}" + (f": {words})" if words else ")")
        topic = self.node.resolve_topic_name("inference/status")
        return (
            f"{what} within {timeout:g} s",
            f"is the model node running and active{said}? see {topic}",
        )

    def _on_inference(self, msg: InferenceStatus) -> None:
        self._inference = msg


class ChunkDrive(Drive):
    def __init__(self, node: SimNode):
        super().__init__(node)
        self.real = RealTime(1.0 / self.settings.control_rate)
        self._dt_warned = False

    def begin(self) -> None:
        self.real.restart(self.node.topics.now() / 1e9)
        self.node.publish_frame()

    def answered(self, msg: ActionChunk) -> None:
        node, actions = self.node, self._read(msg)
        self.settings.execute_steps = self.settings.steps_of(len(actions))
        node.measure(msg, 1e3 * self.lock.round_trip)
        node.set_state(SimStatus.RUNNING)
        for action in actions[: self.settings.execute_steps]:
            if node.stop():
                return
            if node.execute(action):
                break
        node.go_on()

    def accept(self, msg: ActionChunk, stamp: int, now: int) -> bool:
        return self.real.accept(stamp / 1e9, self._read(msg), now / 1e9)

    def _read(self, msg: ActionChunk) -> np.ndarray:
        chunk = msg_to_chunk(msg)
        if not self._dt_warned and abs(chunk.spec.dt * CONTROL_FREQ - 1) > 0.05:
            self._dt_warned = True
            self.node.get_logger().warning(
                f"the model's steps last {chunk.spec.dt:g} s; each is executed in one control "
                f"period of {1 / CONTROL_FREQ:g} s"
            )
        return sim_actions(chunk)

    def _control_period(self) -> None:
        node = self.node
        if node.paused or not self.lock.started:
            return
        action = self.real.period(time.monotonic())
        held = action is None
        node.execute(node.stand_still() if held else action, held)
        node.go_on()

    def results(self) -> dict:
        s, found = self.settings, super().results()
        found["chunks_ignored"] += self.real.ignored
        if not s.lock_step:
            found["real_time"] = {
                "control_rate": s.control_rate,
                "frame_rate": s.frame_rate,
                "held_periods": self.real.held,
                "missed_periods": self.real.missed,
            }
        return found
