"""Tests of fine-tuning SmolVLA: the original's loss and gradients, and whole runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_runs import free_port, losses, settings, write_noise
from lerobot_reference import (
    DATA,
    error_of,
    smolvla_weight,
    write_checkpoint,
    write_small_smolvla,
)
from safetensors.numpy import load_file

from vla_inference.cli.main import run_subcommand
from vla_inference.errors import DataError, VlaError
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.lerobot.checkpoint import ACTION, STATE, LeRobotCheckpoint
from vla_inference.policies.registry import load_policy
from vla_inference.policies.smolvla.weights import our_name
from vla_inference.types import Observation
from vla_training.conversion.convert import convert
from vla_training.finetune.families.lerobot.flow import FlowObjective, draw_time
from vla_training.finetune.finetune import Finetuner, finetune
from vla_training.loader.frame_index import DatasetSource
from vla_training.loader.mixture import batches
from vla_training.loop import distributed
from vla_training.loop.graceful_stop import StopRequest

CASES = np.load(DATA / "smolvla" / "cases.npz")
CPU = LoadOptions(device="cpu")
CAMERAS = ("agentview", "robot0_eye_in_hand")


# -- the loss -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference") / "model"
    return load_policy(write_checkpoint(folder, "smolvla", smolvla_weight), CPU)


def trained_like_the_original(name: str) -> bool:
    return name.startswith(("expert.", "state_proj", "action_"))


def test_the_loss_and_its_gradients_are_those_of_the_original(reference):
    observations = [
        Observation(
            {c: CASES[f"train/image.{c}"][i] for c in ("camera1", "camera2")},
            str(CASES["train/instruction"][i]),
            CASES["train/state"][i],
        )
        for i in range(2)
    ]
    model = reference.model
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained_like_the_original(name))
    targets = reference.checkpoint.normalisers[ACTION].normalise(CASES["train/action"])
    np.testing.assert_allclose(targets, CASES["train/action_normalized"], atol=1e-6)
    loss, _ = FlowObjective(reference, model).loss(
        reference.inputs(observations),
        torch.from_numpy(targets),
        ~torch.from_numpy(CASES["train/action_is_pad"]),
        torch.from_numpy(CASES["train/noise"]),
        torch.from_numpy(CASES["train/time"]),
    )
    assert error_of(loss.detach(), CASES["train/loss"]) < 2e-5
    loss.backward()
    mine = dict(model.named_parameters())
    names = [str(n) for n in CASES["train/grad_names"]]
    assert {our_name(n) for n in names} == {n for n in mine if trained_like_the_original(n)}
    for name, norm in zip(names, CASES["train/grad_norms"], strict=True):
        assert error_of(mine[our_name(name)].grad.norm(), norm) < 1e-3, name
    for key in (k for k in CASES if k.startswith("train/grad/")):
        gradient = mine[our_name(key.removeprefix("train/grad/"))].grad[:, ::2]
        assert error_of(gradient, CASES[key]) < 1e-3, key


def test_times_are_drawn_as_published():
    random = np.random.default_rng(0)
    times = np.array([draw_time(random) for _ in range(20_000)])
    assert times.min() >= 0.001 and times.max() <= 1
    # Of Beta(1.5, 1): mean 0.6, and half of them above 0.5 ** (2 / 3)
    assert abs(times.mean() - 0.6) < 0.01
    assert abs((times > 0.001 + 0.999 * 0.5 ** (2 / 3)).mean() - 0.5) < 0.02


# -- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("finetune")
    write_noise(home / "noise.hdf5")
    write_small_smolvla(home / "smolvla")
    return home


def run_settings(home: Path, folder: Path, **changes):
    source = DatasetSource(str(home / "noise.hdf5"), cameras=CAMERAS)
    sizes = {"lora_rank": None, "proprio_dim": 8, "action_dim": 7, "sources": (source,)}
    return settings(home, folder, "smolvla", **{**sizes, **changes})


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    "changes, learned",
    [
        ({}, ("lm_expert", "state_proj", "action_")),
        ({"train": "all"}, ("lm_expert", "state_proj", "action_", "text_model", "connector")),
        (
            {"train": "all", "lora_rank": 8, "image_aug": True},
            ("lm_expert", "state_proj", "action_", "text_model", "connector"),
        ),
    ],
)
def test_the_loss_falls_and_the_checkpoint_is_the_trained_model(home, tmp_path, changes, learned):
    config = run_settings(home, tmp_path / "run", max_steps=30, batch_size=4, **changes)
    run = Finetuner(config, distributed.start("cpu"))
    assert run.run(StopRequest())
    found = losses(tmp_path / "run")
    assert np.mean([found[s] for s in range(26, 31)]) < 0.8 * np.mean(
        [found[s] for s in range(1, 6)]
    )
    folder = run.export()
    before, after = weights_of(home / "smolvla"), weights_of(folder)
    assert list(before) == list(after)
    for name, value in after.items():
        frozen = not any(part in name for part in learned)
        # Nothing looks at the last layer's output of the language model.
        changed = not np.array_equal(before[name], value)
        assert not (frozen and changed), name
        if "lm_expert.layers" in name and "norm" not in name:
            assert changed, name
    policy = load_policy(folder, CPU)
    trained = run.trainable.policy(run.trainable.model.eval(), "cpu", torch.float32)
    assert policy.needs == trained.needs and policy.needs.cameras == CAMERAS
    assert policy.action_spec() == run.samples.mixture.indices[0].spec
    rng = np.random.default_rng(0)
    images = {c: rng.integers(0, 256, (64, 64, 3), np.uint8) for c in CAMERAS}
    seen = Observation(images, "lift the cube", rng.standard_normal(8).astype(np.float32))
    np.testing.assert_allclose(policy.act(seen).actions, trained.act(seen).actions, atol=1e-5)


def test_a_sample_is_what_the_policy_sees(home, tmp_path):
    run = Finetuner(run_settings(home, tmp_path / "run"), distributed.start("cpu"))
    (batch,) = batches(run.samples, 0, 1, 4)
    policy, source = run.objective.policy, run.samples.mixture.sources[0].open()
    index = run.samples.mixture.indices[0]
    episode, step = index.locate(run.samples.order(0)[1])
    seen = policy.inputs([source[episode].steps[step].observation])
    found = run.objective.inputs(batch)
    assert torch.equal(found.images[:1], seen.images)  # no resizing, no rounding
    length = int(found.word_mask[0].sum())
    assert found.words[0, :length].tolist() == seen.words[0].tolist()
    assert torch.equal(found.state[:1], seen.state)
    back = policy.checkpoint.normalisers[ACTION].denormalise(batch.targets[0].numpy())
    actions = source.actions(episode)[step : step + policy.chunk]
    np.testing.assert_allclose(back[: len(actions)], actions, atol=1e-6)
    assert batch.inside[0].sum() == len(actions)


def test_statistics_of_the_dataset_are_stored_as_lerobot_stores_them(home, tmp_path):
    folder = finetune(run_settings(home, tmp_path / "run", max_steps=1))
    data = DatasetSource(str(home / "noise.hdf5")).open()
    actions = np.concatenate([data.actions(i) for i in range(len(data))])
    states = np.concatenate([data[i].states for i in range(len(data))])
    for stem in ("preprocessor_step_5_normalizer", "postprocessor_step_0_unnormalizer"):
        stored = load_file(folder / f"policy_{stem}_processor.safetensors")
        for feature, values in ((ACTION, actions), (STATE, states)):
            for name, expected in (
                ("mean", values.mean(0)),
                ("std", values.std(0)),
                ("min", values.min(0)),
                ("q99", np.quantile(values, 0.99, axis=0)),
            ):
                np.testing.assert_allclose(stored[f"{feature}.{name}"], expected, atol=1e-5)
    steps = json.loads((folder / "policy_preprocessor.json").read_text())["steps"]
    assert steps[0]["config"]["rename_map"] == {
        "observation.images.agentview": "observation.images.camera1",
        "observation.images.robot0_eye_in_hand": "observation.images.camera2",
    }
    assert steps[5]["config"]["features"][STATE] == {"type": "STATE", "shape": [8]}
    checkpoint = LeRobotCheckpoint.read(folder)
    assert (checkpoint.state_dim, checkpoint.action_dim) == (8, 7)


def test_a_checkpoint_may_take_fewer_cameras_than_its_base(home, tmp_path):
    one = DatasetSource(str(home / "noise.hdf5"), cameras=CAMERAS[1:])
    config = run_settings(home, tmp_path / "run", sources=(one,), num_images=1, max_steps=1)
    assert load_policy(finetune(config), CPU).needs.cameras == CAMERAS[1:]


def test_datasets_of_other_formats_train_alike(home, tmp_path):
    finetune(run_settings(home, tmp_path / "hdf5", max_steps=1))
    writing = {"lerobot": {"images": "png"}, "rlds": {"encoding": "png"}}
    for kind, options in writing.items():
        data = tmp_path / f"data-{kind}"
        convert(home / "noise.hdf5", data, kind, workers=1, writing=options)
        there = DatasetSource(str(data)).open().cameras()
        source = DatasetSource(str(data), cameras=tuple(there[:2]))
        finetune(run_settings(home, tmp_path / kind, max_steps=1, sources=(source,)))
        assert losses(tmp_path / kind)[1] == pytest.approx(losses(tmp_path / "hdf5")[1], rel=1e-4)


def test_a_base_model_without_statistics_is_trained(home, tmp_path):
    base = Path(shutil.copytree(home / "smolvla", tmp_path / "smolvla"))
    for path in base.glob("policy_*.json"):
        content = json.loads(path.read_text())
        for step in content["steps"]:
            step.pop("state_file", None)
        path.write_text(json.dumps(content))
    config = run_settings(home, tmp_path / "run", max_steps=1)
    policy = load_policy(finetune(replace(config, vla_path=str(base))), CPU)
    assert policy.checkpoint.normalisers[ACTION].mode == "MEAN_STD"


@pytest.mark.parametrize("changes", [{}, {"train": "all"}, {"lora_rank": 4, "image_aug": True}])
def test_asked_to_stop_it_saves_and_goes_on_bit_for_bit(home, tmp_path, changes):
    config = run_settings(home, tmp_path / "whole", max_steps=4, **changes)
    whole = finetune(config)
    part = replace(config, folder=str(tmp_path / "part"))
    run = Finetuner(part, distributed.start("cpu"))
    stop = StopRequest()
    stop.ask("the test")
    assert not run.run(stop)
    again = finetune(part, resume=True)
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")
    files = [f / "model.safetensors" for f in (whole, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_noise_and_times_are_the_same_for_any_number_of_devices(home, tmp_path):
    samples = Finetuner(run_settings(home, tmp_path / "run"), distributed.start("cpu")).samples
    (one,) = batches(samples, 1, 2, 4)
    parts = [b for r in range(2) for b in batches(samples, 1, 2, 2, rank=r, world=2)]
    assert torch.equal(one.noise, torch.cat([p.noise for p in parts]))
    assert torch.equal(one.time, torch.cat([p.time for p in parts]))
    assert len({float(t) for t in one.time}) == 4


@pytest.mark.parametrize("train", ["expert", "all"])  # copied and sharded weights
def test_two_processes_train_as_one_and_their_state_goes_on_in_one(home, tmp_path, train):
    # Each averages over its own steps, which are as many in both where none is beyond an end.
    write_small_smolvla(tmp_path / "smolvla", chunk=1)
    words = [
        *(sys.executable, "-m", "vla_training.cli.finetune", "--dataset-name=noise"),
        *("--model", str(tmp_path / "smolvla"), "--data-root-dir", str(home)),
        *("--run-root-dir", str(tmp_path), "--run-id=run", "--cameras", ",".join(CAMERAS)),
        *("--proprio-dim=8", "--action-dim=7", "--batch-size=2", "--max-steps=2", "--workers=0"),
        *("--log-steps=1", "--device=cpu", "--no-tensorboard", "--learning-rate=1e-3"),
        *("--val-split=0", "--train", train),
    ]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(words, env={**os.environ, **shared, "RANK": r, "LOCAL_RANK": r})
        for r in "01"
    ]
    assert [r.wait(300) for r in ranks] == [0, 0]
    rate = {"learning_rate": 1e-3, "batch_size": 4, "max_steps": 3, "train": train}
    config = run_settings(home, tmp_path / "run", num_images=2, **rate)
    config = replace(config, vla_path=str(tmp_path / "smolvla"))
    finetune(config, resume=True)
    finetune(replace(config, folder=str(tmp_path / "whole")))
    a, b = losses(tmp_path / "run"), losses(tmp_path / "whole")
    assert sorted(a) == sorted(b) == [1, 2, 3]
    assert all(a[step] == pytest.approx(b[step], rel=1e-4) for step in a)


def test_bfloat16_computes_the_loss_of_float32_nearly(home, tmp_path):
    first = {}
    for precision in ("fp32", "bf16"):
        folder = tmp_path / precision
        finetune(run_settings(home, folder, precision=precision, max_steps=2))
        first[precision] = losses(folder)[1]
    assert first["bf16"] == pytest.approx(first["fp32"], rel=0.02)


def test_the_command_needs_no_more_than_a_model_and_a_dataset(home, tmp_path, capsys):
    point = EntryPoint("finetune", "vla_training.cli.finetune:finetune", "vla.commands")
    words = [
        "--model",
        str(home / "smolvla"),
        "--data-root-dir",
        str(home),
        "--dataset-name=noise",
        "--run-root-dir",
        str(tmp_path),
        "--cameras=agentview,robot0_eye_in_hand",
        "--proprio-dim=8",
        "--action-dim=7",
        "--max-steps=1",
        "--batch-size=2",
        "--workers=0",
        "--device=cpu",
        "--json",
    ]
    assert run_subcommand(point, words) == 0
    output = Path(json.loads(capsys.readouterr().out)["output"])
    assert output == tmp_path / "smolvla+noise+b2+lr-0.0001+expert" / "checkpoint"
    assert load_policy(output, CPU).chunk == 4
    said = json.loads((output.parent / "finetune.json").read_text())
    assert said["learning_rate"] == 1e-4 and said["max_grad_norm"] == 10


# -- what is refused ------------------------------------------------------------------------------


def refused(home, tmp_path, problem: str, error: type[VlaError] = VlaError, **changes) -> None:
    with pytest.raises(error, match=problem):
        finetune(run_settings(home, tmp_path / "run", max_steps=1, **changes))


def test_cameras_that_the_dataset_lacks_are_asked_for_by_name(home, tmp_path):
    data = str(home / "noise.hdf5")
    problem = (
        r"has no camera 'camera1', which .*smolvla names; it has agentview, robot0_eye_in_hand; "
        r"say by --cameras which of its cameras are camera1, camera2, .*rename_map"
    )
    refused(home, tmp_path, problem, DataError, sources=(DatasetSource(data),))
    wrong = DatasetSource(data, cameras=("agentview", "wrist"))
    refused(home, tmp_path, "has no camera 'wrist'", DataError, sources=(wrong,))
    refused(home, tmp_path, "3 cameras were named, .* has 2", num_images=3)


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"proprio_dim": None}, "the states of .* have 8 numbers, .* takes 6; give --proprio-dim"),
        (
            {"action_dim": None},
            "the actions of .* have 7 numbers, .* takes 6; give --action-dim 7",
        ),
        ({"action_dim": 33}, "--action-dim is 33, the network of .* takes at most 32"),
        ({"chunk": 8}, r"models of family smolvla take no --chunk \(8 was given\)"),
        ({"action_head": "l1"}, "take no --action-head"),
        ({"train": "head"}, "--train is 'head'; use all or expert"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(home, tmp_path, changes, problem):
    refused(home, tmp_path, problem, **changes)


# -- untrained checkpoints ------------------------------------------------------------------------


def test_an_untrained_one_is_written_trained_and_loaded(home, tmp_path, capsys):
    point = EntryPoint("new", "vla_training.cli.new:new", "vla.commands")
    sizes = ["--image-size=64", "--vision-width=64", "--vision-layers=2", "--text-width=128"]
    sizes += ["--text-layers=2", "--expert-width=64", "--vocabulary=400", "--chunk=3"]
    given = ["--dataset", str(home / "noise.hdf5"), *sizes]
    for name in ("one", "two"):
        assert run_subcommand(point, ["smolvla", str(tmp_path / name), *given]) == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all((one[n] == two[n]).all() for n in one)
    published = json.loads((DATA / "smolvla" / "state_dict_shapes.json").read_text())
    small = {n for n in published if not n.startswith("model.vlm_with_expert.vlm.lm_head")}
    assert {n for n in small if ".layers." not in n} == {n for n in one if ".layers." not in n}
    assert {n for n in one if ".layers.0." in n} == {n for n in small if ".layers.0." in n}
    run = run_settings(home, tmp_path / "run", max_steps=2, vla_path=str(tmp_path / "one"))
    finetune(run)
    (checkpoint,) = {path.parent for path in (tmp_path / "run").rglob("model.safetensors")}
    trained = weights_of(checkpoint)
    changed = {name for name in one if (trained[name] != one[name]).any()}
    for part in ("vision_model", "text_model", "connector", "lm_expert", "state_proj", "action_"):
        assert any(part in name for name in changed), part
    assert load_policy(checkpoint, CPU).chunk == 3


def test_an_untrained_ones_sizes_are_read_back_as_they_were(tmp_path):
    from vla_inference.policies.smolvla.config import read_config
    from vla_training.finetune.untrained.robot import Robot, Untrained
    from vla_training.finetune.untrained.smolvla import UntrainedSmolVLA

    sizes = UntrainedSmolVLA(
        image_size=32,
        vision_width=64,
        vision_layers=1,
        text_layers=1,
        text_width=896,
        expert_width=122,
        vocabulary=300,
    )
    robot = Robot(CAMERAS, (64, 64), 8, 7)
    sizes.write(tmp_path, robot, Untrained(chunk=5))
    assert read_config(LeRobotCheckpoint.read(tmp_path, fitted=False)) == sizes.config(robot, 5)


def test_an_untrained_network_keeps_the_size_of_what_it_sees():
    from vla_inference.policies.smolvla.config import SmolVLAConfig
    from vla_inference.policies.smolvla.model import SmolVLA
    from vla_inference.policies.smolvla.untrained import begin
    from vla_training.finetune.untrained.robot import Robot
    from vla_training.finetune.untrained.smolvla import UntrainedSmolVLA

    sizes = UntrainedSmolVLA(image_size=96, text_layers=3, vision_layers=3)
    config: SmolVLAConfig = sizes.config(Robot(CAMERAS, (96, 96), 8, 7), 5)
    torch.manual_seed(0)
    model = SmolVLA(config)
    begin(model)
    words = torch.arange(6)[None]
    with torch.no_grad():
        x, mask = model.embed(torch.randn(1, 2, 3, 96, 96), words, words >= 0, torch.randn(1, 32))
        assert 0.3 < x[:, :-7].std() < 3 and 0.3 < x[:, -7:-1].std() < 3
        prefix = model.prefix(x, mask, hidden=True)
        moved = model.velocity(torch.randn(1, 5, 32), torch.tensor([0.5]), prefix)
    assert 0.3 < moved.std() < 3
