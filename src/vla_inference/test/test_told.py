"""Tests of what is reckoned of joints that are not seen: it holds the truth, whatever it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vla_inference.control.parts.told import NOWHERE, Told

PERIOD = 0.05
SHARES = st.floats(0.0, 1.0)
COMMANDS = st.lists(st.tuples(st.floats(-3.0, 3.0), st.floats(0.2, 6.0), SHARES), min_size=1)


@given(COMMANDS, SHARES, SHARES, SHARES)
def test_what_a_joint_was_told_since_it_was_measured_holds_what_it_did(commands, first, at, last):
    """Each command lasts a number of periods; of what is late a joint obeys a share."""
    told = Told([NOWHERE], PERIOD)
    moves, steady = [], 10.0  # begin, end, velocity, as the joint moves
    for velocity, periods, share in commands[-6:]:
        told.add(steady, (velocity,))
        told.last_ends((periods - 1) * PERIOD)
        obeyed = min(periods, 1.0) + share * max(periods - 1.0, 0.0)
        moves.append((steady, steady + obeyed * PERIOD, velocity))
        steady += periods * PERIOD
    first, at, last = sorted(10.0 + share * (steady - 10.0) for share in (first, at, last))
    true = sum(max(0.0, end - max(begin, at)) * velocity for begin, end, velocity in moves)
    way = told.since(first, last, 0)
    assert way.whole - way.less - 1e-9 <= true <= way.whole + way.more + 1e-9
    assert way.less >= -1e-12 and way.more >= -1e-12


def test_commands_on_time_leave_no_doubt():
    told = Told([NOWHERE], PERIOD)
    for i in range(4):
        told.add(i * PERIOD, (2.0,))
    way = told.since(0.125, 0.125, 0)
    assert abs(way.whole - 0.15) < 1e-12 and way.less == way.more == 0.0
