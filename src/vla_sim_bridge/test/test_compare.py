"""Tests of `vla compare`: pairs of episodes, the interval of their difference, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_inference.cli.main import run_subcommand
from vla_inference.errors import DataError
from vla_sim_bridge.cli import compare as command
from vla_sim_bridge.evaluation.compare import compare, paired_interval, read_results, sign_test


def results(outcomes: str, first: int = 0, **more) -> dict:
    """s: success, t: timeout, a: aborted."""
    names = {"s": "success", "t": "timeout", "a": "aborted"}
    episodes = [
        {"seed": 7, "index": first + i, "instruction": f"stack {first + i}", "outcome": names[o]}
        for i, o in enumerate(outcomes)
    ]
    run = {"task": "Stack_D0", "language": "train", "horizon": 200, "model": "mine"}
    return {**run, "complete": True, "per_episode": episodes, **more}


def test_episodes_are_paired_and_flips_are_listed():
    found = compare(results("sstta"), results("stsss"))
    assert (found.episodes, found.successes, found.left_out) == (4, (2, 3), 1)
    assert (found.better, found.worse) == (2, 1) and found.difference == 0.25
    assert [(f.index, f.first, f.second) for f in found.flips] == [
        (1, "success", "timeout"),
        (2, "timeout", "success"),
        (3, "timeout", "success"),
    ]
    low, high = found.interval
    assert -1 < low < 0 < high < 1


def test_the_interval_covers_the_true_difference_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for shares in ((0.5, 0.2, 0.1, 0.2), (0.7, 0.05, 0.05, 0.2), (0.1, 0.4, 0.1, 0.4)):
        drawn = rng.multinomial(50, shares, 2000)  # both, better, worse, neither
        found = [paired_interval(*map(int, row[:3]), 50) for row in drawn]
        true = shares[1] - shares[2]
        covered = np.mean([low <= true <= high for low, high in found])
        assert 0.93 < covered < 0.985


def test_flips_are_tested_exactly():
    assert sign_test(0, 0) == 1.0 and sign_test(5, 0) == pytest.approx(2 / 32)
    assert sign_test(8, 2) == pytest.approx(0.109375)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(1, 30))
def test_the_interval_holds_the_difference_and_turns_with_the_order(both, better, worse, neither):
    n = both + better + worse + neither
    low, high = paired_interval(both, better, worse, n)
    assert -1 - 1e-9 <= low <= (better - worse) / n <= high <= 1 + 1e-9
    assert paired_interval(both, worse, better, n) == pytest.approx((-high, -low))


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (results("ss", task="Lift_D0"), "task 'Stack_D0' and 'Lift_D0'; .* the same --task"),
        (results("ss", horizon=100), "horizon 200 and 100"),
        (results("ss", first=9), "no episode in common"),
    ],
)
def test_runs_of_other_episodes_are_refused(second, says):
    with pytest.raises(DataError, match=says):
        compare(results("ss"), second)


def test_the_command_reads_folders(tmp_path, capsys):
    class Point:
        name = "compare"

        @staticmethod
        def load():
            return command.compare

    for name, outcomes in (("one", "stt"), ("two", "sst")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results(outcomes)))
    words = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert run_subcommand(Point, words) == 0
    out = capsys.readouterr().out
    assert "mine: 1 of 3 = 33.3 %" in out and "difference +33.3 points" in out
    assert "episode 1 of seed 7: timeout -> success  stack 1" in out
    assert run_subcommand(Point, [*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["flips"][0]["index"] == 1
    with pytest.raises(DataError, match=r"has no results of a rollout .* --output"):
        read_results(tmp_path)
