"""Tests of `vla study`: a grid at equal cost, resumed after a kill, its report."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import study_page
from fake_world import FakeWorld
from pages import fill_tables
from PIL import Image
from tiny_model import tiny_model

from vla_inference.episodes.hdf5 import write_columns, write_header
from vla_inference.errors import VlaError
from vla_sim_bridge.evaluation.confidence_intervals import wilson_interval
from vla_training.small_model.train import Trainer
from vla_training.study import worker
from vla_training.study.config import Cell, StudyConfig
from vla_training.study.report import compare, gain_lines, summarise_cells
from vla_training.study.study import Study, study

TINY = tiny_model()


def write_noise(path: Path, size: int, episodes: int = 5, length: int = 6) -> Path:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        write_header(file, "noise", episodes, {})
        for i in range(episodes):
            images = rng.integers(0, 256, (length, size, size, 3), np.uint8)
            data = {
                "actions": rng.uniform(-1, 1, (length, 7)),
                "states": np.zeros((length, 8)),
                "rewards": np.zeros(length),
                "dones": np.zeros(length),
                "instructions": ["lift the cube"] * length,
                "obs": {"agentview_image": images},
            }
            write_columns(file["data"].create_group(f"demo_{i}"), data)
    return path


@pytest.fixture
def toy(tmp_path, monkeypatch) -> StudyConfig:
    """Four cells of a tiny model in a world without a simulator, all in this process."""
    made = write_noise(tmp_path / "noise.hdf5", 32)
    monkeypatch.setattr(worker, "SMALL", TINY)
    monkeypatch.setattr(worker, "Trainer", partial(Trainer, model_json=TINY))
    monkeypatch.setattr(worker, "make_world", lambda task, **size: FakeWorld())
    worker.read_frames.cache_clear()
    worker._world.cache_clear()
    worker._policy = None
    yield StudyConfig(
        output=str(tmp_path / "study"),
        data=(str(made),),
        task="Lift_D0",
        episodes=(2, 4),
        passes=(8,),
        seeds=2,
        batch_size=4,
        eval_episodes=4,
        devices=0,
        parallel=0,
    )
    worker.read_frames.cache_clear()
    worker._world.cache_clear()


def quiet(_: str) -> None:
    pass


def rows(found: dict) -> list:
    return json.loads(json.dumps(found["rows"]))


def test_killed_and_taken_up_it_finds_what_an_unbroken_one_does(toy, tmp_path, monkeypatch):
    toy = replace(toy, seeds=1)
    whole = study(replace(toy, output=str(tmp_path / "whole")), quiet)
    count = itertools.count()
    play = worker.play

    def killed(*args):
        if next(count) == 6:  # in the midst of the second cell's episodes
            raise KeyboardInterrupt
        return play(*args)

    monkeypatch.setattr(worker, "play", killed)
    with pytest.raises(KeyboardInterrupt):
        study(toy, quiet)
    done = sorted(Path(toy.output).glob("cells/*/result.json"))
    trained = sorted(Path(toy.output).glob("cells/*/trained.json"))
    assert (len(done), len(trained)) == (1, 2)
    assert "Incomplete: 1 of 2 cells" in (Path(toy.output) / "report.md").read_text()
    before = {p: p.stat().st_mtime_ns for p in (*done, *trained)}
    monkeypatch.setattr(worker, "play", play)
    found = study(toy, quiet)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert found["complete"] and rows(found) == rows(whole)


def test_cells_cost_the_same_and_intervals_are_those_of_all_episodes(toy):
    found = study(toy, quiet)
    output = Path(toy.output)
    cells = [json.loads(p.read_text()) for p in sorted(output.glob("cells/*/result.json"))]
    # 8 passes of 6 frames in batches of 4: 12 steps each, be it of 2 episodes or of 4.
    assert [c["episodes"] for c in cells] == [4] * 4
    assert [c["training"]["steps"] for c in cells] == [12] * 4
    assert [r["epochs"] for r in found["rows"]] == [4.0, 2.0]
    for row in found["rows"]:
        assert (row["seeds"], row["tried"]) == (2, 8)
        assert row["successes"] == sum(round(4 * v) for v in row["seed_rates"])
        assert row["success_rate_wilson95"] == list(wilson_interval(row["successes"], 8))
        assert row["seed_numbers"] == [0, 1]
    few, many = (
        [c["success_rate"] for c in cells if c["training"]["epochs"] == e] for e in (4, 2)
    )
    (gain,) = found["comparisons"]
    assert gain["seed_gains"] == [m - f for f, m in zip(few, many, strict=True)]
    assert found["rows"][0]["held_out_l1"] > 0
    text = (output / "report.md").read_text()
    assert "| 2 | 4.0 | 48 | " in text and "| 4 | 2.0 | 48 | " in text
    assert Image.open(output / "success.png").size == (1440, 840)
    assert not list(output.glob("cells/*/state"))


def test_image_sizes_are_compared_on_the_same_episodes(toy, tmp_path, monkeypatch):
    """Each cell sees its size, in training and in closed loop; the report compares them."""
    made = {s: write_noise(tmp_path / f"noise-{s}.hdf5", s, episodes=4) for s in (32, 48)}
    asked: list[int] = []

    def generate(config, output, *_) -> Path:
        asked.append(config.camera_width)
        assert config.camera_height == config.camera_width and output.name[:5] == "data-"
        return made[config.camera_width]

    seen: list[int] = []
    world = worker.make_world
    monkeypatch.setattr("vla_sim_bridge.generation.generate.generate", generate)
    monkeypatch.setattr(
        worker, "make_world", lambda task, **size: seen.append(size["width"]) or world(task)
    )
    sized = replace(toy, data=(), image_sizes=(32, 48), episodes=(3,), passes=(6,))
    found = study(sized, quiet)
    assert asked == [32, 48] and sorted(set(seen)) == [32, 48] and found["complete"]
    assert [(r["image_size"], r["seeds"], r["tried"]) for r in found["rows"]] == [
        (32, 2, 8),
        (48, 2, 8),
    ]
    steps = {json.loads(p.read_text())["steps"] for p in Path(toy.output).rglob("trained.json")}
    assert len(steps) == 1 and found["rows"][1]["samples_per_s"] > 0
    for cell in Path(toy.output).glob("cells/*"):
        shape = json.loads((cell / "checkpoint" / "config.json").read_text())
        assert cell.name.endswith(f"pixels-{shape['vision_towers'][0]['image_size']}")
    (gain,) = found["comparisons"]
    assert (gain["of"], gain["against"]) == (48, 32)
    text = (Path(toy.output) / "report.md").read_text()
    assert "# Image sizes" in text and "| pixels | samples/s |" in text
    assert Image.open(Path(toy.output) / "success.png").size == (1440, 840)


def test_more_episodes_are_compared_by_seed_whatever_order_they_ended_in():
    def result(rate: float) -> dict:
        training = {"held_out_l1": None, "epochs": 1.0, "frames_seen": 10}
        return {
            "successes": round(100 * rate),
            "episodes": 100,
            "success_rate": rate,
            "mean_frames_all": 9.0,
            "training": training,
        }

    rates = {
        Cell(9, 18, 2): 0.62,
        Cell(9, 18, 0): 0.63,
        Cell(3, 18, 1): 0.32,
        Cell(9, 18, 1): 0.54,
        Cell(3, 18, 0): 0.50,
        Cell(3, 18, 2): 0.59,
        Cell(3, 18, 3): 0.99,
    }
    found = summarise_cells({c: result(r) for c, r in rates.items()})
    assert [r["seed_rates"] for r in found] == [[0.50, 0.32, 0.59, 0.99], [0.63, 0.54, 0.62]]
    (gain,) = compare(found)  # of seed 3 there is no pair yet
    assert gain["seed_gains"] == pytest.approx([0.13, 0.22, 0.03])
    # 12.67 on average, deviation 9.50, 4.303 deviations of three by Student's table
    assert gain["gain_t95"] == pytest.approx([-0.1094, 0.3628], abs=2e-4)
    assert gain_lines([gain])[-1] == "| 9 | 3 | +13, +22, +3 | +12.7 | -10.9 to +36.3 |"
    assert not compare(found[:1]) and not gain_lines([])


def test_smaller_sets_lie_in_larger_ones_and_none_in_what_is_held_out():
    for seed in range(3):
        few, held = worker.choose(100, 10, 80, seed)
        many, again = worker.choose(100, 80, 80, seed)
        assert set(few) <= set(many) and not set(many) & set(held)
        assert np.array_equal(held, again) and len(held) == 20
    others = worker.choose(100, 10, 80, 0)[0], worker.choose(100, 10, 80, 1)[0]
    assert set(others[0]) != set(others[1])


def test_minutes_become_steps_by_the_speed_that_was_measured(toy, monkeypatch):
    config = replace(toy, minutes=10.0)
    begun = Study(config, quiet)
    found = {"episodes": 5, "frames": 30, "samples_per_s": 8.0}
    monkeypatch.setattr(worker, "survey", lambda _: found)
    trainers, _ = begun._executors()
    begun._decide(trainers)
    ((passes, steps),) = begun.plan["steps"].items()
    # 4 cells one after the other, 8 samples/s, batches of 4: some 0.85 * 150 s * 2 steps/s each.
    assert 200 <= steps <= 255 and int(passes) == round(steps / 1.5)
    # It stands from then on: a study that goes on does not measure again.
    monkeypatch.setattr(worker, "survey", None)
    again = Study(config, quiet)
    again._decide(trainers)
    assert again.plan["steps"] == {passes: steps}


def test_a_study_measures_its_own_speed(toy):
    found = worker.survey(replace(toy, minutes=1.0))
    assert found["episodes"] == 5 and found["frames"] == 30 and found["samples_per_s"] > 0


def test_mistakes_are_named_before_anything_is_trained(toy, tmp_path):
    for changes, message in (
        ({"episodes": (2, 2)}, "episodes is 2, 2"),
        ({"passes": ()}, "passes is empty"),
        ({"seeds": 0}, "--seeds is 0"),
        ({"minutes": -1.0}, "--minutes is -1"),
        ({"minutes": 1.0, "passes": (8, 9)}, "both minutes and several passes"),
        ({"task": "Stack_D99"}, "Stack_D99"),
        ({"data": (), "image_sizes": (160, 161)}, "image_sizes is 160, 161"),
        ({"data": (), "image_sizes": (160, 224)}, "several image sizes and several numbers"),
        ({"image_sizes": (160, 224)}, "both image sizes and a dataset"),
        ({"devices": 99}, "99 GPUs were requested"),
    ):
        with pytest.raises(VlaError, match=message):
            study(replace(toy, **changes), quiet)
    assert not Path(toy.output).exists()
    with pytest.raises(VlaError, match="contains 5 episodes, the study asks for 9"):
        study(replace(toy, episodes=(9,)), quiet)
    with pytest.raises(VlaError, match=r"begun with episodes \[9\], now it is \[2, 4\]"):
        study(toy, quiet)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(VlaError, match="not empty, and no study"):
        study(replace(toy, output=str(tmp_path / "mine")), quiet)


def test_a_cell_killed_between_its_last_step_and_its_checkpoint_is_finished(toy, tmp_path):
    cell, where = Cell(2, 8, 0), tmp_path / "cell"
    told = worker.train_cell(toy, cell, 12, str(where))
    trainer = worker.make_trainer(toy, cell, 12)
    trainer.run()
    trainer.save(where / "state")
    (where / "trained.json").unlink()
    again = worker.train_cell(toy, cell, 12, str(where))
    assert again["loss"] == told["loss"] and (where / "trained.json").is_file()


def test_cells_are_done_seed_by_seed():
    config = StudyConfig(output="x", episodes=(1, 2), seeds=2)
    assert config.cells([8]) == [Cell(1, 8, 0), Cell(2, 8, 0), Cell(1, 8, 1), Cell(2, 8, 1)]


@pytest.mark.slow
def test_real_processes_and_a_real_world_after_kill_9(tmp_path):
    """The shipping model's shape, robosuite, and the command line."""
    write_noise(tmp_path / "noise.hdf5", 224, episodes=2)
    words = [
        sys.executable,
        "-m",
        "vla_training.cli.study",
        "--data",
        tmp_path / "noise.hdf5",
        "--output",
        tmp_path / "study",
        "--task",
        "Lift_D0",
        "--episodes",
        "1,2",
        "--passes",
        "2",
        "--seeds",
        "1",
        "--batch-size",
        "4",
        "--eval-episodes",
        "1",
        "--horizon",
        "8",
        "--devices",
        "0",
        "--parallel",
        "1",
    ]
    results = tmp_path / "study" / "cells"
    process = subprocess.Popen(list(map(str, words)), env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 200
    while not (done := list(results.glob("*/result.json"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = [p.stat().st_mtime_ns for p in done]
    subprocess.run(list(map(str, words)), check=True, timeout=250)
    assert [p.stat().st_mtime_ns for p in done] == before
    found = json.loads((tmp_path / "study" / "results.json").read_text())
    assert found["complete"] and [r["tried"] for r in found["rows"]] == [1, 1]


def test_the_page_in_the_docs_says_what_the_figures_say():
    page = study_page.PAGE.read_text(encoding="utf-8")
    found = json.loads(study_page.FIGURES.read_text())
    assert found["complete"] and page == fill_tables(page, study_page.tables(found["rows"]))
    assert Image.open(study_page.IMAGE).size == (1440, 840)
