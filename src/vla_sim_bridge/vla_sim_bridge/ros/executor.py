"""Executes action chunks in the simulation, in lock step or in real time.

A drive hears the chunks, decides when a frame or a control period is due, and notices what is too
late. Everything it does runs in the node's one thread.
"""

from __future__ import annotations

import time

import numpy as np

from vla_inference.episodes.robosuite import CONTROL_FREQ
from vla_inference.errors import VlaError
from vla_inference.ros.guard import GuardedNode
from vla_inference.ros.messages import msg_to_chunk
from vla_inference.ros.qos import CHUNK, LATCHED
from vla_inference.ros.stamps import stamp_ns
from vla_msgs.msg import ActionChunk, InferenceStatus, SimStatus
from vla_sim_bridge.evaluation.answers import Answers
from vla_sim_bridge.ros.episodes import Episodes
from vla_sim_bridge.ros.lock_step import LockStep, Verdict
from vla_sim_bridge.ros.real_time import RealTime


class Drive:
    """What any drive has: a subscription for chunks, the lock, the time-outs."""

    def __init__(self, node: GuardedNode, episodes: Episodes):
        self.node, self.episodes = node, episodes
        self.settings = s = episodes.settings
        self.lock = LockStep(s.action_timeout, s.start_timeout)
        self.answers = Answers()
        self._created = time.monotonic()
        self._viewers = 0
        self._inference: InferenceStatus | None = None
        episodes.more_results = self.results

    def start(self) -> None:
        """Everything else is there: begin to listen."""
        node, s, guard = self.node, self.settings, self.episodes.guard
        node.create_subscription(ActionChunk, "action", guard(self._on_chunk), CHUNK)
        node.create_subscription(InferenceStatus, "inference/status", self._on_inference, LATCHED)
        if not s.lock_step:
            pace = 1.0 / s.real_time_factor
            node.create_timer(pace / s.control_rate, guard(self._control_period))
            node.create_timer(pace / s.frame_rate, guard(self._frame_period))

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
        return {
            "instruction_mismatches": self.lock.mismatched,
            "chunks_ignored": self.lock.ignored,
        }

    # -- episodes -----------------------------------------------------------------------------

    def begin_episode(self, seed: int | None = None, instruction: str = "") -> None:
        """The run's next one, or another seed's first."""
        self.episodes.begin(seed, instruction)
        self.begin()

    def go_on(self) -> None:
        """After actions: the next frame, of the next episode where this one is over."""
        self.episodes.progress()
        if self.episodes.evaluation.complete:
            self.episodes.finished = True
        elif self.episodes.evaluation.episode.done:
            self.begin_episode()
        elif self.settings.lock_step:
            self.publish_frame()

    def set_paused(self, paused: bool) -> None:
        episodes = self.episodes
        if paused == episodes.paused or episodes.finished:
            return
        episodes.paused = paused
        if paused:
            self.withdraw()
            episodes.evaluation.stop_clock()
            episodes.set_state(SimStatus.PAUSED)
            return
        episodes.set_state(SimStatus.RUNNING)
        if episodes.evaluation.episode.done:
            self.begin_episode()
        else:
            self.resume()

    def reset(self, task: str, seed: int | None, instruction: str) -> None:
        """End the episode under way and begin the run's next one, or another seed's first."""
        world = self.episodes.world_of(task)
        self.episodes.abort()
        self.withdraw()
        self.episodes.use(world)
        self.begin_episode(seed, instruction)

    # -- frames and chunks --------------------------------------------------------------------

    def publish_frame(self, again: bool = False, counted: bool = True) -> None:
        """The world as it is (or was, for a copy) under a new stamp, its instruction first.

        counted: whether it is one of the run's frames, whose answer is executed.
        """
        episodes, topics = self.episodes, self.episodes.topics
        if not again:
            episodes.take_image(counted)
        topics.instruction(episodes.sim.instruction)
        stamp = topics.now()
        self._sent(stamp)
        episodes.publish_image(stamp, again)

    def _sent(self, stamp: int) -> None:
        self._viewers = self.episodes.topics.viewers
        self.answers.sent(stamp)
        if self.settings.lock_step and not self.episodes.paused:
            self.lock.sent(stamp, time.monotonic())
            self.episodes.set_state(SimStatus.WAITING)

    def withdraw(self) -> None:
        """No answer to what is out is wanted any more."""
        self.lock.withdraw()

    def _on_chunk(self, msg: ActionChunk) -> None:
        node = self.node
        try:
            stamp = stamp_ns(msg.header.stamp, "the chunk")
        except VlaError as error:  # none of our frames had that stamp
            self.lock.ignored += 1
            return node.callback_refused("action", str(error))
        self.answers.heard(stamp, node.resolve_topic_name("action"))
        if not self.settings.lock_step:
            now = self.episodes.topics.time()
            if self.accept(msg, stamp, now):
                self.lock.started = self.episodes.answered = True
                self.episodes.measure(msg, (now - stamp) / 1e6)
                if not self.episodes.paused:
                    self.episodes.set_state(SimStatus.RUNNING)
            return
        # Where people enable, they also say what is to be done.
        own = self.settings.auto_enable
        expected = self.episodes.sim.instruction if own else msg.instruction
        verdict = self.lock.judge(stamp, msg.instruction, expected, time.monotonic())
        if verdict is Verdict.EXECUTE:
            self.episodes.answered = True
            self.answered(msg)

    def _frame_period(self) -> None:
        if not self.episodes.paused:
            self.publish_frame()

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
            if not self.lock.started and self.episodes.topics.viewers > self._viewers:
                self.lock.resend_now(now)  # a model came up
            verdict = self.lock.poll(now)
        if verdict is Verdict.TOO_LATE:
            raise VlaError(*self._too_late())
        if verdict is Verdict.RESEND:
            self.publish_frame(again=True)

    def _too_late(self) -> tuple[str, str]:
        """What is wrong and what to do."""
        run, timeout = self.episodes.evaluation.episode, self.lock.timeout
        what = f"no action for the frame of episode {run.index}, step {run.step_count}"
        if self.lock.other_instruction:
            return (
                f"{what} within {timeout:g} s: the model answers to "
                f"{self.lock.other_instruction!r} instead of {self.episodes.sim.instruction!r}",
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
    def __init__(self, node: GuardedNode, episodes: Episodes):
        super().__init__(node, episodes)
        self.real = RealTime(1.0 / self.settings.control_rate)
        self._dt_warned = False

    def begin(self) -> None:
        self.real.restart(self.episodes.topics.now() / 1e9)
        self.publish_frame()

    def answered(self, msg: ActionChunk) -> None:
        actions = self._read(msg)
        self.settings.execute_steps = self.settings.steps_of(len(actions))
        self.episodes.measure(msg, 1e3 * self.lock.round_trip)
        self.episodes.set_state(SimStatus.RUNNING)
        for action in actions[: self.settings.execute_steps]:
            if self.episodes.stop():
                return
            if self.episodes.execute(action):
                break
        self.go_on()

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
        return self.episodes.sim.actions(chunk)

    def _control_period(self) -> None:
        if self.episodes.paused or not self.lock.started:
            return
        action = self.real.period(time.monotonic())
        wanted = self.episodes.sim.still() if action is None else action
        self.episodes.execute(wanted, held=action is None)
        self.go_on()

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
