"""Tests of the stamp check that detects a second model or simulation on the topics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_inference.errors import VlaError
from vla_sim_bridge.evaluation.answers import Answers

TOPIC = "/action"


@given(st.lists(st.integers(0, 2**62), min_size=1, unique=True), st.data())
def test_one_model_may_answer_any_of_our_frames_once_in_any_order(stamps, data):
    answers = Answers()
    for stamp in stamps:
        answers.sent(stamp)
    for stamp in data.draw(st.permutations(stamps)):
        if stamp >= stamps[0]:
            answers.heard(stamp, TOPIC)


def test_answers_to_frames_of_before_ours_are_no_sign():
    answers = Answers()
    answers.heard(5, TOPIC)  # before we have published anything
    answers.sent(100)
    for stamp in (0, 99):
        answers.heard(stamp, TOPIC)


def test_a_second_answer_to_one_frame_is_another_models():
    answers = Answers()
    answers.sent(100)
    answers.heard(100, TOPIC)
    with pytest.raises(VlaError, match="more than one model answers on /action; end the others"):
        answers.heard(100, TOPIC)


def test_an_answer_to_a_frame_that_is_not_ours_is_another_simulations():
    answers = Answers()
    answers.sent(100)
    with pytest.raises(VlaError, match="a chunk on /action answers somebody else's frame"):
        answers.heard(101, TOPIC)
