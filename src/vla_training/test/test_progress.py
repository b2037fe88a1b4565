"""Tests of progress reports between a command and the process that started it."""

from __future__ import annotations

import json

import pytest

from vla_inference.system import progress
from vla_training.jobs.record import read_progress


@pytest.fixture
def progress_file(tmp_path, monkeypatch):
    path = tmp_path / "progress.json"
    monkeypatch.setenv(progress.VARIABLE, str(path))
    monkeypatch.setattr(progress, "_first", None)
    monkeypatch.setattr(progress, "_written", float("-inf"))
    return path


def test_progress_is_written_where_it_was_asked_for(progress_file, monkeypatch):
    clock = [10.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    progress.report(100, 200, "resumed")
    assert read_progress(progress_file)["rate"] == 0
    clock[0] += 0.1
    progress.report(105, 200)
    assert read_progress(progress_file)["step"] == 100  # too soon for another
    clock[0] += 1.9
    progress.report(150, 200)
    values = read_progress(progress_file)
    assert (values["rate"], values["seconds_left"], values["fraction"]) == (25, 2, 0.75)
    clock[0] += 0.01
    progress.report(200, 200, seconds_left=float("inf"))
    values = read_progress(progress_file)
    assert (values["step"], values["fraction"], values["seconds_left"]) == (200, 1, -1)
    assert [p.name for p in progress_file.parent.iterdir()] == ["progress.json"]


def test_progress_does_no_harm(tmp_path, monkeypatch):
    monkeypatch.delenv(progress.VARIABLE, raising=False)
    progress.report(1, 2)
    monkeypatch.setenv(progress.VARIABLE, str(tmp_path / "no" / "folder"))
    progress.report(2, 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"step": "x"}', '{"step": Infinity}', '{"step": 1', "\xff\0"]
)
def test_progress_of_no_use_is_passed_over(tmp_path, text):
    (tmp_path / "p").write_text(text)
    assert read_progress(tmp_path / "p") is None
    (tmp_path / "p").write_text(json.dumps({"step": -3, "fraction": 7, "rate": None}))
    values = read_progress(tmp_path / "p")
    assert (values["step"], values["fraction"], values["rate"]) == (0, 1.0, 0.0)
