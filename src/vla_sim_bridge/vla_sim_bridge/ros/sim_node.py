"""The simulation node: publishes images and an instruction, executes actions, counts success.

All work is done in one thread. What moves the arm, and when, is a `Drive`'s: chunks by themselves,
or commands as a robot's controller takes them. What is counted is `Evaluation`'s.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime

import numpy as np
from rclpy.node import Node

from vla_inference.errors import VlaError
from vla_inference.ros.diagnostics import ERROR, OK, Diagnostics, Report
from vla_inference.ros.guard import Guarded
from vla_inference.ros.parameters import declare, fields_of
from vla_msgs.msg import ActionChunk, SimStatus
from vla_sim_bridge.envs.protocol import World, make_world
from vla_sim_bridge.evaluation import report
from vla_sim_bridge.evaluation.recorder import RunRecorder
from vla_sim_bridge.evaluation.run import Evaluation
from vla_sim_bridge.ros.executor import ChunkDrive
from vla_sim_bridge.ros.robot_executor import RobotDrive
from vla_sim_bridge.ros.sim_process import run
from vla_sim_bridge.ros.sim_services import SimServices
from vla_sim_bridge.ros.sim_settings import SimSettings
from vla_sim_bridge.ros.sim_topics import SimTopics
from vla_sim_bridge.tasks import get_task

PROGRESS_EVERY = 5.0  # s between progress lines within an episode
UNNAMED = "_NODE_NAME_UNKNOWN_"  # rmw: the node of an endpoint, before it is known


class SimNode(Guarded, Node):
    """See config/sim.yaml for the parameters."""

    def __init__(self, **kwargs):
        super().__init__("sim", **kwargs)
        # Loosely typed: an integer for a double, say, is taken; the settings refuse the rest.
        declare(self, SimSettings, read_only=True, dynamic_typing=True)
        values = {name: self.get_parameter(name).value for name in fields_of(SimSettings)}
        self.settings = SimSettings.from_values(values)
        self.folder = self.settings.output_folder()
        self.stop: Callable[[], bool] = lambda: False  # asked between control steps
        self.begun = self.finished = self.paused = False
        self.failure: Exception | None = None
        self.state, self.message = SimStatus.STARTING, "loading"
        self._told = self._created = time.monotonic()
        self._started = datetime.now().astimezone().isoformat(timespec="seconds")

    # -- start --------------------------------------------------------------------------------

    def load(self) -> None:
        """Build the simulation, make sure that no other one is there, publish the first frame."""
        s = self.settings
        sim = make_world(s.task, (s.camera,), s.width, s.height, s.language)
        sim.render(s.camera)  # the first image takes a second
        self.evaluation = Evaluation(sim, s.seed, s.episodes, s.horizon)
        self.evaluation.next_index = s.first_episode
        self._refuse_company()
        self._make_folder()
        every = 1 if s.lock_step else 2  # real time has no time to draw more
        self.recorder = RunRecorder(
            self.evaluation, self.folder, s.record_episodes, s.camera, every
        )
        self.evaluation.on_step = self.recorder.step
        self.topics = SimTopics(self, s.camera)
        SimServices(self)
        Diagnostics(self, "simulation", self._diagnose)
        self.drive = ChunkDrive(self) if s.driven_by == "chunks" else RobotDrive(self)
        self.drive.start()
        self._say(f"{s.task}, {s.episodes} episodes of seed {s.seed}; results: {self.folder}")
        self.begun = True
        self._begin_episode()
        self.create_timer(1.0, self._publish_status)

    @property
    def sim(self) -> World:
        return self.evaluation.sim

    def _refuse_company(self) -> None:
        """Two simulations on the same topics would each execute what the other's model said."""
        topic = self.resolve_topic_name("image")
        end = self._created + self.settings.discovery_time
        while True:
            others = self.get_publishers_info_by_topic(topic)
            # What a node is called is told later than what it publishes.
            known = others and all(o.node_name != UNNAMED for o in others)
            if known or time.monotonic() >= end or self.stop():
                break
            time.sleep(0.05)
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

    def guard(self, callback: Callable) -> Callable:
        """A callback whose errors end the run in an orderly way instead of the process."""

        def guarded(*args):
            if self.finished:
                return
            try:
                callback(*args)
            except Exception as error:  # `run` raises it again
                self.failure, self.finished = error, True

        return guarded

    # -- frames and episodes ------------------------------------------------------------------

    def _begin_episode(self, seed: int | None = None, instruction: str = "") -> None:
        self.evaluation.begin(seed, instruction)
        self.topics.episode(self.evaluation)
        self.drive.begin()

    def publish_frame(self, again: bool = False, counted: bool = True) -> None:
        """The world as it is (or was, for a copy) under a new stamp, its instruction first.

        counted: whether it is one of the run's frames, whose answer is executed.
        """
        if not again:
            self._image = self.sim.render(self.settings.camera)
            self.evaluation.frames += counted
        self.topics.instruction(self.sim.instruction)
        stamp = self.topics.now()
        self.drive.sent(stamp)
        self.topics.frame(self._image, self.sim.camera_matrix(self.settings.camera), stamp)

    def execute(self, action: np.ndarray, held: bool = False) -> bool:
        """One action; publishes what came of it. Whether the episode is over."""
        done = self.evaluation.step(action, held)
        self.topics.reward(self.evaluation.run.reward)
        self.topics.episode(self.evaluation)
        if done:
            self._after_episode()
        return done

    def stand_still(self) -> np.ndarray:
        """The action [7] of no motion, the gripper as it is."""
        return np.array([0, 0, 0, 0, 0, 0, self.sim.gripper])

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

    def go_on(self) -> None:
        """After actions: the next frame, of the next episode where this one is over."""
        self._progress()
        if self.evaluation.complete:
            self.finished = True
        elif self.evaluation.run.done:
            self._begin_episode()
        elif self.settings.lock_step:
            self.publish_frame()

    def measure(self, msg: ActionChunk, round_trip: float) -> None:
        """A chunk was taken, `round_trip` ms after its frame was published."""
        stages = dict(zip(msg.stage_names, map(float, msg.stage_ms), strict=False))
        self.evaluation.measured.add(float(msg.latency_ms), round_trip, stages, msg.model)
        self.evaluation.resume_clock()

    # -- time passes --------------------------------------------------------------------------

    def tick(self) -> None:
        """Called between callbacks: whatever time has brought, progress lines."""
        if self.paused or self.finished:
            return
        self.drive.poll()
        self._progress()

    def _progress(self) -> None:
        now = time.monotonic()
        if now - self._told < PROGRESS_EVERY:
            return
        e = self.evaluation
        if not self.drive.lock.started:
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
            self.drive.withdraw()
            self.evaluation.stop_clock()
            self.set_state(SimStatus.PAUSED)
            return
        self.set_state(SimStatus.RUNNING)
        if self.evaluation.run.done:
            self._begin_episode()
        else:
            self.drive.resume()

    def reset(self, task: str, seed: int | None, instruction: str) -> None:
        """End the episode under way and begin the run's next one, or another seed's first."""
        s, sim = self.settings, self.sim
        if task and get_task(task).name != sim.task.name:
            sim = make_world(task, (s.camera,), s.width, s.height, s.language)
        under_way = not self.evaluation.run.done
        self.evaluation.abort()
        if under_way:
            self.recorder.end()
        self.drive.withdraw()
        if sim is not self.sim:
            self.sim.close()
            self.evaluation.sim = sim
        self._begin_episode(seed, instruction)

    # -- status -------------------------------------------------------------------------------

    def set_state(self, state: str, message: str = "") -> None:
        changed = (state, message) != (self.state, self.message)
        self.state, self.message = state, message
        # WAITING and RUNNING alternate many times a second: those go with the timer
        if changed and state not in (SimStatus.WAITING, SimStatus.RUNNING):
            self._publish_status()

    def _diagnose(self) -> Report:
        e = self.evaluation
        values = {
            "episodes": f"{len(e.results)} of {e.episodes}",
            "successes": e.successes,
            "action rate [Hz]": f"{e.recent_rate:.1f}",
        }
        values |= self.fault_values()
        return ERROR if self.state == SimStatus.ERROR else OK, self.message or self.state, values

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
            "image": {"camera": s.camera, "width": s.width, "height": s.height},
            "driven_by": s.driven_by,
            "instruction_mismatches": self.drive.lock.mismatched,
            "versions": {**report.versions(), **self.sim.versions},
            **self.drive.results(),
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
            self.set_state(SimStatus.ERROR if error else SimStatus.DONE, ended)
        if not self.begun or not self.evaluation.action_steps:
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # nothing was measured, nothing is in it
            return
        results = self._write_json(ended)
        path = report.write_html(self.folder, results, self.evaluation.measured.latency)
        if self.settings.summary:
            self._say(f"{report.plain_table(results)}\nreport: {path}")


def main(args: Sequence[str] | None = None) -> int:
    return run(SimNode, args)


if __name__ == "__main__":
    sys.exit(main())
