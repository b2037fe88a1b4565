"""Tests of training: it learns, resumes exactly, and inference loads its checkpoint."""

from __future__ import annotations

import copy
import math
import threading
from dataclasses import replace
from functools import partial

import h5py
import numpy as np
import pytest
import torch
from finetune_runs import write_noise
from safetensors.torch import load_file
from small_runs import TINY, make_frames, make_trainer

from vla_inference.checkpoints.load import load_config
from vla_inference.episodes.hdf5 import write_columns
from vla_inference.errors import DataError, VlaError
from vla_inference.policies.normalisation import Normalisation
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.types import Observation
from vla_training.cli.train import train
from vla_training.small_model.auxiliary_targets import scene_of
from vla_training.small_model.frames import action_statistics, load_frames
from vla_training.small_model.reset_images import ResetImages
from vla_training.small_model.tokenizer import task_sentences, train_tokenizer
from vla_training.small_model.train import (
    TrainConfig,
    Trainer,
    _quiet,
    begin_with,
    grid_positions,
    spawn,
)


def test_loss_falls_on_a_handful_of_frames():
    losses = []
    trainer = make_trainer(steps=60, batch_size=16, shift=0, brightness=0.0, channel=0.0)
    trainer.run(lambda r: losses.append(r["loss"]), every=10)
    assert losses[-1] < 0.6 * losses[0]


def test_resumed_run_equals_an_unbroken_one(tmp_path):
    whole = make_trainer()
    whole.run()
    first = make_trainer()
    saved = tmp_path / "state"

    class Stopped(Exception):
        pass

    def stop():
        first.save(saved)
        raise Stopped

    with pytest.raises(Stopped):
        first.run(every=3, save=stop)
    second = make_trainer()
    second.load(saved)
    assert second.step == 3
    second.run()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key]), key
    for key, value in whole.average.items():
        assert torch.equal(value, second.average[key]), key


def test_a_compiled_run_goes_like_a_plain_one(monkeypatch):
    """Traced whole, in one graph; what inductor makes of it is not asked here."""
    trace = partial(torch.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", trace)
    found = []
    for options in ({}, {"compile": True}):
        make_trainer(**options).run(lambda r: found.append((r["loss"], r["scene"])))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3)


def test_resuming_with_anything_that_changes_samples_is_refused(tmp_path):
    first, saved = make_trainer(), tmp_path / "state"
    first.save(saved)
    for changed in ({"learning_rate": 1.0}, {"steps": 99}, {"validation": 0.5}, {"seed": 5}):
        (name,) = changed
        with pytest.raises(VlaError, match=rf"was saved with {name} .*, now it is"):
            make_trainer(**changed).load(saved)
    with pytest.raises(VlaError, match="was saved with num_transitions 24, now it is 30"):
        make_trainer(make_frames(5)).load(saved)
    make_trainer(every=7).load(saved)


def test_trainings_side_by_side_on_one_host_do_not_meet(tmp_path, monkeypatch):
    """Two of two processes each, on the CPU, at the same time."""
    monkeypatch.setenv("MASTER_PORT", "1")  # whatever is set: none is used
    data = write_noise(tmp_path / "demo.hdf5")
    config = TrainConfig(batch_size=2, steps=1, layers=1, wordings=0, other_order=0.0)
    failed = []

    def run(name: str) -> None:
        try:
            args = (2, False, [str(data)], str(tmp_path / name), config, False, _quiet)
            spawn(2, args)
        except Exception as error:  # told below, in the test's own thread
            failed.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for name in "ab":
        assert (tmp_path / name / "checkpoint" / "model.safetensors").is_file()


def test_a_model_knows_the_words_of_all_shares(tmp_path):
    """Two processes, each with a dataset of its own."""
    data = [write_noise(tmp_path / f"{name}.hdf5") for name in ("grasp", "release")]
    for path in data:
        with h5py.File(path, "r+") as file:
            for demo in file["data"].values():
                demo["instructions"][:] = f"{path.stem} it"
    config = TrainConfig(batch_size=2, steps=1, layers=1, wordings=0, shares=True)
    spawn(2, (2, False, [str(p) for p in data], str(tmp_path / "run"), config, False, _quiet))
    assert load_config(tmp_path / "run" / "checkpoint").words == {"grasp", "release", "it"}


def test_checkpoint_answers_as_the_trained_model(tmp_path):
    trainer = make_trainer()
    trainer.run()
    folder = trainer.export(tmp_path / "checkpoint", torch.float32)
    policy = OpenVLAPolicy.from_pretrained(folder, device="cpu")
    image = trainer.frames.images[0].numpy()
    text = trainer.frames.sentences[0]
    chunk = policy.predict_action(image, text)
    assert chunk.actions.shape == (8, 7)
    trainer.model.load_state_dict(trainer.average)
    batch = trainer.batch(torch.tensor([0]))
    with torch.no_grad():
        pixels = (batch.images[:, 0].permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
        context = trainer.model.context(batch.ids, pixels)
        lengths = batch.lengths + trainer.model_config.num_patches
        raw = trainer.model.predict_chunk(context, lengths)[0].numpy()
    spaces = policy.action_spaces["generated"]["action"]
    low, high = np.array(spaces["q01"]), np.array(spaces["q99"])
    expected = np.where(spaces["mask"], 0.5 * (raw + 1) * (high - low) + low, raw)
    np.testing.assert_allclose(chunk.actions, expected, atol=1e-5)


def test_two_cameras_and_a_state_reach_the_checkpoint(tmp_path):
    """It answers as it was trained, and each image and the state change the answer."""
    rng, one = np.random.default_rng(1), make_frames()
    images = torch.from_numpy(rng.integers(0, 256, (len(one), 2, 32, 32, 3), dtype=np.uint8))
    states = torch.from_numpy(rng.normal(size=(len(one), 8)).astype(np.float32))
    head = {**TINY["action_head"], "num_images": 2, "proprio_dim": 8}
    trainer = Trainer(
        replace(one, images=images, states=states),
        TrainConfig(batch_size=8, steps=6, shift=2, validation=0.0, ema=0.0),
        "cpu",
        {**TINY, "action_head": head},
    )
    trainer.run()
    trainer.model.load_state_dict(trainer.average)
    folder = trainer.export(tmp_path / "checkpoint", torch.float32)
    policy = OpenVLAPolicy.from_pretrained(folder, device="cpu")
    assert policy.needs.images == 2 and policy.needs.state == 8

    def answer(first, second, state):
        shown = {"agentview": first.numpy(), "wrist": second.numpy()}
        return policy.act(Observation(shown, one.sentences[0], state.numpy())).actions

    with torch.no_grad():
        normalised, _ = trainer.objective.eval().predict(trainer.batch(torch.tensor([0])))
    scale = Normalisation.from_statistics(trainer.statistics["generated"]["action"])
    expected = scale.denormalise(normalised[0].numpy().astype(np.float64))
    found = answer(*images[0], states[0])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    others = [answer(images[1, 0], images[0, 1], states[0])]
    others += [answer(images[0, 0], images[1, 1], states[0]), answer(*images[0], states[1])]
    assert all(np.abs(found - other).max() > 1e-6 for other in others)


def test_low_precision_is_that_of_where_the_weights_are():
    objective = make_trainer().objective
    objective.autocast = torch.bfloat16
    with objective.low_precision():
        a = torch.ones(2, 2)
        assert (a @ a).dtype == torch.bfloat16
    assert objective.to("meta").device.type == "meta"  # not where it was made


def test_padding_a_prompt_changes_no_answer():
    model = make_trainer().model.eval()
    context = torch.randn(2, 14, 32)
    lengths = torch.tensor([14, 9])
    with torch.no_grad():
        together = model.predict_chunk(context, lengths)
        alone = model.predict_chunk(context[1:, :9])
    torch.testing.assert_close(together[1], alone[0], atol=1e-5, rtol=1e-4)


def test_targets_stop_at_the_end_of_the_episode():
    trainer = make_trainer()
    inside = trainer.batch(torch.tensor([0, 4, 5])).inside
    assert inside.sum(1).tolist() == [6, 2, 1]


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    with pytest.raises(VlaError, match="batch size 8 cannot be shared by 3"):
        make_trainer()


def test_loss_that_is_not_finite_stops_training():
    frames = make_frames()
    frames.scene[:, :9] = math.inf
    with pytest.raises(VlaError, match="loss"):
        make_trainer(frames).run(every=1)


def test_missing_data_set_is_named(tmp_path):
    with pytest.raises(DataError, match="no dataset"):
        load_frames([tmp_path / "nothing.hdf5"])


def test_missing_camera_lists_what_there_is(tmp_path):
    path = write_noise(tmp_path / "demo.hdf5")
    with pytest.raises(DataError, match="cameras: agentview, robot0_eye_in_hand"):
        load_frames([path], "frontview")
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            del demo["obs"]
    with pytest.raises(DataError, match="cameras: none"):
        load_frames([path])


def test_statistics_leave_the_gripper_alone():
    statistics = action_statistics(make_frames())
    assert statistics["action"]["mask"] == [True] * 6 + [False]
    assert statistics["num_trajectories"] == 4


def test_tokenizer_is_the_same_every_time_and_reads_any_script():
    one, two = (train_tokenizer(task_sentences(20)) for _ in range(2))
    assert one.to_str() == two.to_str()
    text = "put the 赤い block on the куб"
    assert one.decode(one.encode(text).ids) == text


def test_grid_positions_tell_all_patches_apart():
    rows = grid_positions(196, 256)[0]
    distances = torch.cdist(rows, rows) + 1e9 * torch.eye(196)
    assert distances.min() > 0.1


def demonstration(tmp_path, task: str, poses: dict, roles: dict, signals: dict) -> h5py.Group:
    """Two steps; poses: object -> [2, 3] m."""

    def frames(positions):
        matrices = np.tile(np.eye(4), (2, 1, 1))
        matrices[:, :3, 3] = positions
        return matrices

    info = {
        "eef_pose": frames(np.zeros(3)),
        "object_poses": {n: frames(p) for n, p in {**poses, **roles}.items()},
        "subtask_term_signals": signals,
    }
    rows = {k: np.zeros((2, n)) for k, n in {"actions": 7, "states": 3, "rewards": 1}.items()}
    data = {**rows, "dones": np.zeros(2), "instructions": ["a", "a"], "obs": {}}
    group = h5py.File(tmp_path / f"{task}.hdf5", "w").create_group("demo")
    write_columns(group, {**data, "datagen_info": info, "attrs": {"task": task}})
    return group


A, B, C = ([[x, 0, 0]] * 2 for x in (0.1, 0.2, 0.4))


@pytest.mark.parametrize(
    ("task", "poses", "roles", "signals", "lifted", "goes"),
    [
        ("Stack_D2", {"cubeA": A, "cubeB": B}, {}, {}, [1, 1], [1, 1]),
        ("Stack_L", {"cubeA": A, "cubeB": B}, {"moved": B, "base": A}, {}, [2, 2], [-1, -1]),
        ("Lift_D1", {"cube": B}, {}, {}, [2, 2], [0, 0]),
        (
            "StackThree_D0",
            {"cubeA": A, "cubeB": B, "cubeC": C},
            {},
            {"stack_1": [0, 1]},
            [1, 4],
            [1, -3],
        ),
    ],
)
def test_scene_is_about_the_objects_of_the_step_by_their_roles(
    tmp_path, task, poses, roles, signals, lifted, goes
):
    group = demonstration(tmp_path, task, poses, roles, signals)
    scene = scene_of(group, np.zeros((2, 8), np.float32))
    np.testing.assert_allclose(scene[:, 0], lifted, atol=1e-6)
    np.testing.assert_allclose(scene[:, 3], goes, atol=1e-6)


def test_a_deeper_model_begins_as_the_checkpoint_it_starts_from(tmp_path):
    first = make_trainer()
    checkpoint = first.export(tmp_path / "checkpoint", torch.float32)
    deeper = copy.deepcopy(TINY)
    deeper["text_config"]["num_hidden_layers"] = 3
    config = TrainConfig(batch_size=8, validation=0.0, start=str(checkpoint))
    second = Trainer(make_frames(), config, "cpu", deeper)
    context = torch.randn(2, 14, 32)
    with torch.no_grad():
        one, two = (t.model.predict_chunk(context) for t in (first, second))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
    with pytest.raises(VlaError, match="there is no"):
        begin_with(second.model, tmp_path)


def test_what_begins_with_a_checkpoint_reads_by_its_tokenizer(tmp_path):
    first = make_trainer()
    first.tokenizer = train_tokenizer(["In: What action should the robot take to xyzzy?"], 300)
    checkpoint = first.export(tmp_path / "checkpoint")
    config = TrainConfig(batch_size=8, validation=0.0, start=str(checkpoint))
    second = Trainer(make_frames(), config, "cpu", TINY)
    assert second.tokenizer.to_str() == first.tokenizer.to_str()
    (checkpoint / "tokenizer.json").unlink()  # an older one: a new one is trained
    with pytest.warns(UserWarning, match="a new one is made"):
        third = Trainer(make_frames(), config, "cpu", TINY)
    assert third.tokenizer.to_str() != first.tokenizer.to_str()


def test_a_checkpoint_knows_the_words_it_was_trained_with(tmp_path):
    trainer = make_trainer()
    config = load_config(trainer.export(tmp_path / "ck"))
    said = " ".join(trainer.frames.sentences)
    assert config.words and not config.unknown_words(said)
    assert config.unknown_words(f"{said} Flurb, please flurb") == ["flurb", "please"]


@pytest.mark.parametrize("rate", [-1.0, 0.0, float("nan"), float("inf")])
def test_a_learning_rate_that_cannot_be_is_refused(tmp_path, rate):
    with pytest.raises(
        VlaError, match=r"--learning-rate is .*; give (more than 0|a finite number)"
    ):
        train(dataset=[tmp_path / "no.hdf5"], output=tmp_path / "run", learning_rate=rate)
    assert not (tmp_path / "run").exists()


def test_the_command_goes_on_from_a_checkpoint_with_reset_images_and_averages(tmp_path):
    data = write_noise(tmp_path / "demo.hdf5", episodes=2, length=3, side=(224, 224))
    usual = {"dataset": [data], "batch_size": 2, "steps": 1, "layers": 1, "devices": 0}
    assert train(**usual, output=tmp_path / "first") == 0
    first = tmp_path / "first" / "checkpoint"
    options = {"start": str(first), "average_with": first, "average_share": 0.25}
    more = {"reset_images": ["Stack_L:2:5"], "parallel": 1, "wordings": 4}
    assert train(**usual, **options, **more, output=tmp_path / "second") == 0
    (reset_image,) = (tmp_path / "second" / "reset_images").iterdir()
    assert len(ResetImages(reset_image)) == 2
    checkpoints = (first, tmp_path / "second" / "checkpoint", tmp_path / "second" / "averaged")
    before, after, mixed = (load_file(c / "model.safetensors") for c in checkpoints)
    changed = [k for k in after if not torch.equal(before[k], after[k])]
    assert changed and set(mixed) == set(after)
    for key in changed:
        expected = before[key].float().lerp(after[key].float(), 0.25).to(after[key].dtype)
        assert torch.equal(mixed[key], expected), key
    OpenVLAPolicy.from_pretrained(checkpoints[2], device="cpu")
    with pytest.raises(VlaError, match="has 1 layers, the model to train 2; give --layers 1"):
        train(**{**usual, "layers": 2}, average_with=first, output=tmp_path / "third")
    assert not (tmp_path / "third").exists()
    with pytest.raises(VlaError, match="contains an earlier run"):
        train(**usual, output=tmp_path / "second")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reset_images": ["Stack_L"]}, "give TASK:COUNT:SEED"),
        ({"reset_images": ["Stack_L:0:1"]}, "give TASK:COUNT:SEED"),
        ({"average_with": "nowhere"}, "there is no .*model.safetensors"),
        ({"average_share": 1.5}, "--average-share is 1.5; give 0 to 1"),
        ({"start": "nowhere"}, "there is no nowhere/model.safetensors"),
        ({"devices": -1}, "--devices is -1; give a number of GPUs"),
        ({"other_order": 1.5}, "--other-order is 1.5; give 0 to 1"),
        ({"parallel": 0}, "--parallel is 0; give at least 1, or -1"),
        ({"devices": -1}, "--devices is -1; give a number of GPUs, or 0"),
        ({"devices": 0, "processes": 0}, "--processes is 0; give at least 1"),
        ({"devices": 1, "processes": 2}, "--processes is 2; give .* only with --devices 0"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_made(tmp_path, options, message):
    if "average_with" in options:
        options = {"average_with": tmp_path / options["average_with"]}
    with pytest.raises(VlaError, match=message):
        train(dataset=[tmp_path / "no.hdf5"], output=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
