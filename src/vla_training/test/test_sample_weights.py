"""Tests of sample weights: corrections count more, what a person had to correct is left out."""

from __future__ import annotations

import shlex
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_runs import ACTED, make_home, settings, write_corrected
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from vla_inference.cli.main import run_subcommand
from vla_inference.errors import VlaError
from vla_training.finetune.finetune import Finetuner, finetune
from vla_training.loader.frame_index import DatasetSource, index_frames
from vla_training.loader.mixture import mix
from vla_training.loader.sample_weights import SampleWeights, chunk_limits
from vla_training.loader.sampler import Sampler
from vla_training.loop import distributed
from vla_training.small_model.config import TrainConfig
from vla_training.small_model.episode_frames import frames_from_paths
from vla_training.small_model.train import train
from vla_training.small_model.trainer import Trainer

WEIGHTS = SampleWeights(intervention_weight=3.0, before_takeover=0.2, before_weight=0.0)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = make_home(tmp_path_factory.mktemp("weights"))
    write_corrected(folder / "corrected.hdf5")
    return folder


# -- the weights ------------------------------------------------------------------------------


def test_the_second_before_a_takeover_is_left_out_and_corrections_count_more():
    found = WEIGHTS.of_steps(ACTED, np.array([20]), 0.05)
    assert found.tolist() == [1, 1, 0, 0, 0, 0, 3, 3, 3, 3, 0, 0, 0, 3, 3, 1, 1, 1, 1, 1]
    kept_down = replace(WEIGHTS, before_weight=0.5, before_takeover=0.1)
    assert kept_down.of_steps(ACTED, np.array([20]), 0.05)[2:7].tolist() == [1, 1, 0.5, 0.5, 3]


def test_a_chunk_ends_before_what_is_left_out():
    found = chunk_limits(WEIGHTS.of_steps(ACTED, np.array([20]), 0.05), np.array([20]))
    assert found[:2].tolist() == [2, 2] and found[6:10].tolist() == [10] * 4
    assert (found[13:] == 20).all()


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=30), min_size=1, max_size=5))
@limits(max_examples=50, deadline=None)
def test_weights_of_an_episode_do_not_depend_on_its_neighbours(episodes):
    ends = np.cumsum([len(e) for e in episodes])
    together = WEIGHTS.of_steps(np.concatenate(episodes), ends, 0.05)
    alone = [WEIGHTS.of_steps(np.array(e), np.array([len(e)]), 0.05) for e in episodes]
    assert np.array_equal(together, np.concatenate(alone))
    assert (together[np.concatenate(episodes)] == 3).all()
    reach = chunk_limits(together, ends)
    for frame, end in enumerate(reach):
        assert end <= ends[np.searchsorted(ends, frame, "right")]
        assert (together[frame:end] > 0).all()


@given(st.lists(st.sampled_from([0.3, 1.0, 2.0, 2.5]), min_size=1, max_size=40), st.integers(0, 9))
@limits(max_examples=30, deadline=None)
def test_frames_come_up_as_often_as_their_weight_says(weights, seed):
    each = np.array(weights, np.float32)
    order = Sampler([len(each)], [1.0], seed, [each])
    size = order.sizes[0]
    for epoch in range(3):
        drawn = [order(epoch * size + k)[1] for k in range(size)]
        counts = np.bincount(drawn, minlength=len(each))
        expected = each * size / each.sum()
        assert (counts >= np.floor(expected - 1e-6)).all()
        assert (counts <= np.ceil(expected + 1e-6)).all()
    assert order.span(0, 2 * size).tolist() == [order(k)[1] for k in range(2 * size)]


def test_weights_that_make_no_sense_are_refused(home, tmp_path):
    for wrong, told in (
        ({"intervention_weight": 0.0}, "--intervention-weight is 0"),
        ({"before_takeover": -1.0}, "--before-takeover is -1"),
        ({"dataset_weights": (1.0, 0.0)}, "--dataset-weights is 1, 0"),
    ):
        with pytest.raises(VlaError, match=told):
            finetune(settings(home, tmp_path / "run", weights=SampleWeights(**wrong)))
    with pytest.raises(VlaError, match="2 numbers for 1 datasets"):
        SampleWeights(dataset_weights=(1.0, 2.0)).of_datasets(1)
    assert not (tmp_path / "run").exists()


# -- fine-tuning, of any family ---------------------------------------------------------------


def test_the_index_remembers_who_acted_and_draws_by_it(home, tmp_path):
    source = DatasetSource(str(home / "corrected.hdf5"))
    made, read = (index_frames(source, tmp_path) for _ in range(2))
    for index in (made, read):
        assert index.interventions is not None
        assert np.array_equal(index.interventions, np.append(ACTED, [False] * 20))
    index = read.weighted(WEIGHTS)
    mixture, _ = mix([source], [index], 7)
    left_out = {2, 3, 4, 5, 10, 11, 12}
    assert mixture.frames[0].tolist() == sorted({*range(40)} - left_out)
    assert mixture.weights == [7 + 6 * 3 + 20]
    plain = index_frames(DatasetSource(str(home / "noise.hdf5")), tmp_path)
    assert plain.interventions is None and plain.weighted(WEIGHTS) is plain


@pytest.mark.parametrize("base", ["tokens", "l1"])
def test_fine_tuning_never_sees_what_was_corrected(home, tmp_path, base):
    source = DatasetSource(str(home / "corrected.hdf5"))
    config = settings(home, tmp_path / "run", base, sources=(source,), weights=WEIGHTS)
    run = Finetuner(config, distributed.start("cpu"))
    samples, index = run.samples, run.samples.mixture.indices[0]
    samples._opened()
    for position in range(80):
        _, number = samples.order(position)
        frame = int(samples.mixture.frames[0][number])
        inside = samples[position]["inside"]
        seen = index.weights[frame : frame + len(inside)][inside[: len(index.weights) - frame]]
        assert len(seen) and (seen > 0).all()
    run.close()
    finetune(replace(config, folder=str(tmp_path / "whole")))
    other = replace(WEIGHTS, intervention_weight=4.0)
    part = replace(config, folder=str(tmp_path / "whole"), weights=other)
    with pytest.raises(VlaError, match="weights"):
        finetune(part, resume=True)


def test_old_and_new_data_are_mixed_by_the_ratio_given(home, tmp_path):
    point = EntryPoint("finetune", "vla_training.cli.finetune:finetune", "vla.commands")
    words = ["--model", str(home / "tokens"), "--run-root-dir", str(tmp_path), "--run-id", "r"]
    for name in ("noise", "corrected"):
        words += ["--dataset", str(home / f"{name}.hdf5")]
    words += shlex.split("--max-steps 1 --batch-size 2 --workers 0 --device cpu")
    assert run_subcommand(point, [*words, "--no-merge", "--dataset-weights", "1,3"]) == 0
    settings_there = (tmp_path / "r" / "finetune.json").read_text()
    assert '"weight": 1.0' in settings_there and '"weight": 3.0' in settings_there
    with pytest.raises(VlaError, match="1 numbers for 2 datasets"):
        run_subcommand(point, [*words, "--dataset-weights", "1"])


# -- the small model --------------------------------------------------------------------------


def test_the_small_model_draws_the_same_frames(home):
    path = home / "corrected.hdf5"
    for paths in ([path], [write_corrected(home / "large.hdf5", 80)]):  # as stored, and resized
        frames = frames_from_paths(paths, 64, weights=WEIGHTS)
        index = index_frames(DatasetSource(str(paths[0])), home / "index").weighted(WEIGHTS)
        assert frames.weight is not None
        assert torch.equal(frames.weight, torch.from_numpy(index.weights))
        assert frames.end.tolist() == index.limits.tolist()
    assert frames_from_paths([home / "noise.hdf5"], 64, weights=WEIGHTS).weight is None


def test_the_small_model_mixes_datasets_by_their_shares(home):
    shares = replace(WEIGHTS, dataset_weights=(1.0, 3.0))
    frames = frames_from_paths([home / "noise.hdf5", home / "corrected.hdf5"], 64, weights=shares)
    assert frames.weight is not None
    old, new = (float(part.sum()) for part in frames.weight.split([32, 40]))
    assert new == pytest.approx(3 * old)


def test_the_small_model_trains_on_corrections(home, tmp_path):
    config = TrainConfig(
        batch_size=8,
        steps=2,
        layers=1,
        image_size=64,
        validation=0.0,
        weights=WEIGHTS,
        tensorboard=False,
    )
    frames = frames_from_paths([home / "corrected.hdf5"], 64, weights=WEIGHTS)
    trainer = Trainer(frames, config, "cpu", config.model_json())
    assert frames.weight is not None
    stream = trainer.batches.stream(trainer.training, 0, trainer.place)
    for _ in range(5):
        assert next(stream).inside.any(1).all()
    assert (frames.weight[trainer.training] > 0).all()
    train([str(home / "corrected.hdf5")], tmp_path, config, devices=0, report=lambda _: None)
    assert (tmp_path / "checkpoint" / "config.json").is_file()
