"""Tests of the accuracy formulas, against hand-computed values and as properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_inference.errors import VlaError
from vla_inference.types import eef_delta_spec
from vla_training.evaluation.accuracy import (
    Range,
    accuracy,
    clipped_accuracy,
    dimension_errors,
    gripper_flips,
    nrmse,
    token_agreement,
)

QUICK = settings(deadline=None, max_examples=80)
SPEC = eef_delta_spec()
NUMBERS = st.floats(-10, 10, allow_nan=False)
ACTIONS = hnp.arrays(np.float64, (4, 7), elements=NUMBERS)
BRIDGE = Range(
    [-0.02872725, -0.0417035, -0.02609386, -0.08092105, -0.092887, -0.20718276, 0.0],
    [0.02830968, 0.04085525, 0.04016159, 0.0819205, 0.0779285, 0.20382575, 1.0],
)


def test_by_hand():
    bounds = Range([0, 0], [2, 4])
    truth, predicted = np.array([[1.0, 4.0]]), np.array([[2.0, 2.0]])
    # errors in units of the range: 1/2 and 2/4
    assert nrmse(truth, predicted, bounds).tolist() == [0.5]
    assert accuracy(truth, predicted, bounds).tolist() == [0.5]
    assert accuracy(np.array([1.0, 4.0]), np.array([1.0, 8.0]), bounds) == pytest.approx(
        1 - np.sqrt(0.5)
    )


def test_clipping_touches_the_truth_only():
    bounds = Range([0, 0], [1, 1])
    assert clipped_accuracy([[3.0, 0.5]], [[1.0, 0.5]], bounds).tolist() == [1.0]
    assert accuracy([[3.0, 0.5]], [[1.0, 0.5]], bounds)[0] == pytest.approx(1 - np.sqrt(2))
    assert clipped_accuracy([[1.0, 0.5]], [[3.0, 0.5]], bounds)[0] == pytest.approx(1 - np.sqrt(2))


def test_a_gripper_flip_alone_costs_what_its_range_says():
    truth = (BRIDGE.low + BRIDGE.high) / 2
    truth[6] = 0
    predicted = truth.copy()
    predicted[6] = 1
    assert accuracy(truth, predicted, BRIDGE) == pytest.approx(1 - 1 / np.sqrt(7))


@QUICK
@given(ACTIONS, ACTIONS)
def test_accuracy_is_one_only_where_all_is_equal(truth, predicted):
    values = accuracy(truth, predicted, BRIDGE)
    assert (values <= 1).all()
    assert (accuracy(truth, truth, BRIDGE) == 1).all()
    worst = (np.abs(truth - predicted) / BRIDGE.span).max(1)
    assert (1 - values <= worst + 1e-12).all()
    assert (1 - values >= worst / np.sqrt(7) - 1e-12).all()


@QUICK
@given(ACTIONS, ACTIONS, hnp.arrays(np.float64, 7, elements=st.floats(0.01, 100)), NUMBERS)
def test_the_unit_of_a_dimension_does_not_matter(truth, predicted, scale, shift):
    other = Range(BRIDGE.low * scale + shift, BRIDGE.high * scale + shift)
    np.testing.assert_allclose(
        nrmse(truth * scale + shift, predicted * scale + shift, other),
        nrmse(truth, predicted, BRIDGE),
        rtol=1e-6,
        atol=1e-6,
    )


@QUICK
@given(ACTIONS, ACTIONS)
def test_clipping_brings_a_prediction_inside_the_bounds_no_further_off(truth, predicted):
    inside = BRIDGE.clip(predicted)
    raw, clipped = accuracy(truth, inside, BRIDGE), clipped_accuracy(truth, inside, BRIDGE)
    assert (clipped >= raw - 1e-12).all()


@QUICK
@given(ACTIONS, ACTIONS, st.integers(0, 6))
def test_a_dimension_without_extent_is_left_out(truth, predicted, flat):
    high = BRIDGE.high.copy()
    high[flat] = BRIDGE.low[flat]
    rest = [i for i in range(7) if i != flat]
    np.testing.assert_allclose(
        nrmse(truth, predicted, Range(BRIDGE.low, high)),
        nrmse(truth[:, rest], predicted[:, rest], Range(BRIDGE.low[rest], BRIDGE.high[rest])),
    )


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(VlaError, match=r"truth has shape \(7,\), the prediction \(6,\)"):
        nrmse(np.zeros(7), np.zeros(6), BRIDGE)
    with pytest.raises(VlaError, match="q01 = q99"):
        nrmse(np.zeros(7), np.zeros(7), Range(np.zeros(7), np.zeros(7)))
    with pytest.raises(VlaError, match="bounds have shapes"):
        Range(np.zeros(7), np.zeros(6))


def test_errors_in_millimetres_and_milliradians():
    truth = np.zeros((4, 7))
    predicted = truth.copy()
    predicted[:, 0] = [0.001, -0.002, 0.003, 0.010]
    predicted[:, 3] = 0.02
    found = {e.name: e for e in dimension_errors(truth, predicted, SPEC)}
    assert (found["x"].unit, found["rx"].unit, found["gripper"].unit) == ("mm", "mrad", "1")
    assert found["x"].mean == pytest.approx(4) and found["x"].median == pytest.approx(2.5)
    assert found["x"].max == pytest.approx(10)
    assert found["rx"].p95 == pytest.approx(20)
    assert found["y"].max == 0


def test_gripper_flips_are_told_by_direction():
    truth, predicted = np.zeros((5, 7)), np.zeros((5, 7))
    truth[:, 6] = [0, 0, 1, 1, 1]
    predicted[:, 6] = [0.1, 0.9, 0.8, 0.2, 0.4]
    found = gripper_flips(truth, predicted, SPEC)
    assert (found.opened, found.closed, found.flips, found.frames) == (1, 2, 3, 5)


@QUICK
@given(hnp.arrays(np.int64, (5, 1, 7), elements=st.integers(0, 255)), st.data())
def test_tokens_agree_as_often_as_they_were_left_alone(tokens, data):
    other = tokens.copy()
    where = data.draw(st.sets(st.tuples(st.integers(0, 4), st.integers(0, 6))))
    assume(where)
    for n, d in where:
        other[n, 0, d] += 3
    found = token_agreement(tokens, other)
    assert found.tokens == pytest.approx(1 - len(where) / 35)
    assert found.frames == pytest.approx(1 - len({n for n, _ in where}) / 5)
    assert found.largest_step == 3
    assert token_agreement(tokens, tokens).tokens == 1


def test_tokens_of_different_forms_are_refused():
    with pytest.raises(VlaError, match="one action form"):
        token_agreement(np.zeros((3, 1, 7)), np.zeros((3, 8, 7)))
