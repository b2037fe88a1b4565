"""Tests of the estimate of progress and success."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.cli.main import main
from vla_inference.episodes.hdf5 import write_columns, write_header
from vla_inference.errors import CheckpointError, DataError, VlaError
from vla_inference.estimate.estimator import ABOUT, PAST, Estimator, Eyes, Seen, Watch
from vla_training.datasets import open_dataset
from vla_training.estimate.train import (
    EstimateConfig,
    Looks,
    fit,
    labels,
    look_at,
    looks_of,
    observed,
    threshold,
    times_of,
    train,
)

CONFIG = EstimateConfig(every=1, settle=0, steps=80, batch_size=32, learning_rate=3e-3)

LENGTH = 12  # steps of an episode


def write_growing_light(path: Path, episodes: int = 10, empty: int | None = None) -> Path:
    """Images that get lighter until success; every other episode stops half way, without one.

    empty: an episode without steps.
    """
    with h5py.File(path, "w") as file:
        write_header(file, "light", episodes * LENGTH, {})
        for i in range(episodes):
            failed, length = i % 2 == 1, 0 if i == empty else LENGTH
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
            write_columns(file["data"].create_group(f"demo_{i}"), data, None)
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


def known_of(*rewards, settle=0.0, apart=1.0):
    """Progress and done [T] of looks so many s apart."""
    return labels(np.array(rewards), apart * np.arange(len(rewards)), settle).T


def test_progress_is_the_way_to_the_first_success_that_lasts():
    progress, done = known_of(0, 0, 1, 1, 1)  # each image shows what the step before has led to
    assert progress.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
    assert done.tolist() == [0, 0, 0, 1, 1]
    progress, done = known_of(0, 0, 0)
    assert np.isnan(progress).all() and not done.any()
    progress, done = known_of(1, 1, 0, 1, 1, 1, 0, 0, settle=3)  # the first is lost too soon
    np.testing.assert_array_equal(done, [0, np.nan, np.nan, 0, np.nan, np.nan, 1, 0])
    np.testing.assert_array_equal(progress, [0, 0.25, 0.5, 0.75, 1, np.nan, 1, np.nan])
    for rewards in ((0, 0, 1), (0, 1, 0)):  # what followed on the last image is another end
        np.testing.assert_array_equal(known_of(*rewards)[1], [0, 0, np.nan])
    done = known_of(0, 1, 1, 1, 1, settle=0.45, apart=0.2)[1]
    np.testing.assert_array_equal(done, [0, 0, np.nan, np.nan, 1])


def test_it_learns_how_far_the_task_is_and_suggests_verdicts(found, home):
    assert found.figures["held_out"]["episodes"] == found.figures["held_out"]["verdicts_right"]
    assert found.figures["looks_right"] > 0.9 * found.figures["looks"]
    assert 0.5 <= found.threshold <= 1
    data = open_dataset(home / "light.hdf5")
    for episode, verdict in ((data[4], "success"), (data[9], "failure")):
        watch = Watch(found)
        looks = [seen_at(watch, episode, t) for t in range(len(episode))]
        assert looks[-1].suggested == verdict
        if verdict == "success":
            assert looks[0].progress < 0.3 and looks[-1].progress > 0.8


def seen_at(watch, episode, step):
    look = observed(episode, ["agentview"], step)
    return watch.look(replace(look, stamp=1 + step * episode.spec.dt))


def test_a_look_in_a_graph_is_one_in_training(found, home):
    episode = open_dataset(home / "light.hdf5")[4]
    looks = look_at(found.eyes, episode, ["agentview"], range(len(episode)))
    assert looks.slots.shape[:2] == (len(episode), 1 + PAST)
    watch = Watch(found)
    for step, wanted in enumerate(found(looks)):
        assert seen_at(watch, episode, step).done == pytest.approx(wanted.done, abs=0.01)
    other = replace(observed(episode, ["agentview"], 11), instruction="another task", stamp=1.6)
    fresh = Watch(found).look(other)
    assert watch.look(other) == fresh  # with another task the past is none


def test_looks_go_by_stamps_where_there_are_some(found, home):
    episode = open_dataset(home / "light.hdf5")[4]
    assert times_of(episode) == pytest.approx(episode.spec.dt * np.arange(len(episode)))
    stamps = np.append(5 + 0.2 * np.arange(6), 6.2 + 0.1 * np.arange(6))  # as in lock step, faster
    steps = [
        replace(step, observation=replace(step.observation, stamp=stamp))
        for step, stamp in zip(episode.steps, stamps, strict=True)
    ]
    episode = replace(episode, steps=steps)
    slots = look_at(found.eyes, episode, ["agentview"], [5, 11]).slots
    every = look_at(found.eyes, episode, ["agentview"], range(12)).slots[:, 0]
    wanted = every[torch.tensor([[5, 4, 3], [11, 9, 7]])]
    torch.testing.assert_close(slots, wanted, atol=0.01, rtol=0)  # other batches
    assert (slots[0] - every[[5, 1, 0]]).abs().max() > 0.1  # those of steps of dt
    looks = looks_of(found.eyes, episode, ["agentview"], replace(CONFIG, settle=0.15))
    assert looks.known[-1, 1] == 1  # two images of 0.1 s after the first of success


def test_it_is_kept_and_loaded_as_it_was(found, home, tmp_path):
    again = Estimator.load(found.save(tmp_path / "kept"), "cpu")
    look = observed(open_dataset(home / "light.hdf5")[0], ["agentview"], 5)
    assert Watch(again).look(look) == Watch(found).look(look)
    assert again.figures == found.figures and again.threshold == found.threshold


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
    nothing = Looks(Seen(torch.zeros(3, 1 + PAST, 4), torch.zeros(3, 2, 4)), torch.zeros(3, 2))
    with pytest.raises(VlaError, match="none succeeded"):
        fit([nothing], EstimateConfig())
    with pytest.raises(VlaError, match="--every is 0"):
        replace(CONFIG, every=0).check()


def test_a_set_is_checked_before_it_is_looked_at(home, found, tmp_path, capsys):
    light = home / "light.hdf5"
    folder = found.save(tmp_path / "kept")
    judge = ["estimate", "judge", str(folder), "--device", "cpu", "--dataset"]
    assert main([*judge, str(light), "--camera", "wirst"]) == 2
    assert "has no images of camera 'wirst'; cameras: agentview" in capsys.readouterr().err
    assert main([*judge, str(light), "--camera", "agentview,agentview"]) == 2
    assert "gives 2 (agentview, agentview); name that many" in capsys.readouterr().err
    empty = write_growing_light(tmp_path / "empty.hdf5", empty=8)
    assert main([*judge, str(empty)]) == 2
    assert "episode 8 has no step; leave it out" in capsys.readouterr().err
    with pytest.raises(DataError, match="episode 8 has no step"):
        train(open_dataset(empty), found.eyes, CONFIG)


def test_the_threshold_keeps_false_verdicts_rare():
    done, known = np.linspace(0, 1, 101), np.zeros(101)
    known[:1] = np.nan  # which counts for nothing
    for share, falsely in ((0.0, 0), (0.01, 1), (0.2, 20)):
        chosen = threshold(done, known, share)
        assert (done[1:] >= chosen).sum() == falsely
    assert threshold(done, known, 1.0) == 0.5  # what is as likely as not is no success
    assert threshold(done, np.ones(101), 0.01) == 0.5
