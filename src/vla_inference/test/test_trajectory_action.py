"""Tests of joint motion by an arm's FollowJointTrajectory action, in a real ROS graph."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from part_robot import SIX, Robot, arm_spec, six
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.task import Future
from six_axes import HOME

actions = pytest.importorskip("control_msgs.action", reason="control_msgs isn't installed")
from rclpy.action import ActionServer, CancelResponse, GoalResponse  # noqa: E402

FAR = HOME + np.array([0.3, -0.3, 0.1, 0, 0, 0.05])
STEP = 1 / 50  # s, a command period
RATES = {"command_rate": 1 / STEP, "frozen_pose_timeout": 3.0}
Follow = actions.FollowJointTrajectory


class Controller:
    """Follows the newest goal by time and holds still where one is cancelled or fails, as
    joint_trajectory_controller does.

    fault: "reject", "slow" (answers once `late` has a result), "abort" (after a moment).
    """

    def __init__(self, graph: Robot):
        self.graph, self.fault, self.late = graph, "", Future()
        self.goals: list[Any] = []  # trajectories that were accepted
        self.ended: list[str] = []
        self._active: tuple[Any, Future, float, np.ndarray] | None = None
        self._timer = graph.client.create_timer(0.01, self._step)
        self.server = ActionServer(
            graph.client,
            Follow,
            "follow",
            self._follow,
            goal_callback=self._hear,
            cancel_callback=lambda goal: CancelResponse.ACCEPT,
            callback_group=ReentrantCallbackGroup(),  # an answer that waits holds up nothing
        )

    async def _hear(self, request: Any) -> GoalResponse:
        if self.fault == "slow":
            await self.late
        return GoalResponse.REJECT if self.fault == "reject" else GoalResponse.ACCEPT

    async def _follow(self, goal: Any) -> Any:
        trajectory, end = goal.request.trajectory, Future()
        self.goals.append(trajectory)
        self._finish("replaced")
        self._active = goal, end, time.monotonic(), self.graph.joints["arm"].copy()
        how, result = await end, Follow.Result()
        self.ended.append(how)
        if how == "done":
            goal.succeed()
        elif how == "cancelled":
            goal.canceled()
        else:
            goal.abort()
        if how == "failed":
            result.error_code = Follow.Result.PATH_TOLERANCE_VIOLATED
            result.error_string = "j1 is 0.2 rad off"
        return result

    def _finish(self, how: str) -> None:
        active, self._active = self._active, None
        if active is not None:
            active[1].set_result(how)

    def _step(self) -> None:
        if self._active is None:
            return
        goal, _, begun, start = self._active
        passed, points = time.monotonic() - begun, goal.request.trajectory.points
        if goal.is_cancel_requested:
            self._finish("cancelled")
        elif self.fault == "abort" and passed > 0.1:
            self._finish("failed")
        else:
            times = [0.0, *(seconds(point) for point in points)]
            places = np.array([start, *(point.positions for point in points)])
            self.graph.joints["arm"] = np.array(
                [np.interp(passed, times, column) for column in places.T]
            )
            if passed > times[-1]:
                self._finish("done")


def seconds(point: Any) -> float:
    return point.time_from_start.sec + 1e-9 * point.time_from_start.nanosec


@pytest.fixture
def arm(monkeypatch):
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    graphs = []

    def make(speed: float = 1.0, **more: Any) -> tuple[Robot, Controller]:
        part = six("follow_joint_trajectory", trajectory_action="follow", answer_timeout=1.0)
        part["max_velocity"] = [speed]
        graphs.append(g := Robot({"arm": part}, {}, **RATES, **more))
        assert "no server of the trajectory's action follow" in g.enable()
        return g, Controller(g)

    yield make
    for g in graphs:
        g.close()


def moving(g: Robot, count: int = 20) -> None:
    """Enabled and on its way."""
    g.ready(arm_spec(), np.tile(HOME, (5, 1)))
    g.send(arm_spec(), np.tile(FAR, (count, 1)))
    g.until(lambda: g.joints["arm"][0] - HOME[0] > 0.05, "motion")


def test_a_chunk_is_one_goal_that_the_arm_follows_within_its_limits(arm):
    g, controller = arm()
    moving(g)
    g.until(lambda: np.abs(g.joints["arm"] - FAR).max() < 1e-3, "the end of the way")
    g.until(lambda: controller.ended and controller.ended[-1] == "done", "the goal's end")
    # Standing still, the way, what goes on beyond the horizon; a busy machine costs a few more.
    assert len(controller.goals) <= 10
    longest = max(controller.goals, key=lambda goal: len(goal.points))
    assert longest.joint_names == SIX and len(longest.points) > 15
    assert longest.header.stamp.sec == 0 and not longest.points[0].velocities
    for goal in controller.goals:
        ways = np.array([point.positions for point in goal.points])
        times = [seconds(point) for point in goal.points]
        assert np.diff(times) == pytest.approx(STEP) and times[0] == pytest.approx(0.1)
        assert np.abs(np.diff(ways, axis=0)).max(initial=0) <= 1.0 * STEP + 1e-9
    sent = len(controller.goals)
    g.idle(0.3)
    assert len(controller.goals) == sent and g.status.state == "enabled"


def test_a_new_chunk_replaces_the_goal_of_the_one_before(arm):
    g, controller = arm()
    moving(g)
    g.send(arm_spec(), np.tile(HOME, (20, 1)))
    g.until(lambda: np.abs(g.joints["arm"] - HOME).max() < 1e-3, "the way back")
    assert "replaced" in controller.ended and g.status.state == "enabled"


@pytest.mark.parametrize("by", ["hand", "watchdog"])
def test_a_stop_cancels_the_goal(arm, by):
    g, controller = arm(0.1, stall_timeout=2.0)
    moving(g, 60)  # for 3 s
    if by == "hand":
        g.enable(False)
    else:
        g.stopped("inference_stall")
    g.until(lambda: "cancelled" in controller.ended, "the goal to be cancelled")
    where, sent = g.joints["arm"].copy(), len(controller.goals)
    g.idle(0.3)
    np.testing.assert_array_equal(g.joints["arm"], where)
    assert where[0] < FAR[0] - 0.01
    assert len(controller.goals) == sent


@pytest.mark.parametrize(
    "fault, words",
    [
        ("reject", "the trajectory's action follow rejected a goal"),
        ("abort", "aborted a goal: PATH_TOLERANCE_VIOLATED: j1 is 0.2 rad off"),
        ("slow", "follow has not answered a goal for"),
        ("vanish", "no server of the trajectory's action follow"),
    ],
)
def test_goals_that_are_not_executed_stop_the_arm_by_name(arm, fault, words):
    g, controller = arm()
    moving(g)
    if fault == "vanish":
        controller.server.destroy()
    controller.fault = fault
    g.send(arm_spec(), np.tile(HOME, (20, 1)))
    assert words in g.stopped("controller")
    if fault == "vanish":
        return
    sent, controller.fault = len(controller.goals), ""
    controller.late.set_result(None)
    g.idle(0.3)
    assert controller._active is None  # one that was accepted too late was cancelled
    assert len(controller.goals) <= sent + 1
    moving(g)  # enabled again


def test_another_client_of_the_action_stops_the_arm(arm):
    from rclpy.action import ActionClient

    g, _ = arm()
    moving(g)
    other = ActionClient(g.client, Follow, "follow")
    assert "1 more clients of the action" in g.stopped("second_publisher")
    other.destroy()
