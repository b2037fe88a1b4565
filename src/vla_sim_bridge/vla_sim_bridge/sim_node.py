"""The simulation as a ROS node: frames and instruction out, action chunks in, N episodes, results.

All work is done in one thread: a chunk's callback executes it and publishes the next frame. What
is to be done when is decided by `LockStep` or `RealTime`, what is counted by `Evaluation`.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import datetime

import numpy as np
import rclpy
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Time

from vla_inference.errors import VlaError
from vla_inference.ros.messages import msg_to_chunk
from vla_inference.ros.qos import CHUNK, LATCHED
from vla_msgs.msg import ActionChunk, InferenceStatus, SimStatus
from vla_sim_bridge import report
from vla_sim_bridge.conventions import sim_actions
from vla_sim_bridge.evaluation import Evaluation
from vla_sim_bridge.lock_step import LockStep, Verdict
from vla_sim_bridge.real_time import RealTime
from vla_sim_bridge.recorder import RunRecorder
from vla_sim_bridge.ros.sim_services import SimServices
from vla_sim_bridge.ros.sim_topics import SimTopics
from vla_sim_bridge.sim_settings import SimSettings
from vla_sim_bridge.simulation import CONTROL_FREQ, Simulation
from vla_sim_bridge.tasks import get_task

PROGRESS_EVERY = 5.0  # s between progress lines within an episode


class SimNode(Node):
    """See config/sim.yaml for the parameters."""

    def __init__(self, **kwargs):
        super().__init__("sim", **kwargs)
        values = {}
        for spec in fields(SimSettings):
            about = ParameterDescriptor(
                description=spec.metadata["description"], read_only=True, dynamic_typing=True
            )
            values[spec.name] = self.declare_parameter(spec.name, spec.default, about).value
        self.settings = SimSettings.from_values(values)
        self.folder = self.settings.output_folder()
        self.stop: Callable[[], bool] = lambda: False  # asked between control steps
        self.begun = self.finished = self.paused = False
        self.failure: Exception | None = None
        self.state, self.message = SimStatus.STARTING, "loading"
        self._inference: InferenceStatus | None = None
        self._told = self._created = time.monotonic()
        self._viewers = 0
        self._dt_warned = False
        self._started = datetime.now().astimezone().isoformat(timespec="seconds")

    # -- start --------------------------------------------------------------------------------

    def load(self) -> None:
        """Build the simulation, make sure that no other one is there, publish the first frame."""
        s = self.settings
        sim = Simulation(s.task, (s.camera,), s.width, s.height, s.language)
        sim.render(s.camera)  # the first picture takes a second
        self.evaluation = Evaluation(sim, s.seed, s.episodes, s.horizon)
        self._refuse_company()
        self._make_folder()
        every = 1 if s.lock_step else 2  # real time has no time to draw more
        self.recorder = RunRecorder(
            self.evaluation, self.folder, s.record_episodes, s.camera, every
        )
        self.evaluation.on_step = self.recorder.step
        self.lock = LockStep(s.action_timeout, s.start_timeout)
        self.real = RealTime(1.0 / s.control_rate)
        self.topics = SimTopics(self, s.camera)
        SimServices(self)
        self.create_subscription(ActionChunk, "action", self._guard(self._on_chunk), CHUNK)
        self.create_subscription(InferenceStatus, "inference/status", self._on_inference, LATCHED)
        self._say(f"{s.task}, {s.episodes} episodes of seed {s.seed}; results: {self.folder}")
        self.begun = True
        self._begin_episode()
        if not s.lock_step:
            self.create_timer(1.0 / s.control_rate, self._guard(self._control_period))
            self.create_timer(1.0 / s.frame_rate, self._guard(self._real_time_frame))
        self.create_timer(1.0, self._publish_status)

    @property
    def sim(self) -> Simulation:
        return self.evaluation.sim

    def _refuse_company(self) -> None:
        """Two simulations on the same topics would each execute what the other's model said."""
        end = self._created + self.settings.discovery_time
        while time.monotonic() < end and not self.stop():
            time.sleep(0.05)
        topic = self.resolve_topic_name("image")
        others = self.get_publishers_info_by_topic(topic)
        if others:
            names = {f"{o.node_namespace.rstrip('/')}/{o.node_name}" for o in others}
            raise VlaError(
                f"{topic} has a publisher already ({', '.join(sorted(names))})",
                "end the other simulation or camera, or give this one a namespace of its own "
                "(a killed one takes up to 20 s to be forgotten)",
            )

    def _make_folder(self) -> None:
        """Before the first step rather than after a hundred episodes."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / ".writable").touch()
            (self.folder / ".writable").unlink()
        except OSError as error:
            raise VlaError(
                f"cannot write into {self.folder} ({error.strerror})",
                "choose another output folder",
            ) from None

    def _guard(self, callback: Callable) -> Callable:
        """A callback whose errors end the run in an orderly way instead of the process."""

        def guarded(*args):
            if self.finished:
                return
            try:
                callback(*args)
            except Exception as error:
                self.failure, self.finished = error, True

        return guarded

    # -- frames and episodes ------------------------------------------------------------------

    def _begin_episode(self, seed: int | None = None, instruction: str = "") -> None:
        self.evaluation.begin(seed, instruction)
        self.real.restart(self.topics.now() / 1e9)
        self.topics.episode(self.evaluation)
        self.publish_frame()

    def publish_frame(self, again: bool = False) -> None:
        """The world as it is (or was, for a copy) under a new stamp, its instruction first."""
        if not again:
            self._picture = self.sim.render(self.settings.camera)
            self.evaluation.frames += 1
        self.topics.instruction(self.sim.instruction)
        stamp = self.topics.now()
        self._viewers = self.topics.viewers
        if self.settings.lock_step and not self.paused:
            self.lock.sent(stamp, time.monotonic())
            self._set_state(SimStatus.WAITING)
        self.topics.frame(self._picture, self.sim.camera_matrix(self.settings.camera), stamp)

    def execute(self, action: np.ndarray, held: bool = False) -> bool:
        """One action; publishes what came of it. Whether the episode is over."""
        done = self.evaluation.step(action, held)
        self.topics.reward(self.evaluation.run.reward)
        self.topics.episode(self.evaluation)
        if done:
            self._after_episode()
        return done

    def _after_episode(self) -> None:
        self.recorder.end()
        run, e = self.evaluation.run, self.evaluation
        counted, good = len(e.counted), e.successes
        share = f" ({100 * good / counted:.0f} %)" if counted else ""
        self._say(
            f"episode {len(e.results)}/{e.episodes}  {run.outcome:<7}  {run.step_count:3d} frames"
            f"  reward {run.reward:.0f}  success so far {good}/{counted}{share}"
            f"  {e.recent_rate:.1f} steps/s"
        )
        self._write_json("under way")
        self._publish_status()

    def _go_on(self) -> None:
        """After actions: the next frame, of the next episode where this one is over."""
        self._progress()
        if self.evaluation.complete:
            self.finished = True
        elif self.evaluation.run.done:
            self._begin_episode()
        elif self.settings.lock_step:
            self.publish_frame()

    # -- chunks -------------------------------------------------------------------------------

    def _on_chunk(self, msg: ActionChunk) -> None:
        now = time.monotonic()
        stamp = Time.from_msg(msg.header.stamp).nanoseconds
        if not self.settings.lock_step:
            self._on_real_time_chunk(msg, stamp)
            return
        verdict = self.lock.judge(stamp, msg.instruction, self.sim.instruction, now)
        if verdict is not Verdict.EXECUTE:
            return
        actions = self._read(msg)
        self._measure(msg, 1e3 * self.lock.round_trip)
        self._set_state(SimStatus.RUNNING)
        for action in actions[: self.settings.execute_steps]:
            if self.stop():
                return
            if self.execute(action):
                break
        self._go_on()

    def _on_real_time_chunk(self, msg: ActionChunk, stamp: int) -> None:
        now = self.get_clock().now().nanoseconds
        if self.real.accept(stamp / 1e9, self._read(msg), now / 1e9):
            self.lock.started = True
            self._measure(msg, (now - stamp) / 1e6)
            if not self.paused:
                self._set_state(SimStatus.RUNNING)

    def _read(self, msg: ActionChunk) -> np.ndarray:
        chunk = msg_to_chunk(msg)
        if not self._dt_warned and abs(chunk.spec.dt * CONTROL_FREQ - 1) > 0.05:
            self._dt_warned = True
            self.get_logger().warning(
                f"the model's steps last {chunk.spec.dt:g} s; each is executed in one control "
                f"period of {1 / CONTROL_FREQ:g} s"
            )
        return sim_actions(chunk)

    def _measure(self, msg: ActionChunk, round_trip: float) -> None:
        stages = dict(zip(msg.stage_names, map(float, msg.stage_ms), strict=False))
        self.evaluation.measured.add(float(msg.latency_ms), round_trip, stages, msg.model)
        self.evaluation.resume_clock()

    # -- real time ----------------------------------------------------------------------------

    def _control_period(self) -> None:
        if self.paused or not self.lock.started:
            return
        action = self.real.period(time.monotonic())
        held = action is None
        if held:
            action = np.array([0, 0, 0, 0, 0, 0, self.sim.gripper])
        self.execute(action, held)
        self._go_on()

    def _real_time_frame(self) -> None:
        if not self.paused:
            self.publish_frame()

    # -- time passes --------------------------------------------------------------------------

    def tick(self) -> None:
        """Called between callbacks: time-outs, copies of the frame, progress lines."""
        if self.paused or self.finished:
            return
        now = time.monotonic()
        if self._inference is not None and self._inference.state == InferenceStatus.ERROR:
            raise VlaError("the model's node reports an error", self._inference.message)
        if not self.settings.lock_step:
            late = not self.lock.started and now - self._created > self.settings.start_timeout
            verdict = Verdict.TOO_LATE if late else Verdict.WAIT
        else:
            if not self.lock.started and self.topics.viewers > self._viewers:
                self.lock.resend_now(now)  # a model came up
            verdict = self.lock.poll(now)
        if verdict is Verdict.TOO_LATE:
            raise VlaError(*self._too_late())
        if verdict is Verdict.RESEND:
            self.publish_frame(again=True)
        self._progress()

    def _too_late(self) -> tuple[str, str]:
        """What is wrong and what to do."""
        run, timeout = self.evaluation.run, self.lock.timeout
        what = f"no action for the frame of episode {run.index}, step {run.step_count}"
        if self.lock.other_instruction:
            return (
                f"{what} within {timeout:g} s: the model answers to "
                f"{self.lock.other_instruction!r} instead of {self.sim.instruction!r}",
                "check that nothing else publishes on the topic instruction",
            )
        said, status = "", self._inference
        if status is not None:
            words = status.last_refusal or status.message
            said = f" (it was {status.state}" + (f": {words})" if words else ")")
        topic = self.resolve_topic_name("inference/status")
        return (
            f"{what} within {timeout:g} s",
            f"is the model node running and active{said}? see {topic}",
        )

    def _on_inference(self, msg: InferenceStatus) -> None:
        self._inference = msg

    def _progress(self) -> None:
        now = time.monotonic()
        if now - self._told < PROGRESS_EVERY:
            return
        e = self.evaluation
        if not self.lock.started:
            topic = self.resolve_topic_name("action")
            self._say(f"waiting for a model on topic {topic} ({now - self._created:.0f} s)")
        elif not e.run.done:
            self._say(
                f"episode {len(e.results) + 1}/{e.episodes}  step {e.run.step_count}/{e.horizon}"
                f"  reward {e.run.reward:.0f}  success so far {e.successes}/{len(e.counted)}"
                f"  {e.recent_rate:.1f} steps/s"
            )

    # -- by hand, from the services -----------------------------------------------------------

    def set_paused(self, paused: bool) -> None:
        if paused == self.paused or self.finished:
            return
        self.paused = paused
        if paused:
            self.lock.withdraw()
            self.evaluation.stop_clock()
            self._set_state(SimStatus.PAUSED)
            return
        self._set_state(SimStatus.RUNNING)
        if self.evaluation.run.done:
            self._begin_episode()
        else:
            self.real.restart(self.topics.now() / 1e9)
            self.publish_frame()

    def reset(self, task: str, seed: int | None, instruction: str) -> None:
        """End the episode under way and begin the run's next one, or another seed's first."""
        s, sim = self.settings, self.sim
        if task and get_task(task) is not sim.task:
            sim = Simulation(task, (s.camera,), s.width, s.height, s.language)
        under_way = not self.evaluation.run.done
        self.evaluation.abort()
        if under_way:
            self.recorder.end()
        self.lock.withdraw()
        if sim is not self.sim:
            self.sim.close()
            self.evaluation.sim = sim
        self._begin_episode(seed, instruction)

    # -- status -------------------------------------------------------------------------------

    def _set_state(self, state: str, message: str = "") -> None:
        changed = (state, message) != (self.state, self.message)
        self.state, self.message = state, message
        # WAITING and RUNNING alternate many times a second: those go with the timer
        if changed and state not in (SimStatus.WAITING, SimStatus.RUNNING):
            self._publish_status()

    def _publish_status(self) -> None:
        self.topics.status(self.evaluation, self.state, self.message)

    def _say(self, text: str) -> None:
        self._told = time.monotonic()
        print(text, flush=True)

    # -- end ----------------------------------------------------------------------------------

    def _write_json(self, ended: str) -> dict:
        s = self.settings
        results = {
            **self.evaluation.results_dict(),
            "ended": ended,
            "started": self._started,
            "lock_step": s.lock_step,
            "execute_steps": s.execute_steps,
            "checkpoint": s.model,
            "picture": {"camera": s.camera, "width": s.width, "height": s.height},
            "chunks_ignored": self.lock.ignored + self.real.ignored,
            "instruction_mismatches": self.lock.mismatched,
            "versions": report.versions(),
        }
        if not s.lock_step:
            results["real_time"] = {
                "control_rate": s.control_rate,
                "frame_rate": s.frame_rate,
                "held_periods": self.real.held,
                "missed_periods": self.real.missed,
            }
        results["command"] = report.command_to_repeat(results)
        report.write_json(self.folder, results)
        return results

    def finish(self, ended: str, error: bool = False) -> None:
        """Write all that was measured; `ended` says why the run is over."""
        if self.begun:
            self.evaluation.stop_clock()
            self.evaluation.abort()
            self.recorder.close()
            self._set_state(SimStatus.ERROR if error else SimStatus.DONE, ended)
        if not self.begun or not self.evaluation.action_steps:
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # nothing was measured, nothing is in it
            return
        results = self._write_json(ended)
        path = report.write_html(self.folder, results, self.evaluation.measured.latency)
        if self.settings.summary:
            self._say(f"{report.plain_table(results)}\nreport: {path}")


# -- the process ------------------------------------------------------------------------------


class _Stop:
    """Ctrl-C and SIGTERM: raise while loading, later only ask, so that results can be written."""

    def __init__(self):
        self.number = 0
        self.raising = True

    def __call__(self, number, frame) -> None:
        first, self.number = not self.number, self.number or number
        if first and self.raising:
            # What is half built at this moment complains when it is let go of.
            sys.unraisablehook = lambda _: None
            raise KeyboardInterrupt


def run(args: Sequence[str] | None = None) -> int:
    """Run the node; 0 all episodes done, 1 the run failed, 2 refused, 128 + n by signal n."""
    stop = _Stop()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    node = executor = None
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        executor = SingleThreadedExecutor()
        node = SimNode()
        node.stop = lambda: bool(stop.number)
        executor.add_node(node)
        node.load()
        stop.raising = False
        while not node.finished and not stop.number:
            executor.spin_once(timeout_sec=0.05)
            node.tick()
        if node.failure is not None:
            raise node.failure
        if not stop.number:
            node.finish("all episodes done")
    except KeyboardInterrupt:
        pass
    except Exception as error:
        stop.raising = False
        return _fail(node, error)
    finally:
        stop.raising = False
        if stop.number and node is not None and node.failure is None:
            node.finish(f"stopped by {signal.Signals(stop.number).name}")
        _close(node, executor)
    return 128 + stop.number if stop.number else 0


def _fail(node: SimNode | None, error: Exception) -> int:
    text = " ".join(str(error).split())
    if not isinstance(error, VlaError) and not type(error).__module__.startswith("rclpy"):
        traceback.print_exc()
        text = f"unexpected {type(error).__name__}: {text}; please report it with the above"
    begun = node is not None and node.begun
    if node is not None:
        node.failure = error
        node.finish(text, error=True)
    print(f"error: {text}", file=sys.stderr, flush=True)
    return 1 if begun else 2


def _close(node: SimNode | None, executor: SingleThreadedExecutor | None) -> None:
    if executor is not None:
        executor.shutdown(timeout_sec=0.5)
    if node is not None:
        node.destroy_node()
    rclpy.try_shutdown()


def main(args: Sequence[str] | None = None) -> int:
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
