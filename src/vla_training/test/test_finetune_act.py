"""Tests of training ACT: the original's loss and gradients, and whole runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from finetune_runs import losses, settings, write_noise
from lerobot_reference import DATA, act_weight, error_of, write_checkpoint
from safetensors.numpy import load_file, save_file

from vla_inference.cli.main import run_subcommand
from vla_inference.errors import CheckpointError, DataError, VlaError
from vla_inference.policies.act.config import ACTConfig
from vla_inference.policies.act.model import ACT
from vla_inference.policies.act.policy import ACTPolicy
from vla_inference.policies.act.untrained import write_untrained
from vla_inference.policies.act.weights import PREFIX, load_network
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.lerobot.checkpoint import ACTION, STATE, LeRobotCheckpoint
from vla_inference.policies.lerobot.save import IMAGENET
from vla_inference.policies.registry import load_policy
from vla_inference.types import Observation
from vla_training.finetune.families.act import ACTObjective
from vla_training.finetune.finetune import Finetuner, finetune
from vla_training.loader.frame_index import DatasetSource
from vla_training.loader.mixture import batches
from vla_training.loop import distributed
from vla_training.loop.graceful_stop import StopRequest

CASES = np.load(DATA / "act" / "cases.npz")
CPU = LoadOptions(device="cpu", dtype="float32", engine="plain")
CAMERAS = ("agentview", "robot0_eye_in_hand")
TINY = ACTConfig(2, 8, 7, 4, width=32, heads=4, mlp=48, encoder_layers=1, vae_layers=1, latent=8)


# -- the loss -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> tuple[ACTObjective, ACTPolicy]:
    """In training, but for dropout."""
    folder = write_checkpoint(tmp_path_factory.mktemp("reference") / "model", "act", act_weight)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dropout": 0.0}))
    checkpoint = LeRobotCheckpoint.read(folder)
    model = load_network(checkpoint, "cpu", torch.float32, vae=True)
    policy = ACTPolicy(model, checkpoint, CPU)
    return ACTObjective(policy, model, config["kl_weight"]).train(), policy


def demonstrations(policy: ACTPolicy) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Images, state and actions of the reference, normalised."""
    images = [{c: CASES[f"train/image.{c}"][i] for c in policy.needs.cameras} for i in range(2)]
    seen = [Observation(x, "", CASES["train/state"][i]) for i, x in enumerate(images)]
    inputs, state = policy.inputs(seen)
    actions = policy.checkpoint.normalisers[ACTION].normalise(CASES["train/action"])
    np.testing.assert_allclose(actions, CASES["train/action_normalized"], atol=2e-6)
    return inputs, state, torch.from_numpy(actions)


def test_the_latent_of_a_demonstration_is_that_of_the_original(reference):
    objective, policy = reference
    _, state, actions = demonstrations(policy)
    padding = torch.from_numpy(CASES["train/action_is_pad"])
    with torch.no_grad():
        latent = objective.model.infer_latent(state, actions, padding)
    assert error_of(latent.mean, CASES["train/mu"]) < 3e-5
    assert error_of(latent.log_variance, CASES["train/log_sigma_x2"]) < 3e-5
    assert error_of(latent.divergence().mean(), CASES["train/kld"]) < 3e-5


def test_the_loss_and_its_gradients_are_those_of_the_original(reference):
    objective, policy = reference
    images, state, actions = demonstrations(policy)
    inside = ~torch.from_numpy(CASES["train/action_is_pad"])
    assert not inside.all()
    noise = torch.from_numpy(CASES["train/eps"])
    loss, measured = objective.loss(images, state, actions, inside, noise)
    assert error_of(measured["kl"], CASES["train/kld"]) < 3e-5
    assert error_of(measured["error"].mean(), CASES["train/l1"]) < 3e-5
    assert error_of(loss.detach(), CASES["train/loss"]) < 3e-5
    loss.backward()
    mine = {f"{PREFIX}{n}": p.grad for n, p in objective.model.named_parameters()}
    assert set(mine) == {str(n) for n in CASES["train/grad_names"]}
    largest = CASES["train/grad_norms"].max()
    for name, norm in zip(CASES["train/grad_names"], CASES["train/grad_norms"], strict=True):
        # Some change nothing, as the biases of keys: their gradient is rounding.
        assert mine[name].norm() == pytest.approx(norm, rel=1e-3, abs=1e-6 * largest), name
    for key in (k for k in CASES if k.startswith("train/grad/")):
        gradient = mine[key.removeprefix("train/grad/")][:, ::4]
        assert error_of(gradient, CASES[key]) < 1e-3, key


def test_evaluation_looks_at_the_answer_that_the_policy_gives(reference):
    objective, policy = reference
    images, state, actions = demonstrations(policy)
    inside = torch.ones(actions.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        answer = policy.model.eval()(images, state)
        loss, _ = objective.eval().loss(images, state, actions, inside, torch.ones(2, 32))
    objective.train()
    torch.testing.assert_close(loss, (answer - actions).abs().mean())


# -- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("finetune")
    write_noise(home / "noise.hdf5")
    write_untrained(home / "act", TINY, CAMERAS, (64, 64))
    return home


def run_settings(home: Path, folder: Path, **changes):
    source = DatasetSource(str(home / "noise.hdf5"), cameras=CAMERAS)
    return settings(
        home,
        folder,
        "act",
        **{"lora_rank": None, "batch_size": 2, "sources": (source,), **changes},
    )


def started(config) -> Finetuner:
    return Finetuner(config, distributed.start("cpu"))


def changed(home: Path, tmp_path: Path, **change) -> str:
    """Another base."""
    folder = Path(shutil.copytree(home / "act", tmp_path / "changed"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    return str(folder)


def test_from_scratch_the_loss_falls_and_the_checkpoint_is_the_trained_model(home, tmp_path):
    run = started(run_settings(home, tmp_path / "run", max_steps=40, learning_rate=1e-3))
    assert run.run(StopRequest())
    found = losses(tmp_path / "run")
    assert np.mean([found[s] for s in range(31, 41)]) < 0.7 * np.mean(
        [found[s] for s in range(1, 6)]
    )
    folder = run.export()
    before, after = (load_file(f / "model.safetensors") for f in (home / "act", folder))
    assert list(before) == list(after)
    kept = {n for n, value in after.items() if np.array_equal(before[n], value)}
    # Stored statistics, and a table of positions.
    assert all("bn" in n or "downsample.1" in n or n.endswith("pos_enc") for n in kept), kept
    policy = load_policy(folder, CPU)
    trained = run.trainable.policy(run.trainable.model.eval(), "cpu", torch.float32)
    assert policy.needs == trained.needs and policy.needs.cameras == CAMERAS
    assert policy.action_spec() == run.samples.mixture.indices[0].spec
    rng = np.random.default_rng(0)
    images = {c: rng.integers(0, 256, (64, 64, 3), np.uint8) for c in CAMERAS}
    seen = Observation(images, "", rng.standard_normal(8).astype(np.float32))
    np.testing.assert_allclose(policy.act(seen).actions, trained.act(seen).actions, atol=1e-5)


def test_it_learns_what_images_tell_and_answers_so_for_new_ones(tmp_path):
    """Brightness tells the action. It misses by half of what the mean action does, or less."""
    write_noise(tmp_path / "noise.hdf5", episodes=24, side=(32, 32))
    sizes = replace(TINY, cameras=1, chunk=1, dropout=0.0)
    write_untrained(tmp_path / "act", sizes, CAMERAS[:1], (32, 32))
    source = DatasetSource(str(tmp_path / "noise.hdf5"), cameras=CAMERAS[:1])
    config = run_settings(
        tmp_path,
        tmp_path / "run",
        sources=(source,),
        batch_size=16,
        max_steps=30,
        learning_rate=1e-3,
    )
    policy = load_policy(finetune(config), CPU)
    unseen = DatasetSource(str(write_noise(tmp_path / "new.hdf5", seed=1, side=(32, 32)))).open()
    answers = [
        policy.act(Observation({CAMERAS[0]: o.images[CAMERAS[0]]}, "", o.state)).actions[0]
        for o in (step.observation for i in range(4) for step in unseen[i].steps)
    ]
    actions = np.concatenate([unseen.actions(i) for i in range(4)])
    missed = np.abs(np.stack(answers) - actions).mean()
    assert missed < 0.5 * np.abs(actions - actions.mean(0)).mean(), missed


def test_a_sample_is_what_the_policy_sees(home, tmp_path):
    run = started(run_settings(home, tmp_path / "run"))
    (batch,) = batches(run.samples, 0, 1, 4)
    policy = run.trainable.policy(run.trainable.model, "cpu", torch.float32)
    source, index = run.samples.mixture.sources[0].open(), run.samples.mixture.indices[0]
    episode, step = index.locate(run.samples.order(0)[1])
    images, state = policy.inputs([source[episode].steps[step].observation])
    found = run.objective.images(batch)
    for i, image in enumerate(images):
        torch.testing.assert_close(found[:1, i], image, atol=2e-6, rtol=0)
    assert torch.equal(batch.proprio[:1], state)
    back = policy.checkpoint.normalisers[ACTION].denormalise(batch.targets[0].numpy())
    actions = source.actions(episode)[step : step + policy.chunk]
    np.testing.assert_allclose(back[: len(actions)], actions, atol=1e-6)
    assert batch.inside[0].sum() == len(actions)
    assert batch.noise.shape == (4, 8) and len(set(batch.seed.tolist())) == 4


def test_statistics_are_the_datasets_and_of_images_those_of_the_base(home, tmp_path):
    first = finetune(run_settings(home, tmp_path / "first", max_steps=1))
    source = DatasetSource(
        str(write_noise(tmp_path / "wide.hdf5", side=(32, 48))), cameras=CAMERAS
    )
    path = first / "policy_preprocessor_step_3_normalizer_processor.safetensors"
    stored = load_file(path)
    actions = np.concatenate([source.open().actions(i) for i in range(4)])
    np.testing.assert_allclose(stored[f"{ACTION}.std"], actions.std(0), atol=1e-5)
    assert stored[f"{STATE}.mean"].shape == (8,)
    key = "observation.images.agentview.mean"
    np.testing.assert_array_equal(stored[key], IMAGENET["mean"])
    own = np.full((3, 1, 1), 0.25, np.float32)
    save_file({**stored, key: own}, path)
    config = run_settings(home, tmp_path / "second", max_steps=1, sources=(source,))
    again = finetune(replace(config, vla_path=str(first)))
    np.testing.assert_array_equal(load_file(again / path.name)[key], own)
    shape = json.loads((again / "config.json").read_text())["input_features"]
    assert shape["observation.images.agentview"]["shape"] == [3, 32, 48]
    assert load_policy(again, CPU).needs.image_size == (32, 48)


def test_the_backbone_learns_at_its_own_rate(home, tmp_path):
    base = changed(home, tmp_path, optimizer_lr=1e-4, optimizer_lr_backbone=1e-5)
    config = replace(run_settings(home, tmp_path / "run"), vla_path=base, learning_rate=None)
    run = started(config)
    rest, backbone = run.optimizer.param_groups
    of = {id(p) for p in run.trainable.model.backbone.parameters()}
    assert {id(p) for p in backbone["params"]} == of and not of & {id(p) for p in rest["params"]}
    assert run.config.learning_rate == 1e-4 and run.trainable.betas == (0.9, 0.999)
    seen = []
    run.training.run(
        batches(run.samples, 0, 1, 2),
        lambda _: bool(seen.append([g["lr"] for g in run.optimizer.param_groups])),
    )
    assert seen == [[pytest.approx(1e-4), pytest.approx(1e-5)]]


def test_a_backbone_may_stay_as_it_is(home, tmp_path):
    folder = finetune(run_settings(home, tmp_path / "run", max_steps=1, freeze_vision=True))
    before, after = (load_file(f / "model.safetensors") for f in (home / "act", folder))
    same = {n for n in before if np.array_equal(before[n], after[n])}
    assert {n for n in before if "backbone" in n} <= same
    assert "model.action_head.weight" not in same


@pytest.mark.parametrize("backbone_rate", [1e-5, 3e-6])
def test_asked_to_stop_it_saves_and_goes_on_bit_for_bit(home, tmp_path, backbone_rate):
    base = changed(home, tmp_path, optimizer_lr_backbone=backbone_rate)
    config = run_settings(home, tmp_path / "whole", max_steps=3, image_aug=True)
    config = replace(config, vla_path=base)
    whole = finetune(config)
    part = replace(config, folder=str(tmp_path / "part"))
    stop = StopRequest()
    stop.ask("the test")
    assert not started(part).run(stop)
    again = finetune(part, resume=True)
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")
    files = [f / "model.safetensors" for f in (whole, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_one_camera_no_state_and_no_latent_are_trained_too(home, tmp_path):
    sizes = replace(TINY, cameras=1, state_dim=0, vae_layers=0)
    base = write_untrained(tmp_path / "plain", sizes, CAMERAS[:1], (64, 64))
    source = DatasetSource(str(home / "noise.hdf5"))
    config = run_settings(home, tmp_path / "run", max_steps=1, sources=(source,))
    policy = load_policy(finetune(replace(config, vla_path=str(base))), CPU)
    assert policy.needs.cameras == CAMERAS[:1] and policy.needs.state == 0


def test_episodes_need_no_instruction(home, tmp_path):
    path = write_noise(tmp_path / "silent.hdf5")
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            demo["instructions"][...] = ""
    source = DatasetSource(str(path), cameras=CAMERAS)
    finetune(run_settings(home, tmp_path / "run", max_steps=1, sources=(source,)))


# -- untrained checkpoints ------------------------------------------------------------------------


def test_the_command_writes_one_for_the_robot_of_a_dataset(home, tmp_path, capsys):
    point = EntryPoint("new", "vla_training.cli.new:new", "vla.commands")
    given = ["--dataset", str(home / "noise.hdf5"), "--camera", CAMERAS[1], "--chunk=3", "--json"]
    sizes = ["--width=32", "--heads=4", "--mlp=48"]
    for name in ("one", "two"):
        assert run_subcommand(point, ["act", str(tmp_path / name), *given, *sizes]) == 0
        assert json.loads(capsys.readouterr().out)["output"] == str(tmp_path / name)
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    found = LeRobotCheckpoint.read(tmp_path / "one", fitted=False)
    assert (found.cameras, found.state_dim, found.action_dim) == (CAMERAS[1:], 8, 7)
    assert found.image_shapes == {CAMERAS[1]: (64, 64)} and found.config["chunk_size"] == 3
    for words, problem in (
        (["act", str(tmp_path / "one"), *given], "already exists"),
        (
            ["pi05", str(tmp_path / "pi"), *given],
            "no untrained 'pi05' can be written; known: act, octo, openvla, smolvla",
        ),
        (["act", str(tmp_path / "x"), *given, "--heads=7"], "--width is 512, --heads 7"),
        (["act", str(tmp_path / "x"), *given, "--camera=side"], "no images of camera 'side'"),
        (["act", str(tmp_path / "x"), *given, "--text-width=512"], "--text-width is of smolvla"),
        (["smolvla", str(tmp_path / "x"), *given, "--heads=4"], "--heads is of act, not of smol"),
        (["smolvla", str(tmp_path / "x"), *given, "--image-size=80"], "give a multiple of 32"),
    ):
        with pytest.raises(VlaError, match=problem):
            run_subcommand(point, words)


def test_an_untrained_network_keeps_the_size_of_what_it_sees():
    from vla_inference.policies.act.untrained import begin

    torch.manual_seed(0)
    model = ACT(replace(TINY, width=64), vae=True)
    begin(model)
    with torch.no_grad():
        seen = model.backbone(torch.randn(1, 3, 96, 96))
    assert 0.1 < seen.std() < 10


def test_a_published_backbone_takes_the_place_of_the_random_one(home, tmp_path):
    weights = load_file(home / "act" / "model.safetensors")
    begin = "model.backbone."
    resnet = {n.removeprefix(begin): 2 * x for n, x in weights.items() if n.startswith(begin)}
    given = {**resnet, "fc.weight": np.zeros((3, 512), np.float32)}
    given["bn1.num_batches_tracked"] = np.zeros((), np.int64)
    path = tmp_path / "resnet18.safetensors"
    save_file(given, path)
    write_untrained(tmp_path / "new", TINY, CAMERAS, (64, 64), backbone=path)
    found = load_file(tmp_path / "new" / "model.safetensors")
    np.testing.assert_array_equal(found[f"{begin}conv1.weight"], resnet["conv1.weight"])
    for change, problem in (
        ({"conv1.weight": np.zeros((64, 3, 3, 3), np.float32)}, r"conv1.weight \[64, 3, 3, 3\]"),
        ({"conv1.weight": None}, "lacks 1 tensors of the backbone, such as conv1.weight"),
    ):
        save_file({n: x for n, x in {**resnet, **change}.items() if x is not None}, path)
        with pytest.raises(CheckpointError, match=problem):
            write_untrained(tmp_path / "wrong", TINY, CAMERAS, (64, 64), backbone=path)


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"lora_rank": 4}, "models of family act take no --lora-rank"),
        ({"train": "expert"}, "models of family act take no --train"),
        ({"action_dim": 6}, "--action-dim is 6, the network of .* takes 7"),
        ({"chunk": 8}, "models of family act take no --chunk"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(home, tmp_path, changes, problem):
    with pytest.raises(VlaError, match=problem):
        finetune(run_settings(home, tmp_path / "run", max_steps=1, **changes))


def test_images_of_several_sizes_are_refused(home, tmp_path):
    wide = DatasetSource(str(write_noise(tmp_path / "wide.hdf5", side=(32, 48))), cameras=CAMERAS)
    here = run_settings(home, tmp_path / "run").sources
    config = run_settings(home, tmp_path / "run", max_steps=8, sources=(*here, wide))
    with pytest.raises(DataError, match="an image is 48 x 32 pixels, the first one was 64 x 64"):
        finetune(config)


def test_a_base_without_processors_is_refused_before_training(home, tmp_path):
    base = Path(changed(home, tmp_path))
    (base / "policy_postprocessor.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no policy_postprocessor.json.*migrate_policy"):
        started(replace(run_settings(home, tmp_path / "run"), vla_path=str(base)))
