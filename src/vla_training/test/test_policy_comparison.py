"""Every family from an untrained checkpoint to the closed loop, by the benchmark that compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from finetune_runs import write_noise

from vla_inference.policies.registry import load_policy

BENCH = Path(__file__).resolve().parents[3] / "bench"
SHARED = {"vision_layers": 1, "vision_width": 64, "text_layers": 1, "text_width": 128}


@pytest.fixture
def policies(monkeypatch):
    for folder in ("closed_loop", "training"):
        monkeypatch.syspath_prepend(str(BENCH / folder))
    import from_scratch as scratch
    import policies

    small = {
        "tokens": scratch.Recipe("openvla", {"head": "tokens", "openvla_layers": 1}, 0, 2),
        "l1": scratch.Recipe("openvla", {"head": "l1", "openvla_layers": 1}, 3, 2),
        "flow": scratch.Recipe("smolvla", {"image_size": 64, **SHARED}, 3, 2),
        "act": scratch.Recipe(
            "act", {"backbone": "resnet10", "width": 32, "mlp": 32, "vae_layers": 0}, 3, 2
        ),
        "octo": scratch.Recipe(
            "octo", {"octo_image": 64, "octo_width": 64, "octo_layers": 1}, 3, 2
        ),
    }
    monkeypatch.setattr(scratch, "RECIPES", small)
    return policies


def test_every_family_is_trained_played_and_reported_and_goes_on_where_it_was(
    policies, tmp_path, monkeypatch, capsys
):
    for task in policies.TASKS:
        (tmp_path / "data" / f"{task}_1").mkdir(parents=True)
        write_noise(tmp_path / "data" / f"{task}_1" / "demo.hdf5")
    given = ["--steps", "2", "--shares", "1", "--seeds", "1", "--episodes", "1", "--horizon", "3"]
    given += ["--delays", "0.1", "--late-episodes", "1", "--workers", "1", "--device", "cpu"]
    given += ["--page", str(tmp_path / "policies.md"), "--output", str(tmp_path / "policies.json")]
    for stages, parts in (("train", 2), ("evaluate,page", 1)):
        for number in range(parts):
            more = ["--stages", stages, "--part", f"{number}/{parts}"]
            monkeypatch.setattr(sys, "argv", ["policies.py", str(tmp_path), *given, *more])
            assert policies.main() == 0
    report = json.loads((tmp_path / "policies.json").read_text())
    assert [cell["recipe"] for cell in report["cells"]] == list(policies.NAMES)
    for cell in report["cells"]:
        assert cell["updates"] == 2 and cell["samples"] == 4 and cell["answer_ms"]["cpu"] > 0
        assert cell["Stack_D2"]["episodes"] == cell["Stack_L"]["episodes"] == 1
        ways = {late["way"] for late in cell["late"]}
        assert ways == ({"blend", "rtc"} if cell["recipe"] == "flow" else {"blend"})
    page = (tmp_path / "policies.md").read_text()
    for recipe, name in policies.NAMES.items():
        assert page.count(name) == (3 if recipe == "flow" else 2)
    assert "0 % (0 to 79)" in page
    capsys.readouterr()
    assert policies.main() == 0  # nothing is trained or played again
    told = capsys.readouterr().err
    assert ": trained in" not in told and "of 1 in" not in told


def test_the_recipe_of_a_model_that_ships_writes_it_with_its_card(policies, tmp_path, monkeypatch):
    """As if two hundred episodes had been played."""
    import shipped

    (tmp_path / "data").mkdir()
    write_noise(tmp_path / "data" / "demo.hdf5")
    given = ["act", str(tmp_path), "--steps", "2", "--workers", "0"]
    monkeypatch.setattr(
        sys, "argv", ["shipped.py", *given, "--stages", "train", "--demonstrations", "17"]
    )
    assert shipped.main() == 0
    found = {"successes": 199, "episodes": 200, "success_rate": 0.995, "horizon": 200}
    found |= {"success_rate_wilson95": [0.972, 0.999], "mean_frames_all": 70.0}
    for rate, status in ((0.995, 0), (0.9, 1)):
        told = {**found, "success_rate": rate, "provenance": {"command": "python it"}}
        (tmp_path / "act" / "evaluation.json").write_text(json.dumps(told))
        monkeypatch.setattr(sys, "argv", ["shipped.py", *given, "--stages", "card"])
        assert shipped.main() == status
    model = tmp_path / "stack-act"
    card = (model / "README.md").read_text()
    assert "199 of 200 | 97.2 to 99.9 %" in card
    assert "shipped.py act WORK --demonstrations 17 " in card and "\n17 demonstrations" in card
    assert load_policy(model, device="cpu").needs.state == 0
    assert {p.name for p in (model / "evaluation").iterdir()} == {"Stack_D2_train_seed7.json"}
