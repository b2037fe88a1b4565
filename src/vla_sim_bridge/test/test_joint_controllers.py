"""Tests of the simulated joint controllers: ros2_control's rules, and the arm follows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_inference.control.arm import Arm
from vla_sim_bridge.envs.robosuite_sim import Simulation, episode_rng
from vla_sim_bridge.ros.robot.joint_controllers import (
    ForwardController,
    TrajectoryController,
    TrajectoryPoint,
    make_controller,
)
from vla_sim_bridge.ros.robot.robot_inputs import JOINTS

URDF = Path(__file__).parents[1] / "config/simulated/panda.urdf"
HERE = np.array([0.0, 1.0])
PERIOD = 0.05


def trajectory(*positions, names=("a", "b"), stamp=0.0, times=None, **more):
    times = times or [0.1 * (i + 1) for i in range(len(positions))]
    points = [TrajectoryPoint(t, p, **more) for t, p in zip(times, positions, strict=True)]
    return names, points, stamp


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (trajectory(), "empty trajectory"),
        (trajectory([0.0], names=("a",)), "other joints"),
        (trajectory([0.0, 0.0], names=("a", "c")), "other joints"),
        (trajectory([0.0, 0.0], stamp=9.0), "ends in the past"),
        (trajectory([0.0, 0.0], [1.0, 1.0], times=[0.1, 0.1]), "times do not increase"),
        (trajectory([0.0, 0.0], velocities=[0.0, 0.1]), "moves at its end"),
        (trajectory([0.0]), "wrong number of positions"),
        (trajectory([0.0, math.inf]), "not finite"),
    ],
)
def test_trajectories_that_are_refused(told, why):
    controller = TrajectoryController(("a", "b"))
    assert not controller.receive(*told, now=10.0)
    assert controller.heard.rejected == {why: 1} and controller.heard.accepted == 0
    assert controller.reference(HERE, 10.0, PERIOD) is None


def test_a_trajectory_is_interpolated_from_the_measured_joints_and_held_at_its_end():
    controller = TrajectoryController(("a", "b"))
    # in the message's own order of joints
    assert controller.receive(*trajectory([2.0, 1.0], [2.0, 3.0], names=("b", "a")), now=10.0)
    at = controller.reference(HERE, 10.0, PERIOD)
    for time, wanted in ((0.0, HERE), (0.05, [0.5, 1.5]), (0.1, [1, 2]), (0.15, [2, 2])):
        positions, velocities = at(time)
        np.testing.assert_allclose(positions, wanted, atol=1e-9)
        assert not velocities.any()
    later = controller.reference(np.array([9.0, 9.0]), 60.0, PERIOD)  # not the measured ones
    np.testing.assert_allclose(later(0.05)[0], [3, 2])
    assert controller.heard.gaps == 1  # nothing new for 50 s
    controller.reset()
    assert controller.reference(HERE, 60.0, PERIOD) is None


def test_a_trajectory_that_began_earlier_is_joined_where_it_is():
    controller = TrajectoryController(("a", "b"))
    assert controller.receive(*trajectory([5.0, 5.0], [1.0, 2.0], stamp=9.85), now=10.0)
    at = controller.reference(HERE, 10.0, PERIOD)
    np.testing.assert_allclose(at(0.05)[0], [1, 2])


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=2), st.floats(0, 0.3))
def test_between_two_points_it_never_leaves_the_way(goal, time):
    controller = TrajectoryController(("a", "b"))
    controller.receive(*trajectory(goal), now=1.0)
    positions, _ = controller.reference(HERE, 1.0, PERIOD)(time)
    low, high = np.minimum(HERE, goal) - 1e-9, np.maximum(HERE, goal) + 1e-9
    assert (low <= positions).all() and (positions <= high).all()


@pytest.mark.parametrize("velocities", [False, True])
def test_forwarded_commands_need_a_finite_number_for_each_joint(velocities):
    controller = ForwardController(2, velocities)
    for data, why in (([0.0], "wrong number of joints"), ([0.0, math.nan], "not finite")):
        assert not controller.receive(data, 1.0)
        assert controller.heard.rejected[why] == 1
    assert controller.reference(HERE, 1.0, PERIOD) is None


def test_positions_are_held_without_end():
    controller = ForwardController(2)
    assert controller.receive([0.5, 0.5], 1.0)
    for now in (1.0, 100.0):
        positions, velocities = controller.reference(HERE, now, PERIOD)(0.02)
        np.testing.assert_array_equal(positions, [0.5, 0.5])
        assert not velocities.any()
    assert controller.heard.gaps == 1


def test_velocities_go_on_until_zeros_are_sent():
    controller = ForwardController(2, velocities=True)
    controller.receive([0.1, 0.0], 1.0)
    for now in (1.0, 2.0):  # a velocity controller has no time-out
        positions, velocities = controller.reference(HERE, now, PERIOD)(0.0)
        assert positions is None and velocities[0] == 0.1
    controller.receive([0.0, 0.0], 2.05)
    assert controller.reference(HERE, 2.05, PERIOD)(0.0)[0] is None  # it brakes
    stopped = HERE + 0.01
    for now, pushed in ((2.1, 0.0), (2.15, 0.001), (3.0, 0.002)):
        positions, _ = controller.reference(stopped + pushed, now, PERIOD)(0.0)
        np.testing.assert_array_equal(positions, stopped)
    assert controller.heard.zeros == 4


@pytest.fixture(scope="module")
def sim():
    simulation = Simulation("Stack_D0", width=32, height=32)
    yield simulation
    simulation.close()


def drive(sim, kind, command, periods):
    """The joints after a command is repeated in every period."""
    controller = make_controller(kind, JOINTS)
    for i in range(periods):
        now = 0.05 * i
        if kind == "joint_trajectory":
            controller.receive(JOINTS, [TrajectoryPoint(0.05, command)], 0.0, now)
        else:
            controller.receive(command, now)
        sim.follow(controller.reference(sim.joint_positions(), now, PERIOD), 1.0)
    return sim.joint_positions()


@pytest.mark.parametrize("kind", ["joint_trajectory", "joint_positions"])
def test_the_arm_goes_to_the_positions_and_stays(sim, kind):
    sim.reset(episode_rng("evaluate", 7, 0))
    goal = sim.joint_positions() + np.array([0.1, -0.1, 0.2, 0.1, -0.2, 0.1, 0.3])
    np.testing.assert_allclose(drive(sim, kind, goal, 30), goal, atol=0.005)
    assert np.abs(sim.joint_velocities()).max() < 0.01


def test_the_arm_moves_at_the_velocities_and_stops_by_zeros(sim):
    sim.reset(episode_rng("evaluate", 7, 0))
    start = sim.joint_positions()
    speed = np.array([0.2, -0.1, 0.3, 0.1, -0.2, 0.1, 0.4])
    moved = drive(sim, "joint_velocities", speed, 20) - start
    np.testing.assert_allclose(sim.joint_velocities(), speed, atol=0.03)
    # 1 s, less the time that a drive needs to get up to speed
    np.testing.assert_allclose(moved, speed * 0.96, atol=0.02)
    stopped = drive(sim, "joint_velocities", np.zeros(7), 10)
    np.testing.assert_allclose(drive(sim, "joint_velocities", np.zeros(7), 20), stopped, atol=0.01)


def test_the_robots_description_is_the_simulated_robots(sim):
    arm = Arm(URDF, "grip_site", "base")
    assert arm.names == JOINTS
    for index in range(3):
        sim.reset(episode_rng("evaluate", 7, index))
        pose = sim.eef_pose()
        pose[:3, 3] -= sim.base_position()
        np.testing.assert_allclose(arm.pose(sim.joint_positions()), pose, atol=1e-4)


def test_the_gripper_closes_with_the_joints_held(sim):
    sim.reset(episode_rng("evaluate", 7, 0))
    joints, opened = sim.joint_positions(), sim.fingers()
    still = make_controller("joint_positions", JOINTS)
    still.receive(joints, 0.0)
    for _ in range(20):
        sim.follow(still.reference(joints, 0.0, PERIOD), 0.0)
    assert sim.fingers() < 0.5 * opened and sim.gripper == 0.0
