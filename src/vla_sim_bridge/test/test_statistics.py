"""Tests of the confidence intervals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_inference.errors import VlaError
from vla_sim_bridge.evaluation.confidence_intervals import mean_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, and statsmodels for the last
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (100, 100, 0.9630, 1.0),
    ],
)
def test_known_intervals(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 500), st.data())
def test_equals_scipys(trials, data):
    from scipy.stats import binomtest

    successes = data.draw(st.integers(0, trials))
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    found = wilson_interval(successes, trials)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-6)


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_holds_the_rate_and_is_symmetric(good, bad):
    low, high = wilson_interval(good, good + bad)
    assert 0 <= low <= high <= 1
    if good + bad:
        assert low - 1e-12 <= good / (good + bad) <= high + 1e-12
    assert wilson_interval(bad, good + bad) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("successes", "trials"), [(3, 2), (-1, 2), (0, -1)])
def test_refuses_impossible_counts(successes, trials):
    with pytest.raises(VlaError):
        wilson_interval(successes, trials)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=9))
def test_a_mean_equals_scipys(values):
    from scipy.stats import sem, t

    expected = t.interval(0.95, len(values) - 1, sum(values) / len(values), sem(values) or 1e-300)
    assert mean_interval(values) == pytest.approx(expected, abs=1e-9)


def test_one_value_tells_nothing_of_others_and_none_is_refused():
    assert mean_interval([0.5]) == (-float("inf"), float("inf"))
    with pytest.raises(VlaError, match="no values"):
        mean_interval([])
