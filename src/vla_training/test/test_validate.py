"""Tests of `vla validate`: motion metrics, thresholds, bags of other projects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bags import SPEC, write_bags

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.errors import DataError
from vla_inference.policies.base import Needs, Policy
from vla_inference.types import ActionChunk, eef_delta_spec
from vla_training.datasets.bag.reader import BagSet
from vla_training.evaluation import validation_report
from vla_training.evaluation.config import Thresholds, ValidateConfig
from vla_training.evaluation.validate import validate

ROOT = Path(__file__).resolve().parents[3]

STATISTICS = {
    "action": {"q01": [-0.02] * 6 + [0.0], "q99": [0.02] * 6 + [1.0]},
    "spec": {"rotation": "rotvec", "frame": "base", "dt": 0.05},
}


class Grey(Policy):
    """Knows by an image's grey what was done; `change` makes a chunk [T, 7] of that action."""

    needs, chunk = Needs(), 1

    def __init__(self, bags, change=lambda action: action[None], spec=SPEC):
        self.name, self.spec, self.change = "grey", spec, change
        self.done = {
            20 * i + t: a for i in range(len(bags)) for t, a in enumerate(bags.actions(i))
        }

    @property
    def action_spaces(self):
        return {"mine": STATISTICS}

    def in_space(self, action_space):
        return self

    def action_spec(self):
        return self.spec

    def warm_up(self):
        return 0.0

    def predict(self, observations):
        (seen,) = observations
        assert seen.instruction == "go"
        (image,) = seen.images.values()
        return [ActionChunk(self.change(self.done[int(image[0, 0, 0])]), self.spec)]


def figures(path, change=lambda a: a[None], **config):
    bags = BagSet(path)
    result = validate(Grey(bags, change), bags, ValidateConfig(**config))
    return result, result.statistics()


@pytest.mark.parametrize("action", ["chunk", "twist", "pose"])
def test_what_was_done_is_100_percent(action, tmp_path):
    _, found = figures(write_bags(tmp_path / "set", action=action))
    v = found["validation"]
    assert found["mean"]["accuracy"] == pytest.approx(1, abs=1e-5)
    assert v["direction"]["translation"]["cosine"] == pytest.approx(1, abs=1e-6)
    assert v["gripper_flips"] == 0 and v["coverage"] == 1 and v["beyond_statistics"] == 0
    assert [(e["frames"], e["outcome"]) for e in v["episodes"]] == [(6, "success"), (4, "success")]
    assert (
        Thresholds(min_accuracy=0.999, min_direction=0.99, max_gripper_flips=0.0).failures(found)
        == []
    )


def test_a_model_that_goes_the_other_way(tmp_path):
    def back(action):
        return np.append(-action[:6], 1 - action[6])[None]

    _, found = figures(write_bags(tmp_path / "set"), back)
    v = found["validation"]
    assert v["direction"]["translation"]["cosine"] == pytest.approx(-1, abs=1e-6)
    assert v["direction"]["rotation"]["opposite"] == 1
    assert v["gripper_flips"] == 1 and v["gripper_changes"] == {"predicted": 8, "recorded": 8}
    bounds = Thresholds(min_accuracy=0.9, min_direction=0, max_gripper_flips=0.1)
    assert [f.split(" is ")[0].rsplit(" ", 1)[0] for f in bounds.failures(found)] == [
        "accuracy",
        "direction",
        "gripper flips",
    ]
    assert Thresholds(max_jump_mm=1.0).failures(
        {
            **found,
            "validation": {**v, "joins": {"jump_translation_mm": None}},
        }
    ) == ["jump mm is not known, 1 is required"]


def test_jumps_where_one_chunk_takes_over_from_the_other(tmp_path):
    """Chunks of 4 that end 0.03 m/step away from where the next begins, all of them executed or
    only the first step."""
    path = write_bags(tmp_path / "set", (5,))

    def ramp(action):
        chunk = np.zeros((4, 7))
        chunk[:, 0] = [0.0, 0.01, 0.02, 0.03]
        return chunk

    for steps, jump in ((1, 0.0), (4, 30.0), (None, 0.0)):  # the bag says one step an image
        joins = figures(path, ramp, execute_steps=steps)[1]["validation"]["joins"]
        assert joins["count"] == 4
        assert joins["jump_translation_mm"]["median"] == pytest.approx(jump, abs=1e-4)
        assert joins["within_translation_mm"]["max"] == pytest.approx(10, rel=1e-4)
    with pytest.raises(DataError, match="--execute-steps is 5, the model's chunks have 4 steps"):
        figures(path, ramp, execute_steps=5)
    _, found = figures(path, ramp)
    assert found["validation"]["clip_rate"] == 0.5  # 0.25 m/s at 20 Hz: above 12.5 mm
    clips = found["validation"]["clips"]
    assert clips.keys() == {"linear_velocity"}
    assert clips["linear_velocity"] == pytest.approx({"share": 0.5, "limit": 0.25, "largest": 0.6})
    told = dict(validation_report.motion_rows(found["validation"]))
    assert told["steps over the command limits"].startswith("50.00 % (its `stretch`")
    assert told["  linear_velocity 0.25 m/s"] == "50.00 %, up to 0.6 m/s"
    assert found["validation"]["beyond_statistics"] == 0.25


def test_a_busy_machine_is_told_beside_its_latencies(tmp_path, monkeypatch):
    path, cores = write_bags(tmp_path / "set", (3,)), len(os.sched_getaffinity(0))
    for load, told in ((cores + 1.5, True), (cores / 2, False)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        notes = figures(path)[1]["notes"]
        assert any("the machine was busy" in n and "latencies" in n for n in notes) == told


@pytest.mark.parametrize(
    "module",
    [
        "vla_inference.ros.inference.node",
        "vla_inference.policies.openvla.policy",
        "vla_inference.policies.openvla.family",
        "vla_training.small_model.trainer",
    ],
)
def test_threads_that_wait_do_not_spin(module):
    """OpenMP reads its settings when PyTorch is imported: they must be set by then."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment["OMP_DISPLAY_ENV"] = "verbose"
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "GOMP_SPINCOUNT = '0'" in done.stderr


def test_a_script_that_imports_pytorch_first_is_told_what_that_costs():
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    load = "from vla_inference.policies.registry import load_policy; load_policy({!r})"
    script = load.format("models/stack-small")
    for first, told in (("import torch", True), ("pass", False)):
        done = subprocess.run(
            [sys.executable, "-c", f"{first}; {script}"],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert ("set OMP_WAIT_POLICY=PASSIVE" in done.stderr) == told


def test_twists_are_compared_over_the_step_of_the_model(tmp_path):
    """A camera at 20 Hz, a model at 10 Hz: its steps last for two images."""
    bags = BagSet(write_bags(tmp_path / "set", (8,), action="twist"))
    short = bags.actions(0).copy()
    policy = Grey(bags, spec=eef_delta_spec("rpy", "base", 0.1))
    result = validate(policy, bags)
    assert bags.spec.dt == 0.1 and bags.spec.rotation == "rpy"
    np.testing.assert_allclose(
        result.evaluation.truth[:7, :3], short[:-1, :3] + short[1:, :3], atol=1e-7
    )


def test_command_line_report_and_exit_status(tmp_path, capsys):
    from vla_inference.cli.main import main

    path = write_bags(tmp_path / "set", (3,))
    model = write_random_checkpoint(tmp_path / "model", head="l1")
    given = ["validate", str(path), "--model", str(model), "--device", "cpu", "--max-steps", "2"]
    asked = ["--min-accuracy", "1", "--max-latency-ms", "0"]
    assert main([*given, *asked, "--json", "--report", str(tmp_path / "out")]) == 1
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["mean"]["timesteps"] == 2 and found["validation"]["episodes"][0]["frames"] == 2
    assert len(found["failures"]) == 2
    assert "vla validate: accuracy" in told.err and "latency ms" in told.err
    page = (tmp_path / "out" / "report.html").read_text()
    assert "validation on recorded bags" in page and "direction of translation" in page
    assert page.index("not reached: accuracy") < page.index("Figures")
    assert "stamps belong together" in page and "within 50 ms" in page
    assert (tmp_path / "out" / "actions.png").exists()
    assert main([*given, "--min-raw-accuracy", "0"]) == 0
    assert "accuracy, raw" in capsys.readouterr().out
    for words, complaint in (
        (["--image-topic", "/nope"], "no topic '/nope'"),
        (["--min-accuracy", "99"], "--min-accuracy is 99.0; give 0 to 1"),
        (["--max-steps", "0"], "--max-steps is 0"),
    ):
        assert main([*given, *words]) == 2
        assert complaint in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["validate", str(empty)]) == 2
    assert "has no bag" in capsys.readouterr().err


def test_sentences_that_are_missing_are_asked_for(tmp_path):
    bags = BagSet(write_bags(tmp_path / "set", (2,)))
    episode = bags.episode(0)
    episode.instructions[:] = [" ", " "]
    with pytest.raises(DataError, match="no instruction; name its topic with --instruction-topic"):
        validate(Grey(bags), bags)
    result = validate(Grey(bags), bags, ValidateConfig(instruction="go"))
    text = validation_report.text(result.statistics())
    assert "accuracy, raw" in text and "images answered" in text
