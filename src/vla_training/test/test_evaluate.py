"""Tests of offline evaluation: metrics, files, refusal of mismatched model and dataset."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from vla_inference.episodes.hdf5 import write_columns, write_header
from vla_inference.episodes.robosuite import to_robosuite
from vla_inference.errors import DataError, VlaError
from vla_inference.policies.base import Needs, Policy
from vla_inference.types import ActionChunk, ActionPart, DimSpec, eef_delta_spec, joint_spec
from vla_training.cli import eval
from vla_training.conversion.convert import convert
from vla_training.datasets import open_dataset
from vla_training.evaluation import report
from vla_training.evaluation.config import EvalConfig
from vla_training.evaluation.evaluate import evaluate

ROOT = Path(__file__).resolve().parents[3]
SPEC = eef_delta_spec()
STATISTICS = {
    "action": {
        "q01": [-0.02] * 6 + [0.0],
        "q99": [0.02] * 6 + [1.0],
        "mask": [True] * 6 + [False],
    },
    "spec": {"rotation": "rotvec", "frame": "base", "dt": 0.05},
}


def write_set(path: Path, lengths=(5, 3), instruction="stack the red block", **header) -> Path:
    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        write_header(file, "Stack_D0", len(lengths), {})
        for i, n in enumerate(lengths):
            actions = rng.uniform(-0.02, 0.02, (n, 7))
            actions[:, 6] = np.arange(n) < 3
            data = {
                "actions": to_robosuite(actions),
                "states": np.zeros((n, 3)),
                "rewards": np.zeros(n),
                "dones": np.zeros(n),
                "instructions": [instruction] * n,
                "obs": {
                    "agentview_image": rng.integers(0, 256, (n, 64, 64, 3), np.uint8),
                    "a_wrist_image": np.zeros((n, 64, 64, 3), np.uint8),
                },
            }
            write_columns(file.create_group(f"data/demo_{i}"), data)
        for key, value in header.items():
            file["data"].attrs[key] = value
    return path


class FakePolicy(Policy):
    """Answers with the true actions plus `offset`; sees which images it was given."""

    needs, chunk = Needs(), 2

    def __init__(self, dataset, offset=0.0, spec=SPEC, statistics=STATISTICS, tokens=None):
        self.truth = np.concatenate([e.actions for e in dataset])
        self.name, self.offset, self.spec, self.tokens = "fake", offset, spec, tokens
        self.statistics = statistics
        self.seen, self.warm = [], 0

    @property
    def action_spaces(self):
        normalized = {"action": {"q01": [-1.0] * 7, "q99": [1.0] * 7}}
        return {"generated": self.statistics, "normalized": normalized}

    def in_space(self, action_space):
        self.action_space = action_space
        return self

    def action_spec(self):
        return self.spec

    def warm_up(self):
        self.warm += 1

    def predict(self, observations):
        (observation,) = observations
        self.seen.append((list(observation.images), observation.instruction))
        action = self.truth[len(self.seen) - 1] + self.offset
        tokens = None if self.tokens is None else self.tokens[len(self.seen) - 1]
        return [ActionChunk(np.stack([action, action * 0 + 9]), SPEC, tokens)]


@pytest.fixture
def data(tmp_path):
    return open_dataset(write_set(tmp_path / "demo.hdf5"))


def test_a_perfect_model_is_100_percent(data):
    policy, told = FakePolicy(data), []
    result = evaluate(policy, data, report=told.append)
    mean = result.statistics()["mean"]
    assert (mean["timesteps"], mean["episodes"]) == (8, 2)
    assert mean["accuracy"] == pytest.approx(1, abs=1e-5)
    assert policy.warm == 1
    assert policy.seen[0] == (["agentview"], "stack the red block")
    assert [f.number for f in told] == list(range(1, 9)) and told[0].total == 8
    assert [f.episode for f in told] == [0] * 5 + [1] * 3
    assert told[-1].mean_accuracy == pytest.approx(mean["accuracy"])


def test_a_lerobot_set_is_evaluated_like_any_other(data, tmp_path):
    convert(data.path, tmp_path / "set", "lerobot", workers=1)
    films = open_dataset(tmp_path / "set", "lerobot")
    policy = FakePolicy(data)
    mean = evaluate(policy, films).statistics()["mean"]
    assert (mean["timesteps"], mean["accuracy"]) == (8, pytest.approx(1, abs=1e-5))
    assert policy.seen[0] == (["agentview"], "stack the red block")


def test_figures_of_a_model_that_is_off(data):
    offset = np.array([0.004, 0, 0, 0, 0, 0.02, 0])
    statistics = evaluate(FakePolicy(data, offset), data).statistics()
    # in units of the range 0.04: 0.1 and 0.5, over 7 dimensions
    wanted = np.sqrt((0.1**2 + 0.5**2) / 7)
    assert statistics["mean"]["error"] == pytest.approx(wanted, rel=1e-4)
    np.testing.assert_allclose(statistics["error"], wanted, rtol=1e-3)
    errors = {d["name"]: (d["unit"], round(d["mean"], 3)) for d in statistics["dimensions"]}
    assert errors["x"] == ("mm", 4.0) and errors["rz"] == ("mrad", 20.0)
    assert statistics["gripper"]["flips"] == 0
    assert statistics["mean"]["fps"] == pytest.approx(1 / statistics["mean"]["latency"])


def test_limits_count_episodes_and_frames(data):
    def count(**options):
        return len(evaluate(FakePolicy(data), data, EvalConfig(**options)).frames)

    assert count(max_episodes=1) == 5
    assert count(max_steps=6) == 6
    assert count(max_episodes=1, max_steps=6) == 5


def test_a_reference_model_is_compared(data):
    tokens = np.arange(8 * 7).reshape(8, 1, 7)
    others = tokens.copy()
    others[0, 0, 0] += 2
    reference = FakePolicy(data, 0.001, tokens=others)
    result = evaluate(FakePolicy(data, tokens=tokens), data, reference=reference)
    statistics = result.statistics()
    assert statistics["tokens"]["tokens"] == pytest.approx(55 / 56)
    assert statistics["tokens"]["largest_step"] == 2
    np.testing.assert_allclose(statistics["quant_error"], statistics["eval_error"], rtol=1e-3)
    assert len(statistics["eval_latency"]) == 8 and statistics["mean"]["eval_fps"] > 0


def test_normalised_actions_are_compared_in_the_data_sets_own_range(data):
    result = evaluate(FakePolicy(data), data, EvalConfig(action_space="normalized"))
    bounds = data.statistics()["action"]
    low, high = np.array(bounds["q01"])[:6], np.array(bounds["q99"])[:6]
    actions = np.concatenate([data.actions(i) for i in range(2)])
    wanted = 2 * (actions[:, :6] - low) / (high - low) - 1
    np.testing.assert_allclose(result.truth[:, :6], wanted, atol=1e-5)
    assert np.abs(result.truth[:, :6]).max() > 1  # outliers are the metric's to clip
    np.testing.assert_allclose(result.truth[:, 6], actions[:, 6], atol=1e-6)
    assert {d.unit for d in result.spec.dims} == {"1"}


def test_statistics_may_come_from_a_file(data, tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"mine": STATISTICS}))
    result = evaluate(FakePolicy(data), data, EvalConfig(action_space=str(path)))
    assert result.action_space == "custom"
    path.write_text(json.dumps({"mine": STATISTICS, "other": STATISTICS}))
    with pytest.raises(VlaError, match=r"own\.json contains statistics of 2 datasets"):
        evaluate(FakePolicy(data), data, EvalConfig(action_space=str(path)))


def test_ctrl_c_keeps_what_there_is(data):
    def stop(frame):
        if frame.number == 3:
            raise KeyboardInterrupt

    result = evaluate(FakePolicy(data), data, report=stop)
    assert len(result.frames) == 3 and not result.statistics()["complete"]


REFUSED = {
    "rotation": (
        eef_delta_spec("rpy"),
        r"part 'arm': rotation is 'rotvec', that of model 'fake' is 'rpy'",
    ),
    "frame": (
        eef_delta_spec(frame="tool"),
        r"part 'arm': frame is 'base', that of model 'fake' is 'tool'",
    ),
    "polarity": (
        replace(
            SPEC,
            parts=(
                SPEC.part("arm"),
                ActionPart("gripper", "gripper", (DimSpec("gripper", "1", "0 open, 1 closed"),)),
            ),
        ),
        r"part 'gripper': dimension .*: polarity is '1 open, 0 closed', .* '0 open, 1 closed'",
    ),
    "dimensions": (
        joint_spec({"arm": "abc"}),
        r"actions of 7 dimensions, model 'fake' of 3",
    ),
    "kind": (
        joint_spec({"arm": "abcdef"}, ("gripper",)),
        r"part 'arm': kind is 'eef_delta', that of model 'fake' is 'joint_position'",
    ),
    "parts": (
        joint_spec({"left_arm": "ab", "right_arm": "cd", "arm": "efg"}),
        r"the list of parts is 'arm, gripper', .* is 'left_arm, right_arm, arm'",
    ),
    "unit": (
        SPEC.with_units([*["0.05 m"] * 3, *["rad"] * 3, "1"]),
        r"part 'arm': dimension 'x': unit is 'm', that of model 'fake' is '0.05 m'",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_another_convention_is_refused(data, what):
    spec, message = REFUSED[what]
    with pytest.raises(DataError, match=message):
        evaluate(FakePolicy(data, spec=spec), data)


def test_statistics_of_another_length_are_refused(data):
    short = {**STATISTICS, "action": {"q01": [0.0] * 6, "q99": [1.0] * 6}}
    with pytest.raises(DataError, match="its statistics of 6"):
        evaluate(FakePolicy(data, statistics=short), data)


def test_other_refusals(data, tmp_path):
    with pytest.raises(DataError, match=r"no images of camera 'top'; cameras: agentview, a_"):
        evaluate(FakePolicy(data), data, EvalConfig(cameras=("top",)))
    policy = FakePolicy(data)
    policy.needs = Needs(images=3)
    with pytest.raises(DataError, match=r"expects 3 image\(s\), .* gives 2"):
        evaluate(policy, data)
    mute = open_dataset(write_set(tmp_path / "mute.hdf5", instruction=""))
    with pytest.raises(DataError, match=r"episode 0, step 0 has no instruction; .*--instruction"):
        evaluate(FakePolicy(mute), mute)
    assert evaluate(FakePolicy(mute), mute, EvalConfig(instruction="lift it")).complete


def test_another_polarity_in_the_file_is_refused(tmp_path):
    convention = json.dumps({"gripper": "0 open, 255 closed"})
    path = write_set(tmp_path / "demo.hdf5", action_convention=convention)
    with pytest.raises(DataError, match=r"demo\.hdf5: .* gripper '0 open, 255 closed'; known"):
        open_dataset(path)


def change(path: Path, edit) -> Path:
    with h5py.File(path, "a") as file:
        edit(file["data/demo_0"])
    return path


def replace_actions(group):
    del group["actions"]
    group["actions"] = np.zeros((5, 6))


def replace_instructions(group):
    del group["instructions"]
    group["instructions"] = ["go"] * 4


DAMAGED = {
    "no actions": (lambda g: g.__delitem__("actions"), "/data/demo_0 has no 'actions'"),
    "dimensions": (
        replace_actions,
        r"/data/demo_0/actions has shape \(5, 6\), \[T, 7\] is expected",
    ),
    "instructions": (replace_instructions, r"demo_0/instructions has 4 entries for 5 actions"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_of_an_hdf5_file_is_named_by_file_and_field(tmp_path, what):
    edit, message = DAMAGED[what]
    data = open_dataset(change(write_set(tmp_path / "demo.hdf5"), edit))
    with pytest.raises(DataError, match=r"demo\.hdf5: .*" + message):
        data[0]


def test_a_damaged_image_in_an_hdf5_file_is_named(tmp_path):
    path = write_set(tmp_path / "demo.hdf5")
    with h5py.File(path) as file:
        chunk = file["data/demo_0/obs/agentview_image"].id.get_chunk_info(2)
    raw = bytearray(path.read_bytes())
    raw[chunk.byte_offset : chunk.byte_offset + 40] = bytes(40)
    path.write_bytes(raw)
    images = [s.observation.images for s in open_dataset(path)[0].steps]
    with pytest.raises(DataError, match=r"demo\.hdf5: /data/demo_0/obs/agentview_image cannot"):
        [p["agentview"] for p in images]


def test_half_an_hdf5_file_is_named(tmp_path):
    path = write_set(tmp_path / "demo.hdf5")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"demo\.hdf5 is not a readable robomimic file"):
        open_dataset(path)


def test_a_different_pace_is_noted(data):
    slow = eef_delta_spec(dt=0.2)
    assert "last 0.05 s, the model's 0.2 s" in evaluate(FakePolicy(data, spec=slow), data).notes[0]


def test_report_is_one_page_and_a_plot(data, tmp_path):
    result = evaluate(FakePolicy(data, 0.001), data)
    page = report.write_report(tmp_path / "out", result, result.statistics())
    text = page.read_text()
    assert "fake on demo: offline evaluation" in text and "data:image/png;base64," in text
    assert "<script" not in text and 'src="http' not in text and "$" not in text
    with Image.open(tmp_path / "out" / "actions.png") as plot:
        assert plot.size[0] > 1000
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["mean"]["timesteps"] == 8
    one = evaluate(FakePolicy(data), data, EvalConfig(max_steps=1))
    assert report.draw_actions(one)


# -- with the model that ships ----------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The small model, on one short episode made of noise."""
    folder = tmp_path_factory.mktemp("eval")
    path = write_set(folder / "demo.hdf5", lengths=(4,))
    status = eval.evaluate(
        dataset=path,
        model=str(ROOT / "models" / "stack-small"),
        device="cpu",
        save_stats=folder / "stats.json",
        report=folder / "report",
    )
    return status, folder


def test_shipped_model_is_measured(shipped):
    status, folder = shipped
    assert status == 0
    statistics = json.loads((folder / "stats.json").read_text())
    assert statistics["model"] == "stack-small" and statistics["action_space"] == "generated"
    assert len(statistics["error"]) == len(statistics["latency"]) == 4
    for name in ("timesteps", "latency", "fps", "error", "accuracy", "accuracy_clipped"):
        assert np.isfinite(statistics["mean"][name])
    assert statistics["eval_error"] == statistics["quant_error"] == []
    assert (folder / "report" / "report.html").exists()


def test_frames_are_printed_with_all_figures(data, capsys):
    evaluate(FakePolicy(data), data, EvalConfig(max_steps=2), report=eval.tell)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("1/2  predicted [") and second.startswith("2/2  ")
    for word in ("true [", "clipped (mean ", "raw (mean ", " ms ", " Hz"):
        assert word in first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "none"], "there is no dataset at none"),
        (["--dataset", ".", "--max-steps", "0"], "--max-steps is 0; give at least 1"),
        ([], "Missing option '--dataset'"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message):
    (tmp_path / "README").write_text("")
    run = "import sys; from vla_training.cli.eval import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", run, *arguments],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.startswith("vla eval: ") and len(done.stderr.splitlines()) == 1
