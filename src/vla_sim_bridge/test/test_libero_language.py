"""Tests of the sentences about LIBERO's scenes."""

from __future__ import annotations

import pytest

from vla_sim_bridge.libero.language import HELD_OUT, PLACES, paraphrases, sentence

BEGAN = {"akita_black_bowl_1": "cookies_1", "akita_black_bowl_2": "flat_stove_1_cook_region"}


def test_sentences_are_the_benchmarks():
    goal = ["on", "akita_black_bowl_2", "plate_1"]
    assert sentence(goal, BEGAN) == "pick up the black bowl on the stove and place it on the plate"
    denied = sentence(goal, BEGAN, denied=True)
    assert denied == "pick up the black bowl not on the cookie box and place it on the plate"
    goal = ["in", "bbq_sauce_1", "basket_1_contain_region"]
    assert sentence(goal, {}) == "pick up the bbq sauce and place it in the basket"


@pytest.mark.parametrize(
    "told",
    [f"pick up the black bowl {place} and place it on the plate" for place in PLACES.values()]
    + [
        "pick up the black bowl not on the stove and place it on the plate",
        "pick up the milk and place it in the basket",
    ],
)
def test_paraphrases_say_the_same_and_are_not_those_of_the_test(told):
    said = paraphrases(told, 64)
    assert said is not None and said[0] == told and len(set(said)) == 64
    assert said == paraphrases(told, 64)
    assert not HELD_OUT & set(said)
    assert all((" not " in s) == (" not " in told) for s in said)
    assert all(("basket" in s) == ("basket" in told) for s in said)


@pytest.mark.parametrize("told", ["open the top drawer", "stack the red block", ""])
def test_other_sentences_have_none(told):
    assert paraphrases(told, 8) is None
