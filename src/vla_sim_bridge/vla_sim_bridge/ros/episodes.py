"""The run of episodes of the simulation node: its world, counts, topics and results."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import cast

import numpy as np
from rclpy.node import Node

from vla_inference.ros.diagnostics import ERROR, OK, Report
from vla_msgs.msg import ActionChunk, SimStatus
from vla_sim_bridge.envs.base import StepResult
from vla_sim_bridge.envs.protocol import World, make_world
from vla_sim_bridge.evaluation import report
from vla_sim_bridge.evaluation.lookback import Lookback
from vla_sim_bridge.evaluation.recorder import RunRecorder
from vla_sim_bridge.evaluation.run import ClosedLoopEvaluation
from vla_sim_bridge.ros.sim_settings import SimSettings
from vla_sim_bridge.ros.sim_topics import SimTopics
from vla_sim_bridge.tasks import Language, get_task

PROGRESS_EVERY = 5.0  # s between progress lines within an episode
# s after each past image: of more than the middleware's buffer holds (Fast DDS: 512 kB) the oldest
# are lost where who listens is slow
GAP, AGAIN = 0.005, 0.1


class Episodes:
    """What a `Drive` plays: it decides when an episode begins, a frame is due, an action comes.

    stop: asked between control steps. more_results: what the drive adds to the results.
    paused, finished, failure: how the run stands. answered: whether a model has.
    """

    def __init__(
        self,
        node: Node,
        settings: SimSettings,
        folder: Path,
        world: World,
        stop: Callable[[], bool] = lambda: False,
    ):
        s = settings
        self.node, self.settings, self.folder, self.stop = node, settings, folder, stop
        self.evaluation = ClosedLoopEvaluation(
            world, s.seed, s.episodes, s.horizon or world.task.horizon, s.first_episode, s.only
        )
        every = 1 if s.lock_step else 2  # real time has no time to draw more
        self.recorder = RunRecorder(
            self.evaluation, folder, s.record_episodes, s.camera, every, s.record_failures
        )
        self.evaluation.on_step = self._after_step
        self.topics = SimTopics(node, s.cameras, s.state, s.image_topics[len(s.cameras) :])
        self.lookback = Lookback(s.needs)
        self.more_results: Callable[[], dict] = dict
        self.paused = self.finished = self.answered = False
        self.failure: Exception | None = None
        self.state, self.message = SimStatus.STARTING, "loading"
        self._told = self._created = time.monotonic()
        self._told_step = (-1, -1, False)  # episode, step, whether it was said that it waits
        self._started = datetime.now().astimezone().isoformat(timespec="seconds")

    @property
    def sim(self) -> World:
        return self.evaluation.sim

    def guard(self, callback: Callable) -> Callable:
        """A callback whose errors end the run in an orderly way instead of the process."""

        def guarded(*args):
            if self.finished:
                return
            try:
                callback(*args)
            except Exception as error:  # `sim_process.run` raises it again
                self.failure, self.finished = error, True

        return guarded

    # -- episodes -----------------------------------------------------------------------------

    def begin(self, seed: int | None = None, instruction: str = "") -> None:
        """The run's next episode, or another seed's first."""
        self.evaluation.begin(seed, instruction)
        self.lookback.begin()
        self._look()
        self.topics.episode(self.evaluation)

    def abort(self) -> None:
        """End the episode under way from outside."""
        under_way = not self.evaluation.episode.done
        self.evaluation.abort()
        if under_way:
            self.recorder.end()

    def world_of(self, task: str) -> World:
        """This world, or another one where the task is another; empty: the same."""
        if not task or get_task(task).name == self.sim.task.name:
            return self.sim
        s = self.settings
        language = cast("Language", s.language)
        return make_world(task, s.cameras, s.width, s.height, language)

    def use(self, world: World) -> None:
        if world is not self.sim:
            self.sim.close()
            self.evaluation.sim = world

    # -- frames and actions -------------------------------------------------------------------

    def _after_step(self) -> None:
        self.recorder.step()
        self._look()

    def _look(self) -> None:
        """Keeps what the cameras see at this control step, where past images are wanted."""
        if self.settings.history:
            self.lookback.see({name: self.sim.seen_by(name) for name in self.settings.cameras})

    def take_image(self, counted: bool = True) -> None:
        """counted: whether it is one of the run's frames, whose answer is executed."""
        self._images = {name: self.sim.seen_by(name) for name in self.settings.cameras}
        self.recorder.see(self._images[self.settings.camera])
        self._past = self.lookback.past() if self.settings.history else []
        self._state = self.sim.state()
        self.evaluation.frames += counted

    def publish_image(self, stamp: int, again: bool = False) -> None:
        """The images taken last, of every camera, and the robot's state with them.

        again: those before were not answered, perhaps because some of them got lost.
        """
        self._publish_past(stamp, AGAIN if again else GAP)
        self.topics.robot(self._state, stamp)
        for name in reversed(self._images):  # the first one leads: it comes last
            matrix = self.sim.camera_matrix(name)
            self.topics.frame(name, self._images[name], matrix, stamp)

    def _publish_past(self, stamp: int, gap: float) -> None:
        cameras = self.settings.cameras
        seen = [(camera, images[camera]) for images in self._past for camera in cameras]
        topics = self.settings.image_topics[len(cameras) :]
        for topic, (camera, image) in zip(topics, seen, strict=True):
            self.topics.past(topic, image, camera, stamp)
            time.sleep(gap)

    def execute(self, action: np.ndarray, held: bool = False) -> bool:
        """One action; publishes what came of it. Whether the episode is over."""
        return self.advance(lambda: self.sim.step(action), held)

    def advance(self, move: Callable[[], StepResult], held: bool = False) -> bool:
        """The same for any other way to move the robot for one control period."""
        done = self.evaluation.advance(move, held)
        self.topics.reward(self.evaluation.episode.reward)
        self.topics.episode(self.evaluation)
        if done:
            self._after_episode()
        return done

    def measure(self, msg: ActionChunk, round_trip: float) -> None:
        """A chunk was taken, `round_trip` ms after its frame was published."""
        stages = dict(zip(msg.stage_names, map(float, msg.stage_ms), strict=False))
        self.evaluation.measured.add(float(msg.latency_ms), round_trip, stages, msg.model)
        self.evaluation.resume_clock()

    def _after_episode(self) -> None:
        self.recorder.end()
        run, e = self.evaluation.episode, self.evaluation
        counted, good = len(e.counted), e.successes
        share = f" ({100 * good / counted:.0f} %)" if counted else ""
        self.say(
            f"episode {len(e.results)}/{e.episodes}{self._number()}  {run.outcome:<7}  "
            f"{run.step_count:3d} frames"
            f"  reward {run.reward:.0f}  success so far {good}/{counted}{share}"
            f"  {e.recent_rate:.1f} steps/s"
        )
        self._write_json("under way")
        self.publish_status()

    # -- status -------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        self._told = time.monotonic()
        print(text, flush=True)

    def progress(self) -> None:
        """A line, where none was told for a while."""
        now = time.monotonic()
        if now - self._told < PROGRESS_EVERY:
            return
        e = self.evaluation
        if not self.answered:
            topic = self.node.resolve_topic_name("action")
            self.say(f"waiting for a model on topic {topic} ({now - self._created:.0f} s)")
        elif not (run := e.episode).done:
            self._tell_step(run.index, run.step_count)

    def _tell_step(self, index: int, step: int) -> None:
        """How far the episode is; once that it waits, where it does not go on."""
        waits = self._told_step[:2] == (index, step)
        if waits and self._told_step[2]:
            return
        self._told_step = (index, step, waits)
        e, commanded = self.evaluation, self.settings.driven_by != "chunks"
        what = "the command node to be enabled" if commanded else "an action"
        self.say(
            f"episode {len(e.results) + 1}/{e.episodes}{self._number()}  step {step}/{e.horizon}"
            f"  reward {e.episode.reward:.0f}  success so far {e.successes}/{len(e.counted)}  "
            + (f"waiting for {what}" if waits else f"{e.recent_rate:.1f} steps/s")
        )

    def _number(self) -> str:
        """How --only and the report call the episode."""
        return f" (#{self.evaluation.episode.index})"

    def set_state(self, state: str, message: str = "") -> None:
        changed = (state, message) != (self.state, self.message)
        self.state, self.message = state, message
        # WAITING and RUNNING alternate many times a second: those go with the timer
        if changed and state not in (SimStatus.WAITING, SimStatus.RUNNING):
            self.publish_status()

    def publish_status(self) -> None:
        self.topics.status(self.evaluation, self.state, self.message)

    def diagnose(self) -> Report:
        e = self.evaluation
        values = {
            "episodes": f"{len(e.results)} of {e.episodes}",
            "successes": e.successes,
            "action rate [Hz]": f"{e.recent_rate:.1f}",
        }
        return ERROR if self.state == SimStatus.ERROR else OK, self.message or self.state, values

    # -- end ----------------------------------------------------------------------------------

    def _write_json(self, ended: str) -> dict:
        s = self.settings
        results = {
            **self.evaluation.results_dict(),
            "ended": ended,
            "started": self._started,
            "lock_step": s.lock_step,
            "execute_steps": s.execute_steps,
            "first_episode": s.first_episode,
            "only_episodes": list(s.only),
            "checkpoint": s.model,
            "image": {"camera": s.camera, "width": s.width, "height": s.height},
            "driven_by": s.driven_by,
            "versions": {**report.versions(), **self.sim.versions},
            **self.more_results(),
        }
        results["command"] = report.command_to_repeat(results)
        report.write_json(self.folder / report.RESULTS, results)
        return results

    def end(self, ended: str, error: bool = False) -> None:
        """Write all that was measured; `ended` says why the run is over."""
        self.evaluation.stop_clock()
        self.evaluation.abort()
        self.recorder.close()
        self.set_state(SimStatus.ERROR if error else SimStatus.DONE, ended)
        if not self.evaluation.action_steps:
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # nothing was measured, nothing is in it
            return
        results = self._write_json(ended)
        path = report.write_html(self.folder, results, self.evaluation.measured.latency)
        if self.settings.summary:
            self.say(f"{report.plain_table(results)}\nreport: {path}")
