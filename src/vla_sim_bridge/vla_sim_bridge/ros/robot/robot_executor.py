"""Simulates a robot that takes a controller's commands instead of chunks, see `robot_inputs`.

In lock step simulated time (/clock) moves on by one control period after each command, and stands
still while the model thinks or the command node is asked; so a run is the same each time, however
fast the machine. In real time it is the ROS clock that counts, or, at a real-time factor other
than 1, simulated time that passes by itself at that pace. Chunks are heard only to know that the
model has answered.
"""

from __future__ import annotations

import math
import time

from rclpy.qos import qos_profile_sensor_data
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Float64MultiArray

from vla_inference.episodes.robosuite import CONTROL_FREQ
from vla_inference.ros.guard import GuardedNode
from vla_inference.ros.messages import step_count
from vla_inference.ros.qos import CHUNK, COMMAND
from vla_msgs.msg import ActionChunk, SimStatus
from vla_sim_bridge.ros.auto_enable import ByHand, Operator
from vla_sim_bridge.ros.episodes import Episodes
from vla_sim_bridge.ros.executor import Drive
from vla_sim_bridge.ros.robot.base_input import BaseInput
from vla_sim_bridge.ros.robot.robot_inputs import (
    JOINT_KINDS,
    CartesianInput,
    JointInput,
    RobotInput,
    is_open,
)

PERIOD = round(1e9 / CONTROL_FREQ)  # ns
BEGINNING = 100 * 10**9  # ns, of simulated time: 0 would be "no time"
CLOCK_AGAIN = 0.1  # s: /clock is best effort
FRAME_AGAIN = 1.0  # s between copies for a command node that comes up after an answer


class RobotDrive(Drive):
    def __init__(self, node: GuardedNode, episodes: Episodes):
        super().__init__(node, episodes)
        s = self.settings
        self.input = make_input(self, s.driven_by)
        self.operator = (Operator if s.auto_enable else ByHand)(node, s.start_timeout)
        self.gripper = 1.0  # commanded: 1 open
        self._clock, self._seen_since = BEGINNING, 0
        self._left = 0  # control periods until the next frame
        self._delay = round(1e9 * s.answer_delay) if s.lock_step else 0
        self._due = 0  # when the answer under way reaches the command node
        self._answer: ActionChunk | None = None
        self._answered = False  # whether a frame of the run was
        self._awaiting = False  # it is due
        self._imaged = BEGINNING  # when the frame that is out was taken
        self._asked: float | None = None  # when the command of the period under way was asked for
        self._asked_again = 0.0
        self._heard = self._seen = False
        self._shown_at = -math.inf  # when the model was shown the scene of a robot not yet enabled
        self._begun = False  # whether a command has come in this episode
        self.unanswered = 0  # periods from then on in which none came, though it was waited for
        self._stops: dict[str, int] = {}
        self._own_time = s.lock_step or s.real_time_factor != 1.0
        if self._own_time:
            # A copy of a frame shows what was to be seen when the first one was taken.
            self.episodes.topics.time = lambda: self._clock if not self._delay else self._imaged
            self._clock_topic = node.create_publisher(Clock, "/clock", qos_profile_sensor_data)
        if self._delay:
            self._late_answers = node.create_publisher(ActionChunk, "delayed_action", CHUNK)

    def start(self) -> None:
        super().start()
        hear, guard = self.node.create_subscription, self.episodes.guard
        # The gripper first: it is told before the motion of the same period.
        hear(Float64MultiArray, "gripper", guard(self._on_gripper), COMMAND)
        self.input.listen()

    # -- episodes -----------------------------------------------------------------------------

    def begin(self) -> None:
        self.input.reset()
        self.gripper, self._seen, self._begun = self.episodes.sim.gripper, False, False
        self._forget()
        self._seen_since = self.now()
        self._shown_at = -math.inf
        self.operator.begin()
        self._tell_where()

    def withdraw(self) -> None:
        super().withdraw()
        self._forget()

    def _forget(self) -> None:
        self._asked, self._left = None, 0
        self._answer, self._awaiting = None, False

    # -- what comes in ------------------------------------------------------------------------

    def now(self) -> int:
        """ns, of the clock that commands are stamped by."""
        return self._clock if self._own_time else self.episodes.topics.time()

    def commanded(self, stamp: int | None) -> None:
        """A command was taken. stamp: its time in ns, None where it has none."""
        self._heard = self._heard or stamp is None or stamp >= self._clock

    def _on_gripper(self, msg: Float64MultiArray) -> None:
        told = is_open(msg)
        self.gripper = self.gripper if told is None else told

    # -- what goes out ------------------------------------------------------------------------

    def _tell_where(self) -> None:
        """What is measured, then what time it is."""
        self.input.tell_where(self.now())

    def _tell_time(self) -> None:
        """Between periods it is still the last one's time: the next has to be a new one."""
        between = self.settings.lock_step and self._asked is None
        at = self._clock - (PERIOD if between else 0)
        self._clock_topic.publish(Clock(clock=Time(nanoseconds=at).to_msg()))

    # -- control periods ----------------------------------------------------------------------

    def _period(self) -> bool:
        """One control period; whether the episode is over."""
        move, holds = self.input.move(1e-9 * self.now(), 1e-9 * PERIOD)
        return self.episodes.advance(move, held=holds)

    def answered(self, msg: ActionChunk) -> None:
        self.settings.execute_steps = self.settings.steps_of(step_count(msg))
        if not self.operator.ready:
            if self._delay:
                self._late_answers.publish(msg)
            return
        self._answered = True
        self.episodes.measure(msg, 1e3 * self.lock.round_trip)
        self.episodes.set_state(SimStatus.RUNNING)
        if self._delay:
            self._answer = msg
            return
        self._left = self.settings.execute_steps
        self._ask()

    def publish_frame(self, again: bool = False, counted: bool = True) -> None:
        self.input.taking_image(self.now())
        super().publish_frame(again, counted)

    def _new_frame(self) -> None:
        """Where answers take simulated time, it goes on while the model thinks."""
        started = self._answered
        self._answer, self._awaiting = None, not started
        self._imaged = self._clock
        self.publish_frame()
        if self._delay and started:
            self._due = self._clock + self._delay
            self._ask()

    def _deliver(self) -> None:
        """The answer has taken its time: now it is heard, and the next image taken."""
        self._late_answers.publish(self._answer)
        self._new_frame()

    def _ask(self) -> None:
        """A control period is due: tell the command node the pose and the time."""
        self._heard = False
        self._asked = self._asked_again = time.monotonic()
        self._tell_where()
        self._tell_time()

    def accept(self, msg: ActionChunk, stamp: int, now: int) -> bool:
        self._seen = self._seen or stamp > self._seen_since
        return stamp > self._seen_since

    def _control_period(self) -> None:
        self._tell_where()
        if self._own_time:
            self._tell_time()
        if not self.episodes.paused and self.operator.ready:
            self._period()
            self.go_on()
        self._clock += PERIOD

    def poll(self) -> None:
        super().poll()
        lock_step, before = self.settings.lock_step, self.operator.ready
        # In real time the model must have been seen to answer; in lock step it is waited for.
        if not lock_step and not self.lock.started:
            self.operator.begin()  # its patience begins with the model's first answer
            return
        self._count_stops()
        if not self.operator.poll(lock_step or self._seen):
            by_hand = not self.settings.auto_enable
            if before and lock_step:  # somebody let go: what is under way is void
                self.withdraw()
                self._shown_at = -math.inf
            if lock_step and (by_hand or self.operator.refusals > 1):
                self._show()
            self._remind()
            return
        if not lock_step:
            return
        if not before:
            self.withdraw()  # what was shown before: its answer is not the one to execute
            self._new_frame()
        elif self._awaiting and self._answer is not None:
            self._deliver()
        elif self._asked is not None:
            self._lock_step()
        else:  # a model that comes up after the command node has no time yet
            self._remind()

    def _show(self) -> None:
        """It is not enabled before it has heard a model, and may come up after an answer."""
        now = time.monotonic()
        if now - self._shown_at > FRAME_AGAIN and not self.lock.waiting:
            self._shown_at = now
            self.publish_frame(counted=False)

    def _remind(self) -> None:
        """A node that came up late has missed pose and time."""
        now = time.monotonic()
        if self.settings.lock_step and now - self._asked_again > CLOCK_AGAIN:
            self._asked_again = now
            self._tell_where()
            self._tell_time()

    def _waited(self) -> float:
        """Seconds since a command was asked for."""
        return time.monotonic() - (-math.inf if self._asked is None else self._asked)

    def _lock_step(self) -> None:
        """A command was asked for: go on once it is there, or won't come."""
        if not self.settings.auto_enable and self._waited() < 1e-9 * PERIOD:
            return  # people watch
        if not self._heard and not self.operator.stopped:
            if self._waited() < self.settings.command_wait:
                return self._remind()
            self.unanswered += self._begun
        self._begun |= self._heard
        self._asked = None
        done = self._period()
        self._clock += PERIOD
        self._left -= 1
        if self._delay and not done and self._clock >= self._due:
            self._awaiting = True
        elif done or self._left == 0:
            self.go_on()
        else:
            self._ask()

    # -- results ------------------------------------------------------------------------------

    def _count_stops(self) -> None:
        status = self.operator.status
        if status is not None:
            self._stops = dict(zip(status.stop_kinds, map(int, status.stop_counts), strict=True))

    def results(self) -> dict:
        self._count_stops()
        status, found = self.operator.status, super().results()
        heard = self.input.heard
        robot = {**vars(heard), "rejected": dict(heard.rejected), "stops": self._stops}
        robot["unanswered_periods"] = self.unanswered
        if status is not None:
            clips = zip(status.clip_kinds, map(int, status.clip_counts), strict=True)
            robot["clips"] = dict(clips)
            robot |= {
                "commands": int(status.commands),
                "chunks": int(status.chunks),
                "chunks_refused": int(status.refused),
                "last_refusal": status.last_refusal,
                "stale_steps": int(status.stale_steps),
                "stop_reason": status.stop_reason,
            }
        return {**found, "robot": robot}


def make_input(drive: RobotDrive, kind: str) -> RobotInput:
    """kind: `SimSettings.driven_by`, other than chunks."""
    if kind == "base_twist":
        return BaseInput(drive)
    return JointInput(drive, kind) if kind in JOINT_KINDS else CartesianInput(drive, kind)
