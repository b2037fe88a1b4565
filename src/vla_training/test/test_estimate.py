"""Tests of the estimate of progress and success."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.episodes.hdf5 import write_columns, write_header
from vla_inference.errors import CheckpointError, DataError, VlaError
from vla_training.datasets import open_dataset
from vla_training.estimate.estimator import ABOUT, Estimate, Estimator, Eyes, suggested
from vla_training.estimate.train import EstimateConfig, fit, labels, observed, train

CONFIG = EstimateConfig(every=1, steps=300)


def write_growing_light(path: Path, episodes: int = 10, length: int = 12) -> Path:
    """Images that get lighter until success; every other episode stops half way, without one."""
    with h5py.File(path, "w") as file:
        write_header(file, "light", episodes * length, {})
        for i in range(episodes):
            failed = i % 2 == 1
            light = np.linspace(20, 120 if failed else 220, length).astype(np.uint8)
            rewards = np.zeros(length)
            rewards[-3:] = not failed
            data = {
                "actions": np.zeros((length, 7)),
                "states": np.zeros((length, 8)),
                "rewards": rewards,
                "dones": np.zeros(length),
                "instructions": ["wait for the light"] * length,
                "obs": {
                    "agentview_image": np.broadcast_to(
                        light[:, None, None, None], (length, 64, 64, 3)
                    ).copy()
                },
            }
            write_columns(file["data"].create_group(f"demo_{i}"), data)
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("estimate")
    write_random_checkpoint(folder / "l1", "tiny", "l1")
    write_random_checkpoint(folder / "tokens", "tiny", "tokens")
    write_growing_light(folder / "light.hdf5")
    return folder


@pytest.fixture(scope="module")
def found(home) -> Estimator:
    return train(open_dataset(home / "light.hdf5"), Eyes(home / "l1", "cpu"), CONFIG)


def test_progress_is_the_way_to_the_first_success():
    known = labels(np.array([0, 0, 0, 1, 1]))
    assert known[:, 0].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
    assert known[:, 1].tolist() == [0, 0, 0, 1, 1]
    failed = labels(np.zeros(3))
    assert np.isnan(failed[:, 0]).all() and not failed[:, 1].any()


def test_it_learns_how_far_the_task_is_and_suggests_verdicts(found, home):
    assert found.figures["verdicts_right"] == 1.0 and found.figures["held_out_episodes"] == 2
    assert found.figures["looks_right"] > 0.9
    data = open_dataset(home / "light.hdf5")
    for episode, verdict in ((data[4], "success"), (data[9], "failure")):
        estimates = [found(observed(episode, ["agentview"], t)) for t in range(len(episode))]
        assert suggested(estimates) == verdict
    first, last = (found(observed(data[4], ["agentview"], t)) for t in (0, 11))
    assert first.progress < 0.3 and last.progress > 0.8


def test_it_is_kept_and_loaded_as_it_was(found, home, tmp_path):
    again = Estimator.load(found.save(tmp_path / "kept"), "cpu")
    seen = observed(open_dataset(home / "light.hdf5")[0], ["agentview"], 5)
    assert again(seen) == found(seen) and again.figures == found.figures


def test_what_is_no_estimator_is_named(found, tmp_path):
    folder = found.save(tmp_path / "kept")
    with pytest.raises(CheckpointError, match="is no estimator"):
        Estimator.load(tmp_path)
    (folder / ABOUT).write_text("[]")
    with pytest.raises(CheckpointError, match="is no estimator"):
        Estimator.load(folder)


def test_data_that_cannot_teach_are_refused(home, tmp_path):
    with pytest.raises(VlaError, match="gives actions as tokens"):
        Eyes(home / "tokens", "cpu")
    few = open_dataset(write_growing_light(tmp_path / "few.hdf5", 2))
    with pytest.raises(DataError, match="has 2 episodes; give at least 5"):
        train(few, Eyes(home / "l1", "cpu"), CONFIG)
    with pytest.raises(VlaError, match="none succeeded"):
        fit(torch.zeros(3, 4), torch.zeros(3, 2), CONFIG)
    with pytest.raises(VlaError, match="--every is 0"):
        replace(CONFIG, every=0).check()
    with pytest.raises(VlaError, match="no step"):
        suggested([])


def test_the_last_estimates_decide():
    unsure, sure = Estimate(0.5, 0.1), Estimate(1.0, 0.9)
    assert suggested([sure] * 9 + [unsure] * 5) == "failure"
    assert suggested([unsure] * 9 + [sure] * 5) == "success"
