"""Tests of the study of inputs: every variant trained and tested, resumed after a kill."""

from __future__ import annotations

import itertools
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fake_world import FakeWorld
from finetune_runs import write_noise
from pages import fill_tables
from tiny_model import tiny_model

from vla_inference.errors import VlaError
from vla_inference.types import Observation
from vla_training.small_model import config as small_config
from vla_training.study.inputs import worker
from vla_training.study.inputs.config import VARIANTS, Condition, InputsConfig
from vla_training.study.inputs.report import PAGE, rate, tables
from vla_training.study.inputs.study import study

SIDE = 32


class Seeing(FakeWorld):
    """Has the cameras that it is asked for, and a state."""

    gripper = 1.0

    def __init__(self, cameras: tuple[str, ...]):
        super().__init__()
        self.cameras = cameras

    def observation(self) -> Observation:
        seen = super().observation()
        images = dict.fromkeys(self.cameras, seen.images["agentview"])
        return Observation(images, seen.instruction, np.zeros(8, np.float32))


@pytest.fixture
def toy(tmp_path, monkeypatch) -> InputsConfig:
    made = write_noise(tmp_path / "noise.hdf5", side=(SIDE, SIDE))
    monkeypatch.setattr(small_config, "SMALL", tiny_model())
    monkeypatch.setattr(worker, "make_world", lambda task, cameras: Seeing(cameras))
    options = partial(worker.TrainConfig, image_size=SIDE, layers=1, wordings=0)
    monkeypatch.setattr(worker, "TrainConfig", options)
    yield InputsConfig(
        output=str(tmp_path / "study"),
        data=(str(made),),
        tasks=("Lift_D0", "Stack_H"),
        minutes=None,
        steps=2,
        seeds=1,
        batch_size=4,
        eval_episodes=2,
        delays=(0, 2),
        horizon=6,
        parallel=0,
    )
    worker.read_frames.cache_clear()
    worker._world.cache_clear()
    worker._policy = None


def quiet(_: str) -> None:
    pass


def test_killed_and_taken_up_nothing_is_done_twice(toy, monkeypatch):
    count, play = itertools.count(), worker.play

    def killed(*args):
        if next(count) == 8:  # in the second model's episodes
            raise KeyboardInterrupt
        return play(*args)

    monkeypatch.setattr(worker, "play", killed)
    with pytest.raises(KeyboardInterrupt):
        study(toy, quiet)
    monkeypatch.setattr(worker, "play", play)
    output = Path(toy.output)
    trained = {p: p.stat().st_mtime_ns for p in output.glob("models/*/trained.json")}
    assert trained
    lines = next(output.glob("models/one-frame_*")) / "episodes.jsonl"
    if lines.exists():
        lines.write_text(lines.read_text() + '{"task": "Li')  # a line that a kill cut off
    models = study(toy, quiet)
    assert {p: p.stat().st_mtime_ns for p in trained} == trained
    assert [m["variant"]["name"] for m in models] == [v.name for v in VARIANTS]
    assert {m["samples"] for m in models} == {8}
    for model in models:
        played = [(e["task"], e["delay"], e["index"]) for e in model["played"]]
        wanted = [("Lift_D0", 0), ("Lift_D0", 2), ("Stack_H", 0)]
        assert sorted(played) == [(*w, i) for w in wanted for i in range(2)]
    shapes = {
        v.name: json.loads(
            (
                output / f"models/{v.name.replace(' ', '-')}_seed-0" / "checkpoint" / "config.json"
            ).read_text()
        )["action_head"]
        for v in VARIANTS
    }
    images = {name: head["num_images"] for name, head in shapes.items()}
    assert images == {"one frame": 1, "2 frames": 2, "state": 1, "wrist camera": 2, "all": 4}
    assert [n for n, head in shapes.items() if head.get("proprio_dim")] == ["state", "all"]
    with pytest.raises(VlaError, match="begun with batch_size 4, now it is 8"):
        study(InputsConfig(**{**vars(toy), "batch_size": 8}), quiet)


def model(name: str, seed: int, good: int, task: str = "Stack_H") -> dict:
    played = [
        {"task": task, "delay": 0, "index": i, "outcome": "success" if i < good else "timeout"}
        for i in range(10)
    ]
    about = {"samples": 1000, "seconds": 60.0, "held_out_l1": 0.1, "parameters": 6_000_000}
    return {"variant": {"name": name}, "seed": seed, "played": played, **about}


def test_tables_have_intervals_and_pair_seeds():
    models = [model("one frame", s, g) for s, g in enumerate((4, 5, 6))]
    models += [model("2 frames", s, g) for s, g in enumerate((6, 7, 8))]
    assert rate(models[:3], Condition("Stack_H")) == (15, 30)
    found = tables(models)
    assert found["success"][2] == "| one frame | 15 of 30 = 50.0 % (33.2 to 66.8) |"
    assert found["gains"][2:] == ["| 2 frames | +20.0 (+20.0 to +20.0; +20, +20, +20) |"]
    page = fill_tables(PAGE, found)
    assert "| 2 frames | 21 of 30 = 70.0 %" in page


def test_what_cannot_be_asked_is_refused(toy):
    for changed, words in (
        ({"minutes": 1.0}, "give one of them"),
        ({"tasks": ("Stack_Q",)}, "Stack_Q"),
        ({"seeds": 0}, "correct the numbers"),
    ):
        with pytest.raises(VlaError, match=words):
            study(InputsConfig(**{**vars(toy), **changed}), quiet)
