"""Tests of the closed loop through joint outputs: model, chunk IK, command node, simulated arm."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from graphs import domain, processes

from vla_inference.checkpoints.random_weights import write_random_checkpoint

ROOT = Path(__file__).resolve().parent.parent
PATHS = ("joint_positions", "joint_trajectory", "joint_velocities")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("model"), head="l1")


@pytest.fixture
def run(tmp_path):
    """Results of robosuite.launch.xml with these arguments."""

    def run(start, **arguments) -> dict:
        given = {"output": tmp_path / "r", "record_episodes": 0, "summary": "false", **arguments}
        words = [f"{name}:={value}" for name, value in given.items()]
        process = start(ROOT / "launch/robosuite.launch.xml", "--stand-in", *words)
        out, err = process.communicate(timeout=400)
        assert process.returncode == 0, out + err
        return json.loads((tmp_path / "r" / "results.json").read_text())

    with processes(domain(55)) as start:
        yield partial(run, partial(start, "-m", "vla_inference.cli.main", "launch", cwd=tmp_path))


@pytest.mark.parametrize(
    "path", [PATHS[0], *(pytest.param(p, marks=pytest.mark.slow) for p in PATHS[1:])]
)
def test_no_period_goes_without_a_joint_command(run, checkpoint, path):
    found = run(path=path, model=checkpoint, episodes=2, horizon=8)
    assert [e["frames"] for e in found["per_episode"]] == [8, 8]
    assert found["driven_by"] == path and found["frames_published"] == 4
    robot = found["robot"]
    assert robot["accepted"] >= 16 and robot["rejected"] == robot["stops"] == {}, robot
    assert robot["gaps"] == robot["unanswered_periods"] == 0, robot


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_the_shipped_model_stacks_through_joints(run, path):
    """Episodes 1 to 3 of seed 7, which succeed through every other path."""
    model = ROOT / "models/stack-small"
    found = run(path=path, model=model, first_episode=1, episodes=3, seed=7)
    assert found["successes"] >= 2, found["per_episode"]
    assert found["robot"]["stops"] == {}
