"""Joint output: motions as goals of a FollowJointTrajectory action.

For arms whose driver has only the action. Servers replace the goal under way by the next one
(joint_trajectory_controller's preemption policy), which takes longer than a message and may halt
the arm; so a goal has all that is planned, and a new one is sent only where plans have changed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Time
from rclpy.action import ActionClient
from rclpy.duration import Duration
from rclpy.node import Node
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_inference.control.parts.joints import JointTargets
from vla_inference.control.players.joint_player import Joints
from vla_inference.errors import VlaError
from vla_inference.options import option
from vla_inference.ros.command.outputs.base import JOINT_PART, JOINT_TARGETS, Output, Value
from vla_inference.ros.command.outputs.goals import Goals
from vla_inference.ros.command.outputs.joint_trajectory import LeadConfig

ERRORS = (
    "INVALID_GOAL",
    "INVALID_JOINTS",
    "OLD_HEADER_TIMESTAMP",
    "PATH_TOLERANCE_VIOLATED",
    "GOAL_TOLERANCE_VIOLATED",
)
ENDS = {GoalStatus.STATUS_ABORTED: "aborted", GoalStatus.STATUS_CANCELED: "cancelled"}


@dataclass(frozen=True, kw_only=True)
class TrajectoryActionConfig(LeadConfig):
    trajectory_action: str = option(
        "", "name of the FollowJointTrajectory action; empty: PART/follow_joint_trajectory"
    )
    horizon: float = option(
        1.0,
        "longest motion of a goal before it brakes [s], which an arm goes on with if this node is "
        "killed; further goals continue longer chunks",
        low=0.05,
        high=10,
    )
    answer_timeout: float = option(
        0.3,
        "time in which the server must accept a goal [s]; later stops the robot",
        low=0.01,
        high=60,
    )


class TrajectoryGoals(Goals):
    """Goals that must be accepted in time and must not fail. Raises VlaError without
    control_msgs.

    timeout: for an answer [s].
    """

    def __init__(self, node: Node, name: str, timeout: float):
        try:
            from control_msgs.action import FollowJointTrajectory
        except ImportError as error:
            raise VlaError(
                f"control_msgs cannot be imported ({error})",
                "apt install ros-$ROS_DISTRO-control-msgs, or use output joint_trajectory",
            ) from None
        self.type, self.timeout = FollowJointTrajectory, timeout
        client = ActionClient(node, FollowJointTrajectory, name)
        super().__init__(node, client, name, "the trajectory's action")
        self._asked: float | None = None  # since when the newest goal has been unanswered
        self._failed = ""

    @property
    def ready(self) -> bool:
        """Whether a goal can be sent: one at a time waits for its answer."""
        return self._asked is None

    def fault(self) -> str:
        """Why the goals of this motion are not executed; empty: they are."""
        silent = time.monotonic() - self._asked if self._asked is not None else 0.0
        if silent > self.timeout:
            return (
                f"{self.what} {self.name} has not answered a goal for {silent:.2f} s (allowed: "
                f"{self.timeout:g} s)"
            )
        return self._failed or self.missing()

    def follow(self, trajectory: JointTrajectory) -> None:
        self._asked = time.monotonic()
        self.send(self.type.Goal(trajectory=trajectory))

    def _answered(self, goal: Any, number: int) -> None:
        super()._answered(goal, number)
        if number == self._newest:
            self._asked = None
        if not goal.accepted and number > self._stopped:
            self._failed = self.remark

    def _ended(self, answer: Any, number: int) -> None:
        super()._ended(answer, number)
        # One that was replaced or stopped ends in whichever way.
        if answer.status in ENDS and number == self._newest and number > self._stopped:
            how = f"{self.what} {self.name} {ENDS[answer.status]} a goal"
            self._failed = how + self._reason(answer.result)

    def _reason(self, result: Any) -> str:
        """The result's error in words."""
        code = result.error_code
        names = {getattr(self.type.Result, name): name for name in ERRORS}
        name = names.get(code, f"error_code {code}") if code else ""
        return "".join(f": {word}" for word in (name, result.error_string) if word)

    def stop(self) -> None:
        super().stop()
        self._asked, self._failed = None, ""


class FollowJointTrajectoryOutput(Output):
    takes, drives, plans = JOINT_TARGETS, JOINT_PART, True
    PART_CONFIG = TrajectoryActionConfig

    def __init__(self, node: Any, value: Value, part: str = ""):
        """node: a managed one."""
        self.lead, self.period = value("time_from_start"), 1.0 / node.value("command_rate")
        name = value("trajectory_action") or f"{part}/follow_joint_trajectory"
        self.goals = TrajectoryGoals(node, name, value("answer_timeout"))
        self._rest: tuple[Joints, ...] = ()  # of the goal under way, from this period on

    def remark(self) -> str:
        return self.goals.remark

    def told(self) -> str:
        return f"FollowJointTrajectory on {self.goals.name}"

    def send(self, command: JointTargets, stamp: Time, in_tool: bool = False) -> None:
        if command.ahead is None:
            self.stop()
            return
        self._rest = self._rest[1:] or self._rest  # at its end it stands
        wanted = (command.positions, *command.ahead)
        if wanted != self._rest and self.goals.ready:
            self.goals.follow(self._trajectory(command.names, wanted))
            self._rest = wanted

    def _trajectory(self, names: tuple[str, ...], way: tuple[Joints, ...]) -> JointTrajectory:
        # No stamp: at once. No velocities: the limits hold between points by straight lines alone.
        points = [
            JointTrajectoryPoint(
                positions=list(positions),
                time_from_start=Duration(seconds=self.lead + k * self.period).to_msg(),
            )
            for k, positions in enumerate(way)
        ]
        return JointTrajectory(joint_names=list(names), points=points)

    def stop(self) -> None:
        self.goals.stop()
        self._rest = ()

    def missing(self) -> str:
        return self.goals.missing()

    def fault(self) -> str:
        return self.goals.fault()

    def others(self) -> str:
        n = self.goals.others()
        return f"{n} more clients of the action {self.goals.name}" if n else ""

    def close(self) -> None:
        self.goals.close()
