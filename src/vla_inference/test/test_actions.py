"""Tests of action tokens: from normalised actions to tokens and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_inference.errors import VlaError
from vla_inference.openvla.action_tokens import ActionTokens
from vla_inference.policies.normalisation import Normalisation, find_statistics

TOKENS = ActionTokens(32000)
unit = st.floats(-1, 1, width=32)


@given(arrays(np.float64, (3, 7), elements=unit))
def test_tokens_lose_at_most_half_a_bin(actions):
    error = np.abs(TOKENS.decode(TOKENS.encode(actions)) - actions)
    assert error.max() <= 1 / 255 + 1e-9


@given(st.integers(32000 - 255, 32000 - 1))
def test_decoding_and_encoding_a_token_gives_it_back(token):
    assert TOKENS.encode(TOKENS.decode(token)) == token


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_greater_actions_have_lower_tokens(a, b):
    low, high = sorted((a, b))
    assert TOKENS.encode(low) >= TOKENS.encode(high)


@pytest.mark.parametrize("token", [-1, 0, 32000 - 257, 32000, 32063])
def test_tokens_that_mean_no_action_are_refused(token):
    with pytest.raises(VlaError, match="not all action tokens"):
        TOKENS.decode(np.array([31800, token]))


@st.composite
def normalisations(draw):
    low = draw(arrays(np.float64, 7, elements=st.floats(-10, 10)))
    span = draw(arrays(np.float64, 7, elements=st.floats(0.01, 10)))
    mask = draw(arrays(bool, 7))
    return Normalisation(low, low + span, mask)


@given(normalisations(), arrays(np.float64, 7, elements=unit))
def test_normalising_undoes_denormalising(n, x):
    np.testing.assert_allclose(n.normalise(n.denormalise(x)), x, atol=1e-5)


@given(normalisations(), arrays(np.float64, 7, elements=st.floats(-100, 100)))
def test_normalised_values_stay_in_range_and_masked_ones_untouched(n, x):
    y = n.normalise(x)
    assert (np.abs(y[n.mask]) <= 1).all()
    np.testing.assert_array_equal(y[~n.mask], x[~n.mask])


@settings(max_examples=20)
@given(st.floats(-5, 5), st.floats(-5, 5))
def test_constant_dimensions_come_back_as_their_constant(constant, x):
    n = Normalisation(np.array([constant]), np.array([constant]), np.array([True]))
    assert n.normalise(np.array([x])) == 0
    assert n.denormalise(np.array([0.0])) == constant


@pytest.mark.parametrize(
    ("statistics", "words"),
    [
        ({}, "no 'q01'"),
        ({"q01": [0.0]}, "no 'q99'"),
        ({"q01": [0.0], "q99": [1.0, 2.0]}, "lengths 1, 2"),
        ({"q01": [0.0], "q99": [1.0], "mask": [True, True]}, "lengths 1, 1, 2"),
        ({"q01": [float("nan")], "q99": [1.0]}, "not finite"),
        ({"q01": ["a"], "q99": [1.0]}, "not numbers"),
        ({"q01": [[0.0]], "q99": [[1.0]]}, "lengths"),
    ],
)
def test_broken_statistics_are_refused(statistics, words):
    with pytest.raises(VlaError, match=words):
        Normalisation.from_statistics(statistics)


def test_the_only_statistics_are_found_without_a_name():
    assert find_statistics({"one": {"action": {"q01": 1}}, "normalized": {}}, None) == (
        "one",
        {"q01": 1},
    )
