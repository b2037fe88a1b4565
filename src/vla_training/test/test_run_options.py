"""Tests of the options that a run leaves beside its results, and of its repetition by them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from demonstrations import LENGTHS, write_set

from vla_inference.cli.main import main

FORMATS = {"rlds": "out", "lerobot": "out", "bag": "out", "hdf5": "out.hdf5"}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_conversion_is_repeated_by_the_options_it_left(tmp_path, capsys, kind):
    source = write_set(tmp_path / "demo.hdf5")
    output = tmp_path / FORMATS[kind]
    words = ["--to", kind, "--dataset", source, "--max-episodes", 2, "--workers", 1]
    assert main(["convert", "--output", str(output), *map(str, words)]) == 0
    kept = tmp_path / "out.options.yaml" if kind == "hdf5" else output / "options.yaml"
    said = yaml.safe_load(kept.read_text())
    assert (said["to"], said["max_episodes"], said["dataset"]) == (kind, 2, [str(source)])
    capsys.readouterr()
    for more, episodes in ([], 2), (["--max-episodes", "3"], len(LENGTHS)):
        assert main(["convert", "--config", str(kept), "--overwrite", *more]) == 0
        assert "episodes" in capsys.readouterr().out
        assert main(["data", "info", str(output), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["episodes"] == episodes


def test_an_evaluation_leaves_its_options(tmp_path):
    source = write_set(tmp_path / "demo.hdf5")
    stats = tmp_path / "stats.json"
    words = ["--dataset", source, "--max-steps", 2, "--save-stats", stats, "--camera", "agentview"]
    assert main(["eval", *map(str, words)]) == 0
    kept = Path(tmp_path, "stats.options.yaml")
    assert yaml.safe_load(kept.read_text())["max_steps"] == 2
    stats.unlink()
    assert main(["eval", "--config", str(kept)]) == 0
    assert stats.exists()
