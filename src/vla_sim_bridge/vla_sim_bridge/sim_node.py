"""The simulation as a ROS node: frames and instruction out, action chunks in, N episodes, results.

All work is done in one thread: a chunk's callback executes it and publishes the next frame.
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import datetime

import rclpy
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Float32, String
from std_srvs.srv import SetBool

from vla_inference.errors import VlaError
from vla_inference.ros.images import rgb_to_image
from vla_inference.ros.messages import msg_to_chunk, steps_to_chunk
from vla_inference.ros.qos import CHUNK, IMAGE_INPUT, IMAGE_OUTPUT, LATCHED
from vla_msgs.msg import ActionChunk, EpisodeStatus, InferenceStatus, SimStatus
from vla_msgs.srv import ResetEpisode, StepSim
from vla_sim_bridge import report
from vla_sim_bridge.conventions import sim_actions
from vla_sim_bridge.evaluation import Evaluation
from vla_sim_bridge.lock_step import LockStep, Verdict
from vla_sim_bridge.real_time import RealTime
from vla_sim_bridge.recorder import RunRecorder
from vla_sim_bridge.sim_settings import SimSettings
from vla_sim_bridge.simulation import CONTROL_FREQ, Simulation
from vla_sim_bridge.tasks import get_task

PROGRESS_EVERY = 5.0  # s between progress lines within an episode


class RunError(VlaError):
    """The run cannot go on; what was measured so far is written."""


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
        self.evaluation: Evaluation | None = None
        self.recorder: RunRecorder | None = None
        self.state, self.message = SimStatus.STARTING, "loading"
        self.finished = False
        self.failure: Exception | None = None
        self.paused = False
        self._instruction: str | None = None
        self._last_stamp = 0
        self._inference: InferenceStatus | None = None
        self._told = self._created = time.monotonic()
        self._subscribers = 0
        self._dt_warned = False
        self._started = datetime.now().astimezone().isoformat(timespec="seconds")

    # -- start --------------------------------------------------------------------------------

    def load(self) -> None:
        """Build the simulation, make sure that no other one is there, publish the first frame."""
        s = self.settings
        self.sim = Simulation(s.task, (s.camera,), s.width, s.height)
        self.evaluation = Evaluation(self.sim, s.seed, s.episodes, s.horizon)
        self._refuse_company()
        self._create_interfaces()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.recorder = RunRecorder(
            self.evaluation, self.folder, s.record_episodes, s.camera, 1 if s.lock_step else 2
        )
        self.evaluation.on_step = self._after_step
        self.lock = LockStep(s.action_timeout, s.start_timeout)
        self.real = RealTime(1.0 / s.control_rate)
        self._say(f"{s.task}, {s.episodes} episodes of seed {s.seed}; results: {self.folder}")
        self._write_json("under way")
        self._begin_episode()
        if not s.lock_step:
            self.create_timer(1.0 / s.control_rate, self._guard(self._control_period))
            self.create_timer(1.0 / s.frame_rate, self._guard(self._real_time_frame))
        self.create_timer(1.0, self._publish_status)

    def _refuse_company(self) -> None:
        """Two simulations on the same topics would each execute what the other's model said."""
        rest = self.settings.discovery_time - (time.monotonic() - self._created)
        while rest > 0 and not self.stop():
            time.sleep(min(rest, 0.1))
            rest -= 0.1
        topic = self.resolve_topic_name("image")
        others = self.get_publishers_info_by_topic(topic)
        if others:
            who = ", ".join(sorted({_full_name(o) for o in others}))
            raise VlaError(
                f"{topic} has a publisher already ({who})",
                "end the other simulation or camera, or give this one a namespace of its own "
                "(a killed one takes up to 20 s to be forgotten)",
            )

    def _create_interfaces(self) -> None:
        self.image_out = self.create_publisher(Image, "image", IMAGE_OUTPUT)
        self.info_out = self.create_publisher(CameraInfo, "camera_info", IMAGE_OUTPUT)
        self.instruction_out = self.create_publisher(String, "instruction", LATCHED)
        self.reward_out = self.create_publisher(Float32, "reward", CHUNK)
        self.episode_out = self.create_publisher(EpisodeStatus, "~/episode", CHUNK)
        self.status_out = self.create_publisher(SimStatus, "~/status", LATCHED)
        self.create_subscription(ActionChunk, "action", self._guard(self._on_chunk), CHUNK)
        self.create_subscription(
            InferenceStatus, "inference/status", self._on_inference, IMAGE_INPUT
        )
        self.create_service(ResetEpisode, "~/reset", self._on_reset)
        self.create_service(StepSim, "~/step", self._on_step)
        self.create_service(SetBool, "~/pause", self._on_pause)

    def _guard(self, callback: Callable) -> Callable:
        """A callback whose errors end the run in an orderly way instead of the process."""

        def guarded(*args):
            if self.finished:
                return
            try:
                callback(*args)
            except Exception as error:
                self.failure = error
                self.finished = True

        return guarded

    # -- frames and chunks --------------------------------------------------------------------

    def _begin_episode(self, seed: int | None = None, instruction: str = "") -> None:
        self.evaluation.begin(seed, instruction)
        self.real.restart(self._now_stamp() / 1e9)
        self._publish_episode()
        self._publish_frame()

    def _now_stamp(self) -> int:
        """Nanoseconds of the node's clock, never the same twice."""
        self._last_stamp = max(self.get_clock().now().nanoseconds, self._last_stamp + 1)
        return self._last_stamp

    def _publish_frame(self, again: bool = False) -> None:
        """The world as it is, under a new stamp; the instruction first where it changed."""
        if not again:
            s = self.settings
            self._picture = self.sim.render(s.camera)
            self.evaluation.frames += 1
        stamp = self._now_stamp()
        msg = rgb_to_image(self._picture, Time(nanoseconds=stamp).to_msg(), self._frame_id)
        if self.sim.instruction != self._instruction:
            self._instruction = self.sim.instruction
            self.instruction_out.publish(String(data=self._instruction))
        self._subscribers = self.image_out.get_subscription_count()
        if self.settings.lock_step and not self.paused:
            self.lock.sent(stamp, time.monotonic())
            self._set_state(SimStatus.WAITING)
        self.image_out.publish(msg)
        self.info_out.publish(self._camera_info(msg.header))

    @property
    def _frame_id(self) -> str:
        return f"{self.settings.camera}_optical"

    def _camera_info(self, header) -> CameraInfo:
        s = self.settings
        k = self.sim.camera_matrix(s.camera)
        info = CameraInfo(header=header, width=s.width, height=s.height)
        info.distortion_model, info.d = "plumb_bob", [0.0] * 5
        info.k = k.ravel().tolist()
        info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        info.p = [*k[0], 0.0, *k[1], 0.0, *k[2], 0.0]
        return info

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
            if self._execute(action):
                break
        self._next_frame()

    def _next_frame(self) -> None:
        """After actions: the next frame, of the next episode where this one is over."""
        self._progress()
        if self.evaluation.complete:
            self.finished = True
        elif self.evaluation.run.done:
            self._begin_episode()
        else:
            self._publish_frame()

    def _read(self, msg: ActionChunk):
        chunk = msg_to_chunk(msg)
        if not self._dt_warned and abs(chunk.spec.dt * CONTROL_FREQ - 1) > 0.05:
            self._dt_warned = True
            self.get_logger().warning(
                f"the model's steps last {chunk.spec.dt:g} s; each is executed in one control "
                f"period of {1 / CONTROL_FREQ:g} s"
            )
        return sim_actions(chunk)

    def _measure(self, msg: ActionChunk, round_trip: float | None) -> None:
        stages = dict(zip(msg.stage_names, map(float, msg.stage_ms), strict=False))
        self.evaluation.measured.add(float(msg.latency_ms), round_trip, stages, msg.model)
        self.evaluation.resume_clock()

    def _execute(self, action) -> bool:
        """One action; publishes what came of it. Whether the episode is over."""
        done = self.evaluation.step(action)
        self.reward_out.publish(Float32(data=float(self.evaluation.run.reward)))
        self._publish_episode()
        if done:
            self._after_episode()
        return done

    def _after_step(self) -> None:
        self.recorder.step()

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

    # -- real time ----------------------------------------------------------------------------

    def _on_real_time_chunk(self, msg: ActionChunk, stamp: int) -> None:
        now = self.get_clock().now().nanoseconds
        if self.real.accept(stamp / 1e9, self._read(msg), now / 1e9):
            self.lock.started = True
            self._measure(msg, (now - stamp) / 1e6)
            self._set_state(SimStatus.RUNNING if not self.paused else SimStatus.PAUSED)

    def _control_period(self) -> None:
        if self.paused or not self.lock.started:
            return
        action = self.real.period(time.monotonic())
        if action is None:
            action = [0.0] * 6 + [self.sim.gripper]
        if self._execute(action):
            self._next_frame()
        else:
            self._progress()

    def _real_time_frame(self) -> None:
        if not self.paused:
            self._publish_frame()

    # -- time passes --------------------------------------------------------------------------

    def tick(self) -> None:
        """Called between callbacks: time-outs, copies of the frame, progress lines."""
        now = time.monotonic()
        if self.evaluation is None or self.paused or self.finished:
            return
        if self._inference is not None and self._inference.state == InferenceStatus.ERROR:
            raise RunError(f"the inference node reports an error: {self._inference.message}")
        if not self.settings.lock_step:
            self._real_time_silence(now)
        elif self.lock.waiting:
            if not self.lock.started and self.image_out.get_subscription_count() > (
                self._subscribers
            ):
                self.lock.resend_now(now)
            verdict = self.lock.poll(now)
            if verdict is Verdict.TOO_LATE:
                raise RunError(*self._too_late())
            if verdict is Verdict.RESEND:
                self._publish_frame(again=True)
        self._progress()

    def _real_time_silence(self, now: float) -> None:
        if not self.lock.started and now - self._created > self.settings.start_timeout:
            raise RunError(*self._too_late())

    def _too_late(self) -> tuple[str, str]:
        run, timeout = self.evaluation.run, self.lock.timeout
        what = f"no action for the frame of episode {run.index}, step {run.step_count}"
        if self.lock.other_instruction:
            return (
                f"{what} within {timeout:g} s: the model answers to "
                f"{self.lock.other_instruction!r} instead of {self.sim.instruction!r}",
                "check that nothing else publishes on the topic instruction",
            )
        status = self._inference
        said = ""
        if status is not None:
            words = status.last_refusal or status.message
            said = f" (it is {status.state}" + (f": {words})" if words else ")")
        return (
            f"{what} within {timeout:g} s",
            f"is the model node running and active{said}? see {self._status_topic}",
        )

    @property
    def _status_topic(self) -> str:
        return self.resolve_topic_name("inference/status")

    def _on_inference(self, msg: InferenceStatus) -> None:
        self._inference = msg

    def _progress(self) -> None:
        now = time.monotonic()
        if now - self._told < PROGRESS_EVERY:
            return
        e = self.evaluation
        if not self.lock.started:
            waited = now - self._created
            topic = self.resolve_topic_name("action")
            self._say(f"waiting for a model on topic {topic} ({waited:.0f} s)")
        elif not e.run.done:
            self._say(
                f"episode {len(e.results) + 1}/{e.episodes}  step {e.run.step_count}/{e.horizon}"
                f"  reward {e.run.reward:.0f}  success so far {e.successes}/{len(e.counted)}"
                f"  {e.recent_rate:.1f} steps/s"
            )

    # -- services -----------------------------------------------------------------------------

    def _on_pause(self, request, response):
        if request.data != self.paused and not self.finished:
            self.paused = request.data
            if self.paused:
                self.lock.withdraw()
                self.evaluation.stop_clock()
                self._set_state(SimStatus.PAUSED)
            else:
                self._resume()
        response.success, response.message = True, "paused" if self.paused else "running"
        return response

    def _resume(self) -> None:
        if self.evaluation.run.done:
            self._begin_episode()
        else:
            self.real.restart(self._now_stamp() / 1e9)
            self._publish_frame()
        if self.settings.lock_step is False:
            self._set_state(SimStatus.RUNNING)

    def _on_reset(self, request, response):
        try:
            if self.finished:
                raise VlaError("the run is over", "start the simulation again")
            self._reset(request.task, request.seed, request.instruction.strip())
            response.success = True
        except VlaError as error:
            response.success, response.message = False, str(error)
        response.episode = self._episode_status()
        return response

    def _reset(self, task: str, seed: int, instruction: str) -> None:
        s = self.settings
        if seed < -1:
            raise VlaError(f"seed {seed}", "give 0 or more, or -1 for the run's next")
        sim = self.sim
        if task and get_task(task) is not sim.task:
            sim = Simulation(task, (s.camera,), s.width, s.height)
        self.evaluation.abort()
        self.recorder.end()
        self.lock.withdraw()
        if sim is not self.sim:
            self.sim.close()
            self.sim = self.evaluation.sim = sim
        self._begin_episode(None if seed == -1 else seed, instruction)

    def _on_step(self, request, response):
        try:
            if not self.paused:
                raise VlaError("the simulation is running", "pause it first (~/pause)")
            if self.evaluation.run.done:
                raise VlaError("the episode is over", "reset (~/reset) or go on (~/pause)")
            for action in sim_actions(steps_to_chunk(request.steps)):
                if self._execute(action):
                    break
            if self.evaluation.complete:
                self.finished = True
            else:
                self._publish_frame()
            response.success = True
        except VlaError as error:
            response.success, response.message = False, str(error)
        response.episode = self._episode_status()
        return response

    # -- status -------------------------------------------------------------------------------

    def _episode_status(self) -> EpisodeStatus:
        run, sim = self.evaluation.run, self.sim
        msg = EpisodeStatus(task=sim.task.name, seed=run.seed, index=run.index)
        msg.header.stamp = Time(nanoseconds=self._last_stamp).to_msg()
        msg.header.frame_id = self._frame_id
        msg.step, msg.horizon, msg.reward = run.step_count, run.horizon, float(run.reward)
        msg.success, msg.done, msg.outcome = run.outcome == "success", run.done, run.outcome
        msg.instruction = sim.instruction
        return msg

    def _publish_episode(self) -> None:
        self.episode_out.publish(self._episode_status())

    def _set_state(self, state: str, message: str = "") -> None:
        changed = (state, message) != (self.state, self.message)
        self.state, self.message = state, message
        # WAITING and RUNNING alternate many times a second: those go with the timer
        if changed and state not in (SimStatus.WAITING, SimStatus.RUNNING):
            self._publish_status()

    def _publish_status(self) -> None:
        if self.evaluation is None or self.evaluation.run is None:
            return
        e = self.evaluation
        msg = SimStatus(state=self.state, message=self.message, episode=self._episode_status())
        msg.header.stamp = self.get_clock().now().to_msg()
        msg.episodes_done, msg.episodes_total = len(e.counted), e.episodes
        msg.successes, msg.ever_successes = e.successes, e.ever_successes
        msg.frames_total, msg.action_rate = e.frames, float(e.recent_rate)
        self.status_out.publish(msg)

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
                "control_rate": s.control_rate, "frame_rate": s.frame_rate,
                "held_periods": self.real.held, "missed_periods": self.real.missed,
            }  # fmt: skip
        results["command"] = report.command_to_repeat(results)
        report.write_json(self.folder, results)
        return results

    def finish(self, ended: str, error: bool = False) -> None:
        """Write all that was measured; `ended` says why the run is over."""
        if self.recorder is None or self.evaluation.run is None:
            return  # nothing was measured, not even begun
        self.evaluation.stop_clock()
        self.evaluation.abort()
        self.recorder.close()
        results = self._write_json(ended)
        path = report.write_html(self.folder, results, self.evaluation.measured.latency)
        self._set_state(SimStatus.ERROR if error else SimStatus.DONE, ended)
        if self.settings.summary:
            self._say(f"{report.plain_table(results)}\nreport: {path}")


def _full_name(endpoint) -> str:
    return f"{endpoint.node_namespace.rstrip('/')}/{endpoint.node_name}"


class _Stop:
    """Ctrl-C and SIGTERM: raise while loading, later only ask, so that results can be written."""

    def __init__(self):
        self.number = 0
        self.raising = True

    def __call__(self, number, frame) -> None:
        first, self.number = not self.number, self.number or number
        if first and self.raising:
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
    except KeyboardInterrupt:
        pass
    except Exception as error:
        stop.raising = False
        return _fail(node, error)
    else:
        if not stop.number:
            node.finish("all episodes done")
            return 0
    finally:
        stop.raising = False
        if stop.number and node is not None:
            node.finish(f"stopped by {signal.Signals(stop.number).name}")
        _close(node, executor)
    return 128 + stop.number


def _fail(node: SimNode | None, error: Exception) -> int:
    text = " ".join(str(error).split())
    ours = isinstance(error, VlaError)
    if not ours and not type(error).__module__.startswith("rclpy"):
        traceback.print_exc()
        text = f"unexpected {type(error).__name__}: {text}; please report it with the above"
    begun = node is not None and node.evaluation is not None and node.evaluation.run is not None
    if begun:
        node.finish(text, error=True)
    print(f"error: {text}", file=sys.stderr, flush=True)
    return 1 if begun else 2


def _close(node: SimNode | None, executor) -> None:
    if executor is not None:
        executor.shutdown(timeout_sec=0.5)
    if node is not None:
        node.destroy_node()
    rclpy.try_shutdown()


def main(args: Sequence[str] | None = None) -> int:
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
