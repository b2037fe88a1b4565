"""Episodes that end in many ways, and what the rule says at each of their steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vla_inference.errors import VlaError
from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.evaluation.episode import SETTLE_STEPS
from vla_sim_bridge.generation.config import GenerateConfig
from vla_sim_bridge.generation.endings import attempt as endings
from vla_sim_bridge.generation.endings import mishaps

CONFIG = GenerateConfig(
    task="Stack_L", method="endings", keep_failures=True, images=False, noise=0.0, seed=5
)


@pytest.fixture(scope="module")
def stack() -> Simulation:
    return Simulation("Stack_L", (), 64, 64)


def play(stack, monkeypatch, kind: str, index: int = 0):
    """An attempt of this kind, whatever would have been drawn."""
    chosen = {kind: mishaps.mishaps_of(stack.task)[kind]}
    monkeypatch.setattr(endings, "mishaps_of", lambda task: chosen)
    return endings.make_attempt(stack, CONFIG, index)


def test_every_kind_of_end_is_what_the_rule_says(stack, monkeypatch):
    outcomes = {}
    for kind in mishaps.mishaps_of(stack.task):
        made = play(stack, monkeypatch, kind)
        lasted = bool((made.episode.rewards[-SETTLE_STEPS:] > 0).all())
        assert made.success == lasted == made.episode.metadata["settled"]
        assert made.success or not made.episode.rewards[-1]  # none is left undecided
        outcomes[kind] = made.outcome
    assert outcomes["none"] == "success" and outcomes["swapped"] == "wrong_order"
    assert outcomes["held"] == "held" and outcomes["stopped"] == "stopped"
    assert outcomes["taken"] == "taken"


def test_an_attempt_follows_from_its_number(stack):
    one, two = (endings.make_attempt(stack, CONFIG, 3).episode for _ in range(2))
    np.testing.assert_array_equal(one.columns["states"], two.columns["states"])
    assert one.metadata == two.metadata and one.metadata["by"] == "expert"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"keep_failures": False}, "give --keep-failures"),
        ({"task": "StackThree_D0"}, "has more than two subtasks"),
        ({"task": "libero_spatial/0"}, "libero"),
    ],
)
def test_what_has_no_such_ends_is_refused(changes, told):
    with pytest.raises(VlaError, match=told):
        endings.check(replace(CONFIG, **changes))
