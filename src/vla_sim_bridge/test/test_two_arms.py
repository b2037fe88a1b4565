"""Tests of the two simulated arms: each follows its own reference, both lift a pot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_inference.control.arm import Arm
from vla_sim_bridge.envs.joint_tracking import held
from vla_sim_bridge.envs.two_arms import ARMS, TwoArms
from vla_sim_bridge.experts.two_arm_lift import plan
from vla_sim_bridge.ros.robot.joint_controllers import make_controller
from vla_sim_bridge.ros.robot.robot_scenes import joint_names

URDF = Path(__file__).parents[1] / "config/simulated/panda.urdf"
PERIOD = 0.05


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_both_arms_lift_the_pot_by_joint_commands_alone(seed):
    world = TwoArms(64, 48, seed)
    controllers = {arm: make_controller("joint_positions", joint_names(arm)) for arm in ARMS}
    now = 0.0
    assert not world.lifted()
    for phase in plan(world, Arm(URDF, "grip_site", "base")):
        begin = {arm: joints for arm, (joints, _) in world.joints().items()}
        for i in range(phase.periods):
            share = min(1.0, (i + 1) / (phase.periods - 10))  # then time to come to rest
            for arm, controller in controllers.items():
                wanted = begin[arm] + share * (phase.joints[arm] - begin[arm])
                assert controller.receive(wanted, now)
            at = {arm: joints for arm, (joints, _) in world.joints().items()}
            world.step(
                {arm: c.reference(at[arm], now, PERIOD) for arm, c in controllers.items()},
                dict.fromkeys(ARMS, phase.gripper),
            )
            now += PERIOD
        for arm, (joints, _) in world.joints().items():
            np.testing.assert_allclose(joints, phase.joints[arm], atol=0.02)
    assert world.lifted()
    world.close()


def test_an_arm_moves_without_the_other():
    world = TwoArms(32, 32)
    start = {arm: joints for arm, (joints, _) in world.joints().items()}
    goal = start["left_arm"] + 0.1
    for _ in range(30):
        world.step(
            {"left_arm": held(goal), "right_arm": held(start["right_arm"])},
            dict.fromkeys(ARMS, 1.0),
        )
    np.testing.assert_allclose(world.joints()["left_arm"][0], goal, atol=0.01)
    np.testing.assert_allclose(world.joints()["right_arm"][0], start["right_arm"], atol=0.005)
    world.close()
