"""Tests of the rounds of `vla improve`: killed at any moment they go on, nothing gets worse."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from domains import domain
from finetune_runs import ACTED, settings, write_corrected, write_noise
from graphs import inference_graphs

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.errors import VlaError
from vla_inference.system import files
from vla_inference.system.files import Staged
from vla_sim_bridge.evaluation.episode import EpisodeResult
from vla_training.conversion.convert import convert
from vla_training.improve import rounds, versions
from vla_training.improve.config import ImproveConfig
from vla_training.improve.own_recipe import gpus
from vla_training.improve.rounds import Improvement
from vla_training.improve.versions import Version, Versions
from vla_training.improve.work import SimulationWork
from vla_training.loader.frame_index import DatasetSource
from vla_training.loader.sample_weights import SampleWeights
from vla_training.ros.load_model import load_model
from vla_training.small_model.config import TrainConfig
from vla_training.small_model.train import train

JUDGED = 8
GAINS = {1: 2, 2: -3, 3: 1, 4: 0}  # successes that each round's training adds


class FakeWork:
    """Work on text files: a model is the number of episodes that it succeeds in."""

    def __init__(self, folder: Path):
        self.folder, self.loaded = folder, folder / "loaded.txt"

    def collect(self, number: int, version: Version, output: Path) -> dict:
        if not output.is_dir():
            with Staged(output, sync=False) as staged:
                staged.mkdir()
                (staged / "data").write_text(f"{number} by {version.number}")
        return {"by": (output / "data").read_text()}

    def train(self, number: int, version: Version, episodes: Sequence[Path], output: Path) -> dict:
        if not output.is_dir():
            with Staged(output, sync=False) as staged:
                staged.mkdir()
                good = int((version.checkpoint / "good").read_text()) + GAINS[number]
                (staged / "good").write_text(str(good))
        return {"on": [(path / "data").read_text() for path in episodes]}

    def play(
        self, checkpoint: Path, indices: Sequence[int], note: Callable[[EpisodeResult], None]
    ) -> None:
        good = int((checkpoint / "good").read_text())
        for i in sorted(indices, key=lambda i: -i):
            outcome = "success" if i < good else "timeout"
            note(EpisodeResult("Stack_D0", 5, i, "stack", 70, 200, outcome, i < good))

    def load(self, version: Version) -> None:
        with self.loaded.open("a") as file:
            file.write(f"{version.successes}\n")


def begin(folder: Path, **identity) -> tuple[Improvement, Path]:
    start = folder.parent / "start"
    start.mkdir(exist_ok=True)
    (start / "good").write_text("3")
    return Improvement(folder, FakeWork(folder), identity, JUDGED), start


def tree(folder: Path) -> dict[str, str]:
    """What is there, but for the order in which episodes were noted and what was loaded."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ("loaded.txt", ".lock", versions.PLAYED):
            found[str(path.relative_to(folder))] = path.read_text()
    return {**found, "current": os.readlink(folder / "current")}


def test_the_better_version_is_kept_and_the_next_round_begins_from_it(tmp_path):
    improvement, start = begin(tmp_path / "run")
    current = improvement.run(start, 4)
    found = list(improvement.versions)
    assert [(v.successes, v.kept) for v in found] == [
        (3, True),
        (5, True),
        (2, False),
        (6, True),
        (6, False),
    ]
    assert current.number == 3 and os.readlink(tmp_path / "run" / "current") == "versions/0003"
    assert [v.figures["from"] for v in found] == [None, 0, 1, 1, 3]
    compared = found[2].figures["compared"]
    assert (compared["better"], compared["worse"]) == (0, 3)
    assert found[3].figures["trained"]["on"] == ["1 by 0", "2 by 1", "3 by 1"]
    # A node was told of better ones alone.
    assert (tmp_path / "run" / "loaded.txt").read_text().split() == ["5", "6", "6"]


def test_further_rounds_go_on_and_other_options_are_refused(tmp_path):
    improvement, start = begin(tmp_path / "run", task="Stack_D0")
    improvement.run(start, 1)
    before = tree(tmp_path / "run")
    assert begin(tmp_path / "run", task="Stack_D0")[0].run(start, 1).number == 1
    assert tree(tmp_path / "run") == before
    assert begin(tmp_path / "run", task="Stack_D0")[0].run(start, 3).number == 3
    with pytest.raises(VlaError, match="begun with task 'Stack_D0', not 'Stack_D1'"):
        begin(tmp_path / "run", task="Stack_D1")[0].run(start, 3)


def test_killed_at_any_moment_it_goes_on_to_the_same_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "sync", lambda _: None)  # no power is cut here
    improvement, start = begin(tmp_path / "whole")
    improvement.run(start, 3)
    whole, moment, killed = tree(tmp_path / "whole"), 1, 0
    while True:
        folder = tmp_path / f"run_{moment}"
        if not _killed(folder, moment):
            assert tree(folder) == whole
            break
        killed += 1
        there = [v.successes for v in Versions(folder) if v.kept]
        assert there == sorted(there)
        if (folder / "current").is_symlink():
            assert (folder / "current" / versions.FIGURES).is_file()
        improvement, _ = begin(folder)
        improvement.run(start, 3)
        assert tree(folder) == whole
        moment += 1 + moment // 8
    assert killed > 25


def _killed(folder: Path, moment: int) -> bool:
    """Runs in a process of its own, which is gone at the given line of the code of rounds."""
    watched = {rounds.__file__, versions.__file__, __file__}
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] != 0
    lines = 0

    def trace(frame, event, _):
        nonlocal lines
        if frame.f_code.co_filename not in watched:
            return None
        lines += event == "line"
        if lines >= moment:
            os._exit(9)
        return trace

    try:
        improvement, start = begin(folder)
        sys.settrace(trace)
        improvement.run(start, 3)
    finally:
        os._exit(1 if sys.exc_info()[0] else 0)


def test_a_line_that_was_cut_short_is_played_again(tmp_path):
    improvement, start = begin(tmp_path / "run")
    found, path = improvement.versions, improvement.versions.place(0) / versions.PLAYED
    improvement.run(start, 1)
    path.write_bytes(path.read_bytes()[:-20])
    assert len(found.played(0)) == JUDGED - 1
    result = EpisodeResult("Stack_D0", 5, 0, "stack", 70, 200, "success", True)
    found.note(0, result)
    assert len(found.played(0)) == JUDGED and found.played(0)[0] == result


def test_broken_figures_are_named(tmp_path):
    improvement, start = begin(tmp_path / "run")
    improvement.run(start, 1)
    (improvement.versions.place(1) / versions.FIGURES).write_text("{")
    with pytest.raises(VlaError, match=r"0001/figures.json has no figures"):
        improvement.run(start, 2)


def test_a_node_that_cannot_be_told_does_not_end_the_rounds(tmp_path):
    improvement, start = begin(tmp_path / "run")
    improvement.run(start, 0)

    def load(_: Version) -> None:
        raise VlaError("nobody offers the service", "start the node")

    improvement.work.load = load
    with pytest.raises(VlaError, match="nobody offers"):
        improvement.run(start, 3)
    assert improvement.versions.current().number == 3


def test_a_running_node_loads_a_version_or_says_why_not(tmp_path, monkeypatch):
    for name in ("one", "two"):
        write_random_checkpoint(tmp_path / name, seed=len(name))
    given = {"model": str(tmp_path / "one"), "model_root": str(tmp_path), "num_threads": 1}
    with inference_graphs(**given, instruction="stack it") as make:
        graph = make()
        monkeypatch.setenv("ROS_DOMAIN_ID", str(domain()))
        node = graph.node.get_fully_qualified_name()
        assert f"{node} answers with" in load_model(node, tmp_path / "two")
        assert graph.node.policy.name == "two"
        with pytest.raises(VlaError, match="keeps its model: there is no model"):
            load_model(node, tmp_path / "three")
        with pytest.raises(VlaError, match="nobody offers the service /nowhere/load_model"):
            load_model("/nowhere", tmp_path / "two")


# -- the work itself --------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path: Path) -> SimulationWork:
    write_random_checkpoint(tmp_path / "l1", "tiny", "l1")
    config = ImproveConfig(task="Lift_D0", judged_by=1, episodes=1, share=0.25)
    finetune = settings(tmp_path, tmp_path / "unused", "l1", sources=(), lora_rank=0)
    return SimulationWork(config, finetune, tmp_path / "run")


def test_new_data_have_their_share_by_frames(work, tmp_path):
    paths = [write_noise(tmp_path / f"{n}.hdf5", n, 4, seed=n) for n in (1, 2, 3)]
    old, *new = [DatasetSource(str(path)) for path in paths]
    assert [s.weight for s in work._mixed(new)] == pytest.approx([0.4, 0.6])
    work.finetune = replace(work.finetune, sources=(old,))
    mixed = work._mixed(new)
    assert [s.weight for s in mixed] == pytest.approx([0.75, 0.1, 0.15])
    assert mixed[0].cameras == ("agentview",)


def test_the_stand_in_s_patience_is_left_out_whole(work):
    given = [work._weights().before_takeover]
    work.finetune = replace(work.finetune, weights=SampleWeights(before_takeover=3.0))
    given.append(work._weights().before_takeover)
    work.config = replace(work.config, recorded="/somewhere")
    work.finetune = replace(work.finetune, weights=SampleWeights())
    assert [*given, work._weights().before_takeover] == [2.0, 3.0, 1.0]


def test_a_round_takes_the_recorded_episodes_that_no_round_has_taken(work, tmp_path):
    source, episodes = tmp_path / "recorded", tmp_path / "run" / "episodes"
    source.mkdir()
    for n in (1, 2):
        write_noise(source / f"{n}.hdf5", 1, 4)
    (source / "notes.txt").write_text("no data")
    work._take_recorded(source, episodes / "0001")
    work._take_recorded(source, episodes / "0001")  # once more after it was killed
    write_noise(source / "3.hdf5", 1, 4)
    work._take_recorded(source, episodes / "0002")
    assert [sorted(p.name for p in (episodes / n).iterdir()) for n in ("0001", "0002")] == [
        ["1.hdf5", "2.hdf5"],
        ["3.hdf5"],
    ]
    with pytest.raises(VlaError, match="has no new episode"):
        work._take_recorded(source, episodes / "0003")


def test_bags_of_a_recording_are_trained_on_by_who_acted(work, tmp_path):
    write_corrected(tmp_path / "corrected.hdf5")
    convert(tmp_path / "corrected.hdf5", tmp_path / "recorded", "bag", workers=1)
    work.config = replace(work.config, recorded=str(tmp_path / "recorded"))
    version, episodes = Version(0, tmp_path / "l1", True, {}), tmp_path / "run/episodes/0001"
    told = work.collect(1, version, episodes)
    assert (told["episodes"], told["corrected_episodes"]) == (2, 1)
    assert told["corrected_frames"] == ACTED.sum()
    output = tmp_path / "run/versions/0001/checkpoint"
    work.finetune = replace(work.finetune, max_steps=1)
    assert list(work.train(1, version, [episodes], output)["data"].values()) == [1.0]
    assert (output / "model.safetensors").is_file()


def small_model(folder: Path) -> Path:
    """A checkpoint of the small model, trained for a step on small images."""
    config = TrainConfig(
        batch_size=2, steps=1, layers=1, image_size=64, tensorboard=False, validation=0.0
    )
    write_noise(folder / "noise.hdf5", 2, 8)
    return train([str(folder / "noise.hdf5")], folder / "small", config, 0, report=lambda _: None)


def test_the_small_model_goes_on_by_its_own_recipe(work, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "sync", lambda _: None)
    start = small_model(tmp_path)
    work.config = replace(work.config, recipe="train")
    old = DatasetSource(str(tmp_path / "noise.hdf5"))
    changes = {"sources": (old,), "vla_path": str(start), "batch_size": 2, "max_steps": 2}
    work.finetune = replace(work.finetune, **changes)
    work.check()
    write_corrected(tmp_path / "new.hdf5")
    version, output = Version(0, start, True, {}), tmp_path / "run/versions/0001/checkpoint"
    told = work.train(1, version, [tmp_path / "new.hdf5"], output)
    assert told["recipe"] == "train" and list(told["data"].values()) == [0.75, 0.25]
    assert (output / "model.safetensors").is_file()
    assert work.train(1, version, [tmp_path / "new.hdf5"], output) == told  # it is there
    other = replace(work.finetune, vla_path=str(tmp_path / "l1"))
    with pytest.raises(VlaError, match="is not the small model"):
        replace(work, finetune=other).check()
    with pytest.raises(VlaError, match="has no end; give --max-steps"):
        replace(work, finetune=replace(work.finetune, max_steps=None)).check()
    with pytest.raises(VlaError, match="cuda:7, there are 0 GPUs; name another, or cpu"):
        monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
        replace(work, finetune=replace(work.finetune, device="cuda:7")).check()


def test_the_own_recipe_trains_on_the_gpu_that_was_named(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    found = [gpus(device) for device in ("cpu", "cuda", None, "cuda:0", "cuda:3")]
    assert found == [(0, 0), (1, 0), (1, 0), (1, 0), (1, 3)]
    with pytest.raises(VlaError, match="--device is 'gpu'; give cpu, cuda or cuda:N"):
        gpus("gpu")
    asked = []
    monkeypatch.setattr("vla_training.small_model.train._train_rank", lambda *a: asked.append(a))
    config = TrainConfig(steps=1)
    with tempfile.TemporaryDirectory() as folder:
        train([], folder, config, 1, first=3)
        with pytest.raises(VlaError, match="2 GPUs from number 3 on were requested, there are 4"):
            train([], folder, config, 2, first=3)
    ((_, _, world, which, *_),) = asked
    assert (world, list(which)) == (1, [3])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sees": ("agentview", "frontview")}, "sees 1 images, --sees has 2"),
        ({"recorded": "/nowhere"}, "there is no folder /nowhere"),
        ({"task": "Stack_D99"}, "there is no task 'Stack_D99'"),
        ({"parallel": 0}, "--parallel is 0"),
        ({"share": 0.0}, "--share is 0"),
    ],
)
def test_mistakes_are_told_before_any_work(work, changes, told):
    work.config = replace(work.config, **changes)
    with pytest.raises(VlaError, match=told):
        work.config.check()
        work.check()
    assert not work.folder.exists()


@pytest.mark.slow
def test_a_real_run_that_is_killed_again_and_again_ends_as_one_that_never_was(tmp_path):
    model = write_random_checkpoint(tmp_path / "tiny", "tiny", "l1")
    words = [sys.executable, "-m", "vla_inference.cli.main", "improve", "--model", str(model)]
    words += ["--task", "Lift_D0", "--episodes", "1", "--judged-by", "1", "--parallel", "1"]
    words += ["--max-steps", "30", "--batch-size", "2", "--workers", "0", "--lora-rank", "0"]
    words += ["--device", "cpu", "--no-tensorboard", "--save-steps", "5"]

    def start(name: str) -> subprocess.Popen:
        command = [*words, "--output", str(tmp_path / name)]
        return subprocess.Popen(command, start_new_session=True)

    assert start("whole").wait() == 0
    draw = random.Random(0)
    for sign in ("versions/0000", "episodes/0001/parts", "runs/0001/state", "versions/0001"):
        process = start("killed")
        while not (tmp_path / "killed" / sign).exists():
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 1))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert start("killed").wait() == 0
    places = [tmp_path / name / "versions" for name in ("whole", "killed")]
    for place in ("0000", "0001"):
        whole, killed = (json.loads((p / place / "figures.json").read_text()) for p in places)
        assert whole["judged"] == killed["judged"] and whole["kept"] == killed["kept"]
    weights = [p / "0001/checkpoint/model.safetensors" for p in places]
    assert weights[0].read_bytes() == weights[1].read_bytes()
