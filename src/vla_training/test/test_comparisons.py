"""Comparisons in bench/ that go on: what is stopped is not done, and options do not mix."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from fake_world import FakeWorld
from finetune_runs import write_noise

from vla_inference.policies.base import Needs
from vla_inference.policies.openvla.reasoning import NoAction
from vla_sim_bridge.evaluation.episode import EpisodeResult
from vla_training.finetune.finetune import Finetuner
from vla_training.loop import training_state

BENCH = Path(__file__).resolve().parents[3] / "bench"


@pytest.fixture
def script(monkeypatch):
    for folder in ("closed_loop", "training"):
        monkeypatch.syspath_prepend(str(BENCH / folder))
    return importlib.import_module


@pytest.fixture
def call(monkeypatch):
    def run(module, *words) -> None:
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, words)])
        module.main()

    return run


@pytest.mark.parametrize("steps", [3, 0], ids=["the run", "the trial of its speed"])
def test_a_stopped_training_is_not_taken_for_a_finished_one(script, tmp_path, monkeypatch, steps):
    scratch, look = script("from_scratch"), Finetuner._look
    monkeypatch.setattr(scratch, "TRIAL", 1)
    sizes = {"backbone": "resnet10", "width": 32, "mlp": 32, "vae_layers": 0}
    recipe, data = scratch.Recipe("act", sizes, 3, 2), write_noise(tmp_path / "noise.hdf5")
    run = tmp_path / "model" / "run"

    def train() -> Path:
        how = {"steps": steps, "minutes": 1e-9, "workers": 0, "quiet": True, "log_steps": 1}
        return scratch.train(recipe, [data], tmp_path / "model", **how)

    def stopped(self, rate, norm) -> None:
        look(self, rate, norm)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(SystemExit, match="stopped"):
        patched.setattr(Finetuner, "_look", stopped)
        train()
    assert (run / "checkpoint").is_dir() == bool(steps)  # of the first update, and not done
    assert train() == run / "checkpoint"
    assert [row["step"] for row in scratch.metrics(run)] == list(range(1, (steps or 1) + 1))
    monkeypatch.setattr(scratch.finetune, "train", None)
    assert train() == run / "checkpoint"  # nothing is done twice


def test_a_stopped_vla_train_is_not_taken_for_a_finished_one(script, tmp_path, monkeypatch):
    """It ends with status 0 where it is stopped."""
    improve, common = script("improve"), script("common")

    def train_up_to(step: int) -> None:
        def run(*words) -> None:
            (tmp_path / "state" / f"step-{step}").mkdir(parents=True)
            (tmp_path / "state" / f"step-{step}" / training_state.ABOUT).write_text("{}")

        monkeypatch.setattr(improve, "run", run)
        common.finish(tmp_path, lambda: improve.train_small(tmp_path, [], 20))

    with pytest.raises(SystemExit, match="stopped"):
        train_up_to(9)
    assert not common.is_done(tmp_path)
    train_up_to(20)
    assert common.is_done(tmp_path)


@pytest.mark.parametrize(
    ("name", "folder", "given", "other"),
    [
        ("policies", "", ["--stages", "evaluate", "--seeds", 1, "--shares", "1,0.5"], "--minutes"),
        ("online", "--output", ["--eval-episodes", 7], "--steps"),
        ("reasoning", "--work", ["--steps", 9, "--seeds", 1], "--demonstrations"),
        ("improve", "--work", ["--steps", 9, "--seeds", 1, "--start", "there"], "--test-episodes"),
        ("shipped", "act", ["--stages", "train", "--episodes", 3], "--demonstrations"),
    ],
)
def test_the_options_of_the_first_call_hold(
    script, call, tmp_path, monkeypatch, capsys, name, folder, given, other
):
    module, seen = script(name), []

    def see(args, *_) -> Path:
        seen.append(args)
        raise StopIteration

    first = {"policies": "mine", "online": "run_arm", "shipped": "evaluate"}
    monkeypatch.setattr(module, first.get(name, "demonstrations"), see)
    work = [*filter(None, [folder]), tmp_path]
    stages = ["--stages", "evaluate"] if name in ("policies", "shipped") else []
    for words in ([*given, *stages], stages, given[-2:] + stages):
        with pytest.raises(StopIteration):
            call(module, *work, *words)
    kept = json.loads((tmp_path / "options.json").read_text())
    assert seen[0].options == seen[1].options == seen[2].options == kept
    for args in seen:
        found = {**{key: getattr(args, key) for key in kept}, "model": kept.get("model")}
        assert json.loads(json.dumps(found)).items() >= kept.items()
    with pytest.raises(SystemExit):
        call(module, *work, *stages, other, 5)
    option = other.removeprefix("--").replace("-", "_")
    told = capsys.readouterr().err
    assert f"was begun with {option} {kept[option]!r}, now it is 5" in told
    assert len(seen) == 3 and json.loads((tmp_path / "options.json").read_text()) == kept


def test_what_cannot_be_asked_settles_nothing(script, call, tmp_path, capsys):
    for name, words in (
        ("policies", [tmp_path / "a", "--models", "none"]),
        ("online", ["--output", tmp_path / "a", "--task", "none"]),
        ("reasoning", ["--work", tmp_path / "a", "--task", "none"]),
        ("shipped", ["act", tmp_path / "a", "--stages", "none"]),
    ):
        with pytest.raises(SystemExit):
            call(script(name), *words)
        assert "none" in capsys.readouterr().err and not (tmp_path / "a").exists()
    (tmp_path / "options.json").write_text('{"task": "St')
    with pytest.raises(SystemExit):
        call(script("reasoning"), "--work", tmp_path)
    assert "options.json is damaged" in capsys.readouterr().err


def test_options_are_spelled_as_they_are_typed(script):
    options = {"model": None, "fast": False, "augment": True, "eval_seed": 7, "shares": [1.0, 0.5]}
    assert script("common").spelled(options) == "--augment --eval-seed 7 --shares 1.0,0.5"


def test_a_model_that_comes_to_no_action_has_failed_and_not_obeyed(script, monkeypatch):
    reasoning = script("reasoning")

    class Silent:
        needs = Needs()

        def act(self, _):
            raise NoAction("the model wrote 9 tokens and came to no action")

        def forget(self) -> None:
            pass

    monkeypatch.setattr(reasoning, "_state", (FakeWorld(), Silent()))
    silent = reasoning.play(3)
    assert isinstance(silent, EpisodeResult) and (silent.index, silent.success) == (3, False)
    good = EpisodeResult("fake", 0, 0, "", 3, 6, "success", True)
    found = reasoning.counted([good, good, silent, silent])
    assert found == {"episodes": 4, "successes": 2, "wrong_order": 0, "no_action": 2}
    runs = [{"arm": arm, **dict.fromkeys(reasoning.LANGUAGES, found)} for arm in reasoning.ARMS]
    told = reasoning.pooled(runs)["reasons, free"]
    assert (told["success"][0], told["obeyed"][0], told["no_action"]) == (0.5, 0.5, 2)
