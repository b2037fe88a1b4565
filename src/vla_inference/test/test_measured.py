"""Tests of wrong measured poses: they neither move the robot nor disable its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from command_bench import NO_LIMITS, Bench, chunk, forward

from vla_inference.control import DISABLED, ENABLED, STOPPED, SafetyLimits, Settings, Watchdogs
from vla_inference.control import vectors as v
from vla_inference.control.commands import SHORTEST, Pose
from vla_inference.control.measured import Measured, Sent
from vla_inference.control.safety import Distribution
from vla_inference.control.stamps import Stamps
from vla_inference.errors import VlaError
from vla_inference.policies.action_specs import KNOWN
from vla_inference.types import ActionChunk, ActionSpec, eef_delta_spec, eef_part, gripper_part

FLOOR = SafetyLimits(workspace=((-0.5, -0.5, 0.2), (0.5, 0.5, 0.6)))
SLOW = SafetyLimits(linear_velocity=0.25, angular_velocity=1.0)


def down(z: float = -0.01, steps: int = 40) -> ActionChunk:
    return chunk(*[[0, 0, z, 0, 0, 0, 1.0]] * steps)


def drive(b: Bench, seconds: float, measure, of=down) -> float:
    """Chunks and poses at every period; the way commanded in z [m]."""
    way = 0.0
    for _ in range(round(seconds / 0.05)):
        b.accept(of())
        measure()
        command = b.tick()
        if command is not None and command.live:
            way += 0.05 * command.linear[2]
    return way


def test_a_pose_that_repeats_itself_with_fresh_stamps_stops_the_robot_inside_its_box():
    """The experiment of the review: 1.7 m below the floor of the box, and no stop."""
    b = Bench(limits=FLOOR, needs_pose=True, at=(0.0, 0.0, 0.3))
    way = drive(b, 10.0, lambda: b.measure((0.0, 0.0, 0.3)))
    assert b.state == STOPPED and b.stop.kind == "pose_frozen"
    assert "exactly the same" in b.stop.reason and way >= -0.1


@pytest.mark.parametrize("drift", [(0.05, 0.3), (0.0, 0.3)])
def test_a_frozen_pose_does_not_move_the_walls_even_where_its_watchdog_is_off(drift):
    off = Watchdogs(pose_frozen=0.0)
    b = Bench(limits=FLOOR, needs_pose=True, at=(0.0, 0.0, 0.3), drift=drift, watchdogs=off)
    assert drive(b, 4.0, lambda: b.measure((0.0, 0.0, 0.3))) >= -0.1 - 1e-9
    assert b.commander.safety.clips["workspace"]


def test_an_old_stamp_is_no_measurement_however_fresh_its_arrival():
    b = Bench(limits=FLOOR, needs_pose=True, at=(0.0, 0.0, 0.3))
    stamp = b.now
    way = drive(b, 3.0, lambda: b.measure((0.0, 0.0, 0.3), age=b.now - stamp))
    assert b.stop.kind == "pose_lost" and way >= -0.1
    assert b.commander.robot.refused["old"]


@pytest.mark.parametrize(
    ("age", "word"), [(100.0, "no stamp"), (105.0, "no stamp"), (0.6, "old"), (-0.2, "future")]
)
def test_a_pose_of_no_time_or_another_is_refused(age, word):
    b = Bench(enable=False)
    b.now = 100.0
    for _ in range(5):
        assert word in b.measure((0.0, 0.0, 0.3), age=age)
    assert b.commander.robot.pose is None


def test_one_wrong_pose_moves_nothing_and_many_stop_the_robot():
    """The review's: live target (0.9, 0, -0.2), 18.9 m/s."""
    b = Bench(limits=FLOOR, needs_pose=True, at=(0.0, 0.0, 0.4))
    told = []

    def tick() -> None:
        b.accept(forward(8, x=0.001))
        told.append(b.tick())

    tick()
    assert "jumped" in b.measure((0.9, 0.0, -0.2))
    tick()
    for i in range(5):
        assert b.measure((0.001 * i, 0.0, 0.4)) == ""
        tick()
    assert b.state == ENABLED
    for _ in range(14):
        b.measure((0.9, 0.0, -0.2))
        tick()
    assert b.stop.kind == "pose_lost"
    at = np.array([c.target.position for c in told if c is not None])
    assert np.abs(at - [0.0, 0.0, 0.4]).max() < 0.05  # the hold of the stop among them
    # It is believed once the robot is stopped and the poses agree; before, nobody enables.
    assert "jump" in b.measure((0.0, 0.0, 0.4)) or "differ" in b.commander.enable(b.steady)


def test_where_time_stands_still_a_new_place_is_believed_after_a_number_of_poses():
    """Simulation in lock step: a reset puts the arm elsewhere before the node is disabled."""
    b = Bench(limits=SLOW, needs_pose=True, at=(0.0, 0.0, 0.3))
    b.accept(forward())
    for _ in range(2):
        assert "jumped" in b.measure((0.2, 0.0, 0.3))
    b.commander.disable()
    assert b.measure((0.2, 0.0, 0.3)) == ""
    for _ in range(8):
        assert "jumped" in b.commander.enable(b.steady)
        assert b.measure((0.2, 0.0, 0.3)) == ""
    assert b.measure((0.2, 0.0, 0.3)) == "" == b.commander.enable(b.steady)


def test_of_two_sources_that_contradict_each_other_the_last_one_heard_is_not_believed():
    """The true one comes too late for a while, then both come in turns."""
    b = Bench(limits=SLOW, needs_pose=True, at=(0.0, 0.0, 0.3))
    b.commander.disable()
    for _ in range(4):
        b.tick()
        b.measure((0.9, 0.0, -0.2))
    assert b.commander.robot.pose.position == (0.9, 0.0, -0.2)
    assert "jumped" in b.commander.enable(b.steady)
    for _ in range(20):
        b.tick()
        assert "jumped" in b.measure((0.0, 0.0, 0.3))
        assert b.measure((0.9, 0.0, -0.2)) == ""
        b.accept(forward())
        assert "jumped" in b.commander.enable(b.steady)
    for _ in range(11):  # one of them is silent at last
        b.tick()
        b.measure((0.9, 0.0, -0.2))
        b.accept(forward())
    assert b.commander.enable(b.steady) == ""


def test_a_target_never_jumps_to_what_is_measured():
    b = Bench(limits=SLOW, needs_pose=True, at=(0.0, 0.0, 0.0), align="arrival")
    last = None
    for i in range(40):
        b.accept(forward(8, x=0.01))
        b.measure((0.0, 0.0, 1e-4 * (i % 2)))  # held up
        command = b.tick()
        if command is None or not command.live:
            break
        if last is not None:
            assert math.dist(last, command.target.position) <= 0.25 * 0.05 * (1 + 1e-9)
        last = command.target.position
        assert last[0] <= 0.05 + 0.25 * 0.05 + 1e-9
    assert b.stop.kind == "not_following" and "held up" in b.stop.reason


def test_a_robot_that_follows_slowly_or_stands_still_is_not_stopped():
    b = Bench(limits=SLOW, needs_pose=True, at=(0.0, 0.0, 0.0), align="arrival")
    for i in range(100):  # 0.2 m/s are commanded, it does half
        b.accept(forward(8, x=0.01))
        b.measure((0.005 * i, 0.0, 0.0))
        b.tick()
    assert b.state == ENABLED
    for _ in range(100):  # nothing is commanded, it is bitwise where it was
        b.accept(forward(8, x=0.0))
        b.measure((0.5, 0.0, 0.0))
        b.tick()
    assert b.state == ENABLED
    for i in range(40):  # commanded motion below what any sensor resolves
        b.accept(forward(8, x=1e-5 * (-1) ** i))
        b.measure((0.5, 0.0, 0.0))
        b.tick()
    assert b.state == ENABLED


def test_a_twist_of_the_tool_keeps_the_robot_in_its_box_though_it_lags_in_turning():
    """The review's: 4.7 cm below the floor, by 0.29 rad between target and robot."""
    b = Bench(limits=FLOOR, needs_pose=True, at=(0.0, 0.0, 0.25), drift=(0.5, 0.5))
    robot = Pose((0.0, 0.0, 0.25))
    turned = 0.29
    for _ in range(80):
        along = v.rotate(v.from_rotation_vector((0.0, turned, 0.0)), (0.0, 0.0, -0.01))
        b.accept(chunk(*[[*along, 0, 0, 0, 1.0]] * 8, frame="tool"))
        assert b.measure(robot.position) == ""
        b.commander.target.pose = Pose(
            b.commander.target.pose.position, v.from_rotation_vector((0.0, -turned, 0.0))
        )
        command = b.tick()
        robot = robot.moved(command.linear, v.ZERO, 0.05, True)
    assert b.state == ENABLED and robot.position[2] >= 0.2


@pytest.mark.parametrize("turned", [0.0, 0.1, 1.0])
def test_however_a_clipped_velocity_is_turned_it_does_not_lead_out(turned):
    rng = np.random.default_rng(0)
    limits = SafetyLimits(workspace=((-1.0,) * 3, (1.0,) * 3))
    for _ in range(300):
        wish, at = rng.uniform(-1, 1, 3), rng.uniform(-1.02, 1.02, 3)
        near = 1 - 10 ** rng.uniform(-4, 0, 3)
        at = np.where(rng.random(3) < 0.5, at, np.sign(at) * near)
        got, _ = limits.clip_to_workspace(tuple(wish), [tuple(at)], 0.05, turned)
        assert v.norm(got) <= v.norm(tuple(wish)) + 1e-12
        for _ in range(5):
            axis = rng.normal(size=3)
            turn = v.from_rotation_vector(tuple(axis / np.linalg.norm(axis) * turned))
            then = at + 0.05 * np.array(v.rotate(turn, got))
            assert (np.abs(then) <= np.maximum(1.0, np.abs(at)) + 1e-9).all()


def test_chunks_that_are_ignored_or_too_late_do_not_feed_the_watchdog():
    for stamp_goes_on in (False, True):
        b = Bench(watchdogs=Watchdogs(image_age=60.0))
        stamp = b.now
        for _ in range(30):
            at = b.now - 0.5 if stamp_goes_on else stamp  # all eight steps have passed by then
            b.commander.accept(forward(8), at, b.now, b.steady)
            b.tick()
        assert b.state == STOPPED and b.stop.kind == "inference_stall"


def test_a_clock_that_stands_still_stops_the_robot():
    b = Bench()
    moving = 0
    for i in range(60):  # the camera's stamps stand still with it
        b.steady += 0.05
        b.commander.accept(forward(8), b.now + 1e-3 * i, b.now, b.steady)
        command = b.commander.tick(b.now, b.steady)
        moving += command is not None and command.moves
    assert b.stop.kind == "clock_stopped" and moving <= 11
    assert "stood still" in b.commander.enable(b.steady)
    b.tick()
    b.accept(forward())
    assert b.commander.enable(b.steady) == ""


def test_a_clock_that_stands_still_makes_no_old_pose_fresh():
    b = Bench(limits=FLOOR, needs_pose=True, at=(0.0, 0.0, 0.3))
    known = b.commander.robot.at
    for _ in range(4):
        b.steady += 0.05
        b.commander.tick(b.now, b.steady)
        b.measure((0.0, 0.0, 0.3))
    assert b.commander.robot.at == known < b.steady - 0.19


def test_enabling_a_robot_again_makes_no_frozen_pose_true():
    """It was sent back to where it had been measured, outside its box."""
    b = Bench(limits=SLOW, needs_pose=True, at=(0.0, 0.0, 0.0), align="arrival")
    for _ in range(4):
        b.accept(forward(8))
        b.measure((0.0, 0.0, 0.0))
        told = b.tick().target
    assert told.position[0] > 0.03
    b.commander.disable()
    for _ in range(12):
        b.measure((0.0, 0.0, 0.0))
        b.tick()
    b.accept(forward(8))
    assert b.commander.enable(b.steady) == ""
    b.measure((0.0, 0.0, 0.0))
    b.commander.disable()
    assert b.tick().target == told
    b.measure((0.031, 0.0, 0.0))  # it lives
    b.tick()
    b.accept(forward(8))
    assert b.commander.enable(b.steady) == ""
    b.commander.disable()
    assert b.tick().target.position == (0.031, 0.0, 0.0)


def test_what_was_told_before_it_was_moved_by_hand_is_not_gone_back_to():
    """A halt in doubt, before any new command, sent it back by all of the way."""
    b = Bench(limits=SLOW, needs_pose=True, at=(0.0, 0.0, 0.0))
    for _ in range(4):
        b.accept(forward(8))
        b.measure((0.0, 0.0, 0.0))
        assert b.tick().target is not None
    b.commander.disable()
    for i in range(41):
        b.measure((0.01 * i, 0.0, 0.0))
        b.accept(forward(8))
        b.tick()
    assert b.commander.enable(b.steady) == ""
    assert "jumped" in b.measure((2.0, 0.0, 0.0))
    b.commander.disable()
    assert b.tick().target == Pose((0.4, 0.0, 0.0))


def test_a_robot_that_may_have_gone_before_it_was_measured_is_not_waited_for():
    """Of a clock that stood nobody knows whether the way was done when the pose was taken."""
    robot = seen(7.0, 7.5)
    robot.told(Sent(7.0, 7.5, (0.2, 0.0, 0.0), v.ZERO, 7.5, 0.0))
    assert robot.hear(Pose((1e-4, 0.0, 0.0)), 100.0, 100.0, (7.5, 7.5), False) is None
    assert not robot.unmoved
    robot.told(Sent(7.5, 7.8, (0.2, 0.0, 0.0), v.ZERO, 7.8, 0.0))
    assert robot.hear(Pose((2e-4, 0.0, 0.0)), 100.0, 100.0, (7.8, 7.8), False) is None
    assert robot.unmoved


def seen(first: float, last: float) -> Measured:
    """At 0 m, between two times."""
    robot = Measured()
    for _ in range(3):
        assert robot.hear(Pose((0.0, 0.0, 0.0)), 100.0, 100.0, (first, last), False) is None
    return robot


def tell(robot: Measured, begin: float, end: float) -> list[float]:
    """0.2 m/s ahead; lowest and highest x of where the robot may be then [m]."""
    robot.told(Sent(begin, end, (0.2, 0.0, 0.0), v.ZERO, begin + 0.05, 0.0))
    return [corner[0] for corner in robot.reckoned()[0]]


def test_before_a_late_period_is_over_a_robot_may_have_halted():
    robot = seen(7.0, 7.0)
    assert tell(robot, 7.0, 7.05) == pytest.approx([0.01, 0.01])
    assert tell(robot, 7.05, 7.55) == pytest.approx([0.02, 0.11])


def test_what_was_told_while_the_clock_stood_may_be_in_the_pose_already():
    robot = seen(7.0, 7.15)
    for i in range(3):
        told = tell(robot, 7.0 + 0.05 * i, 7.05 + 0.05 * i)
    assert told == pytest.approx([0.0, 0.03])
    assert tell(robot, 7.15, 7.2) == pytest.approx([0.01, 0.04])


def test_noise_about_where_a_source_froze_is_no_motion():
    robot = seen(7.0, 7.0)
    for i in range(6):
        tell(robot, 7.0 + 0.05 * i, 7.05 + 0.05 * i)
    for at, x in (7.3, 0.0011), (7.31, 0.0009):
        assert robot.hear(Pose((x, 0.0, 0.0)), 100.0, 100.0, (at, at), True) is None
    assert max(tell(robot, 7.3, 7.35)) == pytest.approx(0.07)


def test_a_turn_goes_on_for_a_while():
    robot = Measured()
    robot.told(Sent(6.9, 6.95, v.ZERO, (0.0, 0.0, 1.0), 6.95, 0.0))
    for at in (7.0, 7.01, 7.02):
        robot.hear(Pose((0.0, 0.0, 0.0)), 100.0, 100.0, (at, at), False)
    assert 0.03 < robot.reckoned()[1] < 0.05


def went_until_it_halted() -> Measured:
    """At 0 m in 7.02 s; it was told 1 cm ahead until 6.95 s."""
    robot = Measured()
    robot.told(Sent(6.9, 6.95, (0.2, 0.0, 0.0), v.ZERO, 6.95, 0.0))
    for at in (7.0, 7.01, 7.02):
        robot.hear(Pose((0.0, 0.0, 0.0)), 100.0, 100.0, (at, at), False)
    return robot


def test_a_way_goes_on_for_a_while():
    robot = went_until_it_halted()
    assert tell(robot, 7.02, 7.05) == pytest.approx([0.006, 0.006 + 0.01 * math.exp(-0.7)])
    for at in (7.1, 7.6):  # its source is dead: it was told to go and does not
        robot.hear(Pose((0.0, 0.0, 0.0)), 100.0, 100.0, (at, at), True)
    assert max(tell(robot, 7.6, 7.65)) == pytest.approx(0.016 + 0.01 * math.exp(-0.7))


@pytest.mark.parametrize("room", [0.006, 0.008, 0.010, 0.012])
def test_a_source_that_dies_as_its_robot_halts_leads_nowhere_outside(room):
    """What the robot had left to do then is never seen, however long it stands."""
    limits = SafetyLimits(0, 0, 0.25, 0, 0, 0, 0, 0, workspace=FLOOR.workspace)
    b = Bench(limits=limits, needs_pose=True, at=(0.0, 0.0, 0.3))
    z, speed, told, seen, lowest, lag = 0.3, 0.0, 0.0, math.inf, math.inf, 0.1
    for _ in range(100):
        left = lag * (1 - math.exp(-0.05 / lag))
        z += told * 0.05 + (speed - told) * left
        speed = told + (speed - told) * math.exp(-0.05 / lag)
        lowest = min(lowest, z)
        if seen == math.inf and z < 0.2 + room:  # the last pose that is told
            b.commander.disable()
            seen, halted = z, b.steady
        b.accept(down(-0.005))
        b.measure((0.0, 0.0, z if seen == math.inf else seen))
        if b.state == DISABLED and b.steady > halted + 0.8:
            assert b.commander.enable(b.steady) == ""
        command = b.tick()
        told = command.linear[2] if command is not None and command.live else 0.0
    assert seen < 0.3 and lowest >= 0.2


@pytest.mark.parametrize(("halts_at", "near"), [(0.0, 0.001), (0.24, 0.003)])
def test_a_robot_that_does_all_at_once_gets_to_its_wall_as_well(halts_at, near):
    b, z, speed = Bench(limits=FLOOR, needs_pose=True, at=(0.0, 0.0, 0.3)), 0.3, 0.0
    for i in range(100):
        b.accept(down())
        b.measure((0.0, 0.0, z))
        if z < halts_at:
            b.commander.disable()
            halts_at, begins = 0.0, i + 12
        elif b.state == DISABLED and i == begins:
            assert b.commander.enable(b.steady) == ""
        command = b.tick()
        z += 0.05 * speed
        speed = command.linear[2] if command is not None and command.live else 0.0
    assert b.state == ENABLED and 0.2 <= z < 0.2 + near


def test_a_robot_that_was_not_seen_to_go_far_is_where_it_was_told_to_be():
    """Noise on a source that is dead is no sign of life."""
    b = Bench(limits=SLOW, needs_pose=True, at=(0.0, 0.0, 0.0), drift=(0.2, 0.3))
    for i in range(8):
        b.accept(forward(8))
        b.measure((0.0, 0.0, 1e-4 * (i % 2)))
        told = b.tick().target
    assert told.position[0] > 0.06
    b.commander.disable()
    assert b.tick().target == told
    b.accept(forward(8))
    assert b.commander.enable(b.steady) == ""
    b.measure((0.0, 0.0, 1e-4))
    b.commander.disable()
    assert b.tick().target == told


def test_stamps_of_a_clock_that_runs_stands_and_jumps():
    stamps = Stamps()
    for i in range(11):
        stamps.see(100 + 0.1 * i, 7 + 0.1 * i)
    assert stamps.when(100.55) == pytest.approx((7.55, 7.55))
    assert stamps.when(99.0) == pytest.approx((6.0, 6.0))
    for i in range(5):  # it stands
        stamps.see(101.0, 8.1 + 0.1 * i)
    assert stamps.when(101.0) == pytest.approx((8.0, 8.5))
    stamps.see(101.1, 8.6)
    assert stamps.when(101.0) == pytest.approx((8.0, 8.5))
    assert stamps.when(101.05) == pytest.approx((8.55, 8.55), abs=0.06)
    assert stamps.when(101.2) == (8.6, 8.6)  # nothing is of the future
    stamps.see(50.0, 8.7)
    assert stamps.when(49.9) == pytest.approx((8.6, 8.6))


def test_in_lock_step_time_may_stand_still_for_ever():
    b = Bench()
    for _ in range(100):
        b.commander.tick(b.now, b.steady)
    assert b.state == ENABLED


@pytest.mark.parametrize("dt", [5e-324, 1e-9, SHORTEST * 0.99, 60.1, 1e308, math.inf, math.nan])
def test_a_chunk_whose_steps_last_no_time_or_for_ever_is_refused(dt):
    for enable in (True, False):
        b = Bench(enable=enable, stretch=100.0)
        assert not b.accept(forward(dt=dt))
        b.tick()
        assert b.commander.safety.refusals == {"bad_chunk": 1}


def test_constant_dimensions_lie_in_their_bounds_and_each_head_has_its_own():
    constant = 0.1 + 1e-9  # no float32
    statistics = {
        "q01": [constant] + [-0.01] * 6,
        "q99": [constant] + [0.01] * 6,
        "min": [-0.5] * 7,
        "max": [0.5] * 7,
        "mask": [True] * 6 + [False],
    }
    said = chunk([constant, 0, 0, 0, 0, 0, 1.0])
    for bounds in ("q01_q99", "min_max"):
        seen = Distribution.from_statistics(statistics, 0.0, bounds)
        assert seen.outside(said) == ""
        far = chunk([constant, 0.3, 0, 0, 0, 0, 1.0])
        assert bool(seen.outside(far)) == (bounds == "q01_q99")


def test_statistics_are_compared_in_si_and_part_by_part():
    """LIBERO's are in [-1, 1], of which 1 is 0.05 m: any chunk in m lay within them."""
    statistics = {"q01": [-1.0] * 7, "q99": [1.0] * 7, "mask": [True] * 6 + [False]}
    seen = Distribution.from_statistics(statistics, 0.0).in_si(KNOWN["libero"])
    assert seen.outside(chunk([0.049, 0, 0, 0.49, 0, 0, 1.0])) == ""
    assert "x of step 0 is 0.06" in seen.outside(chunk([0.06, 0, 0, 0, 0, 0, 1.0]))
    assert "rz of step 0 is 0.6" in seen.outside(chunk([0, 0, 0, 0, 0, 0.6, 1.0]))
    gripper_first = ActionChunk(np.zeros((1, 7)), ActionSpec((gripper_part(), eef_part())))
    assert "the statistics are of arm: eef delta" in seen.outside(gripper_first)
    with pytest.raises(VlaError, match="in unit unknown"):
        Distribution.from_statistics(statistics, 0.0).in_si(KNOWN["taco_play"])


def test_numbers_that_become_infinite_in_si_are_refused():
    spec = eef_delta_spec().with_units(["1e30 m"] * 3 + ["rad"] * 3 + ["1"])
    b = Bench()
    assert not b.accept(ActionChunk(np.full((1, 7), 1e10), spec))
    assert b.stop.kind == "bad_chunk" and "not finite" in b.stop.reason


def test_a_rate_that_the_overload_watchdog_would_stop_at_once_is_refused():
    with pytest.raises(VlaError, match=r"1.5 Hz .* raise command_rate, or max_period"):
        Settings(rate=1.5)
    assert Settings(rate=1.5, watchdogs=Watchdogs(late=2.0)).rate == 1.5


def test_a_stop_holds_what_was_told_last_where_the_measured_pose_is_in_doubt():
    b = Bench(limits=SLOW, needs_pose=True, at=(0.0, 0.0, 0.0), align="arrival")
    for _ in range(4):
        b.accept(forward(8))
        b.measure((0.0, 0.0, 0.0))
        last = b.tick()
    halt = b.tick(others="1 more publish on /action")
    assert halt.target == last.target != Pose((0.0, 0.0, 0.0))
    b = Bench(limits=NO_LIMITS, needs_pose=True, at=(0.0, 0.0, 0.0))
    assert b.tick(others="1 more publish on /action").target == Pose((0.0, 0.0, 0.0))
