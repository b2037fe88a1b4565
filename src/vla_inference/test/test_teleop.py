"""Tests of teleoperation without ROS: mappings, switches, keys, chunks of all parts."""

from __future__ import annotations

import math
import os
import pty
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_inference.control.commands import check_chunk, check_steps
from vla_inference.errors import VlaError
from vla_inference.teleop.joy import Joy
from vla_inference.teleop.keyboard import Keyboard, split_keys
from vla_inference.teleop.leader import Leader
from vla_inference.teleop.mapping import (
    LeaderJoint,
    LeaderMapping,
    load_joy,
    load_keys,
    load_leader,
    mapping_folder,
)
from vla_inference.teleop.robot import Hands, read_robot
from vla_inference.teleop.settings import TeleopSettings
from vla_inference.teleop.twist import Twist
from vla_inference.teleop.wish import STILL, Grip, Wish

SILENCE, KEYS = 0.2, load_keys()
anything = st.floats(allow_nan=True, allow_infinity=True)
share = st.floats(-1, 1)
shares = st.tuples(*[share] * 6)


def one_arm(**settings) -> Hands:
    values = {"parts": [""], "max_linear_velocity": 0.25, "max_angular_velocity": 1.0}
    return Hands(read_robot(values, lambda part, output: ""), TeleopSettings(**settings))


TWO_ARMS = {
    "parts": ["left_arm", "left_gripper", "right_arm", "right_gripper", "base"],
    "left_arm.output": "eef",
    "left_gripper.output": "gripper",
    "right_arm.output": "joints",
    "right_arm.joints": ["a", "b"],
    "right_gripper.output": "gripper",
    "base.output": "base",
    "base.frame": "wheels",
    "base.holonomic": False,
    "base.max_linear_velocity": 0.1,
    "max_linear_velocity": 0.25,
}


def two_arms(**settings) -> Hands:
    return Hands(read_robot(TWO_ARMS, lambda part, output: output), TeleopSettings(**settings))


# -- chunks -----------------------------------------------------------------------------------


@given(shares, st.floats(0.001, 2), st.booleans())
def test_no_wish_is_faster_than_the_speeds_and_its_direction_is_kept(wanted, speed, tool):
    hands = one_arm(linear_speed=speed)
    chunk = hands.chunk(Wish(True, wanted, tool=tool), {"gripper": 1.0})
    check_chunk(chunk)
    assert chunk.spec.frame == ("tool" if tool else "base")
    way = chunk.actions[0, :3] / chunk.spec.dt
    assert np.linalg.norm(way) <= min(speed, 0.25) * (1 + 1e-5)
    assert np.linalg.norm(np.cross(way, wanted[:3])) < 1e-5
    assert (chunk.actions == chunk.actions[0]).all() and chunk.actions[0, 6] == 1.0
    assert len(chunk) * chunk.spec.dt == pytest.approx(0.2)


@given(shares)
def test_all_but_one_part_and_its_gripper_stay_as_they_are(wanted):
    hands = two_arms(part="left_arm")
    assert hands.gripper == "left_gripper"
    chunk = hands.chunk(Wish(True, wanted), {"left_gripper": 0.0})
    check_steps(chunk)
    found = chunk.spec.split(chunk.actions)
    assert not found["base"].any()
    assert found["right_gripper"][0] == 0.5  # between open and closed: no command
    assert [*found, "right_arm"] == [
        "left_arm",
        "left_gripper",
        "right_gripper",
        "base",
        "right_arm",  # its joints are left out, and stand still
    ]


def test_a_base_is_driven_ahead_and_turned_within_its_own_limits():
    hands = two_arms(part="base")
    chunk = hands.chunk(Wish(True, (1, 1, 1, 1, 1, -1)), {})
    found = chunk.spec.split(chunk.actions)["base"][0]
    assert 0 < found[0] <= 0.1 and found[1] < 0
    assert chunk.spec.part("base").frame == "wheels"


def test_what_nobody_knows_is_refused():
    with pytest.raises(VlaError, match="right_arm's b shall"):
        two_arms().chunk(Wish(True, joints={"a": 0.1}), {})
    with pytest.raises(VlaError, match="no joint c; map the leader's to a, b"):
        two_arms().chunk(Wish(True, joints={"a": 0.1, "b": 0.2, "c": 0.3}), {})
    with pytest.raises(VlaError, match="not finite"):
        one_arm().chunk(Wish(True, (math.nan, 0, 0, 0, 0, 0)), {})
    with pytest.raises(VlaError, match="not finite"):
        two_arms().chunk(Wish(True, joints={"a": 0.1, "b": math.inf}), {})
    with pytest.raises(VlaError, match=r"no part 'tail'.*left_arm"):
        two_arms(part="tail")


def test_a_grip_starts_where_the_model_has_it_and_is_kept():
    grip = Grip()
    assert grip.follow(Wish(True)) == 0.5
    grip.seen(0.0)
    assert grip.follow(Wish(True)) == 0.0
    assert grip.follow(Wish(True, acts=("gripper",))) == 1.0
    assert grip.follow(Wish(True, acts=("close", "take_over"))) == 0.0
    assert grip.follow(Wish(True, gripper=7.0)) == 1.0


# -- keys -------------------------------------------------------------------------------------


@given(st.text(max_size=30))
def test_whatever_is_typed_moves_along_one_axis_or_none(text):
    keyboard = Keyboard(KEYS, SILENCE)
    keyboard.take(text, 1.0)
    wish = keyboard.wish(1.0)
    assert sum(map(abs, wish.shares)) in (0, 1)
    assert wish.held or wish.shares == STILL
    assert keyboard.wish(1.0).acts == ()
    assert keyboard.wish(1.0 + SILENCE + 1e-6) == Wish()


@pytest.mark.parametrize("key", sorted(KEYS.motions))
def test_a_held_key_moves_and_one_that_repeats_no_more_does_not(key):
    keyboard, (axis, sign) = Keyboard(KEYS, SILENCE), KEYS.motions[key]
    for now in np.arange(0, 1, 0.03):
        keyboard.take(key, now)
        wish = keyboard.wish(now)
        assert wish.held and wish.shares[axis] == sign
    assert not keyboard.wish(now + 2 * SILENCE).held


def test_keys_have_names_and_another_key_ends_the_motion():
    assert split_keys("w\x1b[A \x1b[Z\r\0") == ["w", "up", "space", "[", "z", "enter"]
    keyboard = Keyboard(KEYS, SILENCE)
    keyboard.take("wx", 0.0)
    assert keyboard.wish(0.0).shares == STILL
    keyboard.take("tbg", 1.0)
    wish = keyboard.wish(1.0)
    assert wish.acts == ("take_over", "give_back", "gripper") and wish.held
    assert wish.shares == STILL


CHILD = """
import signal, sys
from vla_inference.teleop.terminal import Terminal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
terminal = Terminal()
print("ready", flush=True)
if sys.argv[1] == "error":
    raise RuntimeError("broken")
while True:
    text = terminal.read()
    if text:
        print(repr(text), flush=True)
    if sys.argv[1] == "end" and "q" in text:
        break
"""


@pytest.mark.parametrize("how", ["end", "error", "interrupt", "terminate"])
def test_the_terminal_is_as_it_was_however_the_process_ends(how):
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-c", CHILD, how]
    child = subprocess.Popen(
        ["setsid", "-c", *command], stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert child.stdout.readline() == b"ready\n"
        if how != "error":
            assert termios.tcgetattr(theirs) != before
            os.write(ours, b"w\x1a")  # Ctrl-Z does not suspend it
            assert b"w" in child.stdout.readline()
        if how == "terminate":
            child.terminate()
        elif how != "error":
            os.write(ours, b"q" if how == "end" else b"\x03")
        child.communicate(timeout=20)
        end = time.monotonic() + 5
        while termios.tcgetattr(theirs) != before and time.monotonic() < end:
            time.sleep(0.01)
        assert termios.tcgetattr(theirs) == before
    finally:
        child.kill()
        os.close(ours)
        os.close(theirs)


def test_without_a_terminal_one_error_says_so():
    code = "from vla_inference.teleop.terminal import Terminal; Terminal()"
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert "there is no terminal" in done.stderr


# -- joys -------------------------------------------------------------------------------------

PAD = load_joy("gamepad")
REST, AXIS = [0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0], 1
LET_GO = [0] * 11
HELD = [int(i == PAD.button) for i in range(11)]


@given(
    st.lists(st.floats(-1, 1), min_size=8, max_size=8),
    st.lists(st.integers(0, 1), min_size=11, max_size=11),
)
def test_a_gamepad_moves_nothing_unless_its_switch_is_held(axes, buttons):
    joy = Joy(PAD, SILENCE)
    joy.take(REST, LET_GO, 0.0)
    joy.take(axes, buttons, 0.1)
    wish = joy.wish(0.1)
    assert wish.held == bool(buttons[PAD.button])
    assert wish.held or wish.shares == STILL
    assert all(-1 <= one <= 1 for one in wish.shares)
    joy.take(axes, LET_GO, 0.15)
    assert not joy.wish(0.15).held


@given(st.lists(anything, max_size=10), st.lists(st.integers(-5, 5), max_size=14))
def test_whatever_a_joy_says_is_a_wish_or_one_error(axes, buttons):
    joy = Joy(PAD, SILENCE)
    joy.take(REST, LET_GO, 0.0)
    joy.take(REST, HELD, 0.1)
    assert joy.wish(0.1).held
    try:
        joy.take(axes, buttons, 0.15)
    except VlaError:
        assert joy.wish(0.15) == Wish()
        joy.take(REST, HELD, 0.2)  # after an error it is let go first
        assert not joy.wish(0.2).held
    assert all(abs(one) <= 1 for one in joy.wish(0.15).shares)


def test_a_switch_held_from_the_beginning_or_through_silence_counts_as_let_go():
    joy = Joy(PAD, SILENCE)
    joy.take(REST, HELD, 0.0)
    assert not joy.wish(0.0).held
    joy.take(REST, LET_GO, 0.1)
    joy.take([0.0, 1.0, *REST[2:]], HELD, 0.15)
    assert joy.wish(0.15).shares[0] == 1.0
    assert joy.wish(0.15 + 2 * SILENCE) == Wish()
    joy.take(REST, HELD, 0.6)
    assert not joy.wish(0.6).held


def test_buttons_act_once_for_each_press():
    joy = Joy(PAD, SILENCE)
    start = [int(i == 7) for i in range(11)]
    for at, buttons in enumerate((start, LET_GO, start, start, LET_GO, start)):
        joy.take(REST, buttons, 0.1 * at)
    assert joy.wish(0.5).acts == ("take_over", "take_over")
    assert joy.wish(0.5).acts == ()


def test_a_deadzone_takes_nothing_from_full_deflection():
    joy = Joy(PAD, SILENCE)
    joy.take(REST, LET_GO, 0.0)
    for deflection, wanted in ((0.09, 0), (0.1, 0), (0.55, 0.5), (-1, -1), (1.2, 1)):
        joy.take([0, deflection, *REST[2:]], HELD, 0.1)
        assert joy.wish(0.1).shares[0] == pytest.approx(wanted)


def test_a_spacemouse_is_held_by_who_deflects_it():
    joy = Joy(load_joy("spacemouse"), SILENCE)
    joy.take([0.0] * 6, [0, 0], 0.0)
    joy.take([0.0, 0, 0.5, 0, 0, 0], [0, 0], 0.1)
    assert joy.wish(0.1).held and joy.wish(0.1).shares[2] > 0.4
    joy.take([0.05] * 6, [0, 0], 0.2)
    assert not joy.wish(0.2).held


# -- twists -----------------------------------------------------------------------------------


@given(st.lists(anything, min_size=6, max_size=6), st.sampled_from(["base", "/tool0", "map", ""]))
def test_a_twist_is_taken_in_the_robots_frames_alone(values, frame):
    twist = Twist(("base", "tool0"), (0.1, 0.5), SILENCE)
    if frame in ("map", "") or not all(map(math.isfinite, values)):
        with pytest.raises(VlaError, match=r"base or tool0|not finite"):
            twist.take(values, frame, 1.0)
        assert twist.wish(1.0) == Wish()
        return
    twist.take(values, frame, 1.0)
    wish = twist.wish(1.0)
    assert wish.held and wish.tool == (frame == "/tool0")
    way = one_arm().chunk(wish, {}).actions[0, :3] if max(map(abs, values)) < 1e6 else [0]
    assert np.linalg.norm(way) <= 0.1 * 0.05 * (1 + 1e-5)
    assert twist.wish(1.0 + 2 * SILENCE) == Wish()


# -- a leader ---------------------------------------------------------------------------------


@pytest.fixture
def arms(tmp_path):
    """A mapping with a turned, shifted joint, and a gripper."""
    path = tmp_path / "leader.yaml"
    path.write_text(
        "joints:\n  a: la\n  b: {joint: lb, scale: -1, offset: 0.5}\n"
        "gripper: {joint: jaw, open: 0.8, closed: -0.2}\n"
    )
    return load_leader(str(path))


NAMES = ("jaw", "la", "lb")


def test_a_follower_goes_where_its_leader_is(arms):
    leader = Leader(arms, 0.1, 0.0, SILENCE)
    leader.take(NAMES, (0.3, 0.2, 0.1), 0.0)
    wish = leader.wish(True, {"a": 0.25, "b": 0.4}, 0.0)
    assert wish.joints == pytest.approx({"a": 0.2, "b": 0.4})
    assert wish.gripper == pytest.approx(0.5)
    leader.take(NAMES, (0.3, 1.0, 0.1), 0.1)
    assert leader.wish(True, {"a": 0.25, "b": 0.4}, 0.1).joints["a"] == 1.0
    assert leader.wish(False, {}, 0.1) == Wish()


def test_a_leader_that_is_far_is_refused_with_the_difference(arms):
    leader = Leader(arms, 0.1, 0.0, SILENCE)
    leader.take(NAMES, (0.3, 0.2, 0.1), 0.0)
    with pytest.raises(VlaError, match=r"by \+0.30 at a; bring it within 0.1, or set align_speed"):
        leader.wish(True, {"a": -0.1, "b": 0.4}, 0.0)
    assert leader.wish(True, {"a": 0.15, "b": 0.4}, 0.1).held  # it was brought near


@given(st.floats(-3, 3), st.floats(0.05, 1))
def test_a_far_follower_comes_slowly(far, speed):
    leader = Leader(LeaderMapping({"a": LeaderJoint("la")}), 0.1, speed, 10.0)
    leader.take(("la",), (far,), 0.0)
    at, now = 0.0, 0.0
    while abs(at - far) > 1e-9:
        before, now = at, now + 0.05
        at = leader.wish(True, {"a": 0.0}, now).joints["a"]
        close = 0.1 if abs(far) <= 0.1 else 0.05 * speed + 0.02
        assert abs(at - before) <= close + 1e-9
        leader.take(("la",), (far,), now)
        assert now < 70


def test_a_leader_that_says_nothing_or_nonsense_moves_nothing(arms):
    leader = Leader(arms, 0.1, 0.0, SILENCE)
    here = {"a": 0.2, "b": 0.4}
    with pytest.raises(VlaError, match="silent"):
        leader.wish(True, here, 0.0)
    for names, positions, words in (
        (NAMES, (0.3, math.nan, 0.1), "la is nan"),
        (("jaw", "la"), (0.3, 0.2), "no joint lb; it has jaw, la"),
        (NAMES, (0.3,), "3 names for 1"),
    ):
        leader.take(NAMES, (0.3, 0.2, 0.1), 0.0)
        assert leader.wish(True, here, 0.0).held
        with pytest.raises(VlaError, match=words):
            leader.take(names, positions, 0.0)
        with pytest.raises(VlaError, match="silent"):
            leader.wish(True, here, 0.0)
    leader.take(NAMES, (0.3, 0.2, 0.1), 0.0)
    with pytest.raises(VlaError, match="follower's b"):
        leader.wish(True, {"a": 0.2}, 0.0)


# -- mappings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(mapping_folder().glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_mapping_can_be_used(path):
    load = {"keyboard": load_keys, "so101_leader": load_leader}.get(path.stem, load_joy)
    assert load(path.stem) == load(str(path))


@pytest.mark.parametrize(
    ("load", "text", "words"),
    [
        (load_keys, "keys: {w: up}", "key 'w' is 'up', which is none of"),
        (load_keys, "keys: {1: +x}", "quote it"),
        (load_keys, "- w", "it has keys"),
        (load_joy, "axes: {x: {axis: 0}}", "deadman has button, motion"),
        (load_joy, "deadman: {button: 1, motion: 0.1}", "one of button and motion"),
        (load_joy, "deadman: {button: -1}", "no index"),
        (load_joy, "deadman: {button: 1}\naxes: {up: {axis: 0}}", "'up' is none of x, y"),
        (load_joy, "deadman: {button: 1}\naxes: {x: {plus: 0}}", "plus and minus"),
        (load_joy, "deadman: {button: 1}\nbuttons: {jump: 0}", "'jump' is none of"),
        (load_joy, "deadman: {motion: .nan}", "a number from 0"),
        (load_leader, "joints: {a: la, b: la}", "name each joint"),
        (load_leader, "joints: {a: {joint: la, scale: x}}", "scale: a number"),
        (load_leader, "joints: {a: la}\ngripper: {joint: j, open: 1, closed: 1}", "the same"),
        (load_leader, "joints: [", "cannot be used"),
    ],
)
def test_a_mapping_that_says_what_none_does_is_refused(tmp_path, load, text, words):
    path = tmp_path / "mapping.yaml"
    path.write_text(text)
    with pytest.raises(VlaError, match=words):
        load(str(path))


def test_a_mapping_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(VlaError, match="no mapping pad; give a file, or one of: gamepad, keyb"):
        load_joy("pad")
    with pytest.raises(VlaError, match="needs a mapping"):
        load_leader("")
