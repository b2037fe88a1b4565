"""Tests of past images as inputs: from the datasets of all formats to training and rollouts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_world import FakeWorld
from tiny_model import tiny_model

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.errors import VlaError
from vla_inference.openvla.config import HeadConfig, ModelConfig
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.registry import load_policy
from vla_inference.types import Episode, Observation, Step, eef_delta_spec
from vla_sim_bridge.envs.base import StepResult
from vla_sim_bridge.evaluation.rollout import run_episode
from vla_training.datasets import open_dataset
from vla_training.datasets.writers import DataForm, open_writer
from vla_training.evaluation.config import EvalConfig
from vla_training.evaluation.evaluate import evaluate
from vla_training.finetune.families.openvla.format import OpenVLAFormat
from vla_training.finetune.families.openvla.model_setup import choose_head
from vla_training.loader.frame_index import DatasetSource, index_frames
from vla_training.loader.mixture import Samples, mix
from vla_training.small_model.episode_frames import frames_from_paths
from vla_training.small_model.train import TrainConfig, Trainer, train

CAMERAS = ("agentview", "robot0_eye_in_hand")
LENGTHS, SIDE = (5, 6), 32
FORMS: dict[str, dict] = {"hdf5": {}, "rlds": {}, "lerobot": {}}  # options of the writers


def image(episode: int, step: int, camera: int, side: int = SIDE) -> np.ndarray:
    """One colour, which says what is seen."""
    colour = (40 + 90 * camera, 20 * episode + 60, 20 * step)
    return np.full((side, side, 3), colour, np.uint8)


def world_set(path: Path, kind: str) -> Path:
    """Episodes of LENGTHS, two cameras and a state, at 20 Hz, in one of the formats."""
    spec = eef_delta_spec("rotvec", "base", 0.05)
    form = DataForm("seen", spec, dict.fromkeys(CAMERAS, (SIDE, SIDE)), state=8)
    with open_writer(path, kind, form, **FORMS[kind]) as made:
        for episode, length in enumerate(LENGTHS):
            steps = []
            for step in range(length):
                images = {c: image(episode, step, k) for k, c in enumerate(CAMERAS)}
                state = np.full(8, episode + 0.1 * step, np.float32)
                seen = Observation(images, "lift the cube", state)
                steps.append(Step(seen, np.full(7, 0.05 * step)))
            made.write(Episode(steps, spec, {"outcome": "success"}))
    return path


def seen_of(images: np.ndarray) -> list[tuple[int, int, int]]:
    """(camera, episode, step) of each image [n, H, W, 3], by its colour, as `image` has it."""
    colours = images.reshape(len(images), -1, 3).mean(1)
    offset, scale = np.array([40, 60, 0]), np.array([90, 20, 20])
    return [tuple(map(int, row)) for row in np.rint((colours - offset) / scale)]


def wanted(episode: int, step: int, history: int, stride: int) -> list[tuple[int, int, int]]:
    steps = [step, *(max(0, step - ago * stride) for ago in range(1, history + 1))]
    return [(camera, episode, at) for at in steps for camera in range(len(CAMERAS))]


@pytest.fixture(scope="module", params=["hdf5", "lerobot", "rlds"])
def recorded(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    return world_set(folder / ("set.hdf5" if request.param == "hdf5" else "set"), request.param)


def test_the_small_models_batches_hold_the_past(recorded):
    config = TrainConfig(
        cameras=CAMERAS, history=2, history_interval=0.1, state=True, batch_size=4, wordings=0
    )
    frames = frames_from_paths([recorded], SIDE, cameras=CAMERAS, states=True)
    shape = tiny_model()
    shape["action_head"] |= config.model_json()["action_head"] | {"proprio_dim": 8}
    trainer = Trainer(frames, config, "cpu", shape)
    batch = trainer.batch(torch.arange(len(frames)))
    frame = 0
    for episode, length in enumerate(LENGTHS):
        for step in range(length):
            assert seen_of(batch.images[frame].numpy()) == wanted(episode, step, 2, 2)
            frame += 1
    assert batch.proprio.shape == (sum(LENGTHS), 8)
    loss, _ = trainer.objective(batch)
    assert torch.isfinite(loss)


def test_ofts_samples_hold_the_past(recorded, tmp_path):
    head = choose_head(HeadConfig(), "l1", 8, 2, 8, history=2, interval=0.1)
    assert (head.num_images, head.views, head.history_interval) == (6, 2, 0.1)
    base = load_policy(str(write_random_checkpoint(tmp_path / "base")), LoadOptions(device="cpu"))
    config = dataclasses.replace(base.config, head=head)
    source = DatasetSource(str(recorded), cameras=CAMERAS)
    index = index_frames(source, tmp_path, proprio=True)
    mixture, _ = mix([source], [index], 7)
    form = OpenVLAFormat(config, base.prompt.tokenizer, mixture.statistics, mixture.spaces)
    samples = Samples(mixture, form, 0, False)
    for frame in range(len(index)):
        episode, step = index.locate(frame)
        assert seen_of(samples.sample_of(0, frame)["images"]) == wanted(episode, step, 2, 2)


@pytest.mark.parametrize("interval", [0.12, 0.01])
def test_an_interval_between_steps_is_refused(tmp_path, interval):
    path = world_set(tmp_path / "set.hdf5", "hdf5")
    config = TrainConfig(history=1, history_interval=interval, batch_size=4, wordings=0)
    frames = frames_from_paths([path], SIDE)
    shape = tiny_model()
    shape["action_head"] |= config.model_json()["action_head"]
    with pytest.raises(VlaError, match=r"apart, steps last 0\.05 s; make the interval a multiple"):
        Trainer(frames, config, "cpu", shape)


# -- checkpoints, offline evaluation, rollouts --------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A checkpoint with two cameras, one past image of each and a state, by `vla train`'s path."""
    folder = tmp_path_factory.mktemp("trained")
    data = world_set(folder / "set.hdf5", "hdf5")
    config = TrainConfig(
        batch_size=4,
        steps=2,
        layers=1,
        image_size=SIDE,
        cameras=CAMERAS,
        history=1,
        history_interval=0.2,
        state=True,
        wordings=0,
        validation=0.0,
        tensorboard=False,
    )
    return train([str(data)], folder / "run", config, devices=0, report=lambda _: None)


def test_a_checkpoint_says_what_past_it_needs(trained):
    policy = load_policy(str(trained), LoadOptions(device="cpu", engine="plain"))
    needs = policy.needs
    assert (needs.images, needs.views, needs.state) == (4, 2, 8)
    assert (needs.history, needs.interval) == (1, 0.2)
    policy.warm_up()


def test_the_cpu_engine_answers_as_the_plain_one(trained):
    images = {str(k): image(0, k, k % 2) for k in range(4)}
    seen = Observation(images, "lift the cube", np.full(8, 0.2, np.float32))
    plain, fast = (
        load_policy(str(trained), LoadOptions(device="cpu", engine=name, dtype="float32"))
        for name in ("plain", "torch")
    )
    assert "torch" in fast.placement
    np.testing.assert_allclose(plain.act(seen).actions, fast.act(seen).actions, atol=1e-5)


class Recorder:
    """Takes the place of a trained policy, and keeps what it sees."""

    def __init__(self, trained: Path):
        self.policy = load_policy(str(trained), LoadOptions(device="cpu", engine="plain"))
        self.seen: list[list[tuple[int, int, int]]] = []

    def act(self, seen: Observation):
        assert list(seen.images) == [*CAMERAS, *(f"{c}-1" for c in CAMERAS)]
        self.seen.append(seen_of(np.stack(list(seen.images.values()))))
        return self.policy.act(seen)


class ColouredWorld(FakeWorld):
    """Its images say which step of which episode they are of."""

    gripper, episode = 1.0, -1

    def reset(self, rng: np.random.Generator) -> None:
        super().reset(rng)
        self.episode += 1

    def hold(self) -> StepResult:
        self.steps += 1
        return StepResult(False, 0.0)

    def observation(self) -> Observation:
        images = {c: image(self.episode, self.steps, k) for k, c in enumerate(CAMERAS)}
        return Observation(images, self.instruction, np.zeros(8, np.float32))


@pytest.mark.parametrize("execute", [1, 3, 4, 8])
def test_rollouts_give_the_past_whatever_is_executed_at_once(trained, execute):
    world, model = ColouredWorld(12), Recorder(trained)
    for _ in range(2):
        run_episode(world, model.act, 0, 0, 12, execute, needs=model.policy.needs)
    looks = range(0, 12, execute)
    assert model.seen == [wanted(e, step, 1, 4) for e in range(2) for step in looks]


def test_offline_evaluation_gives_the_past(trained, tmp_path, monkeypatch):
    model = Recorder(trained)
    policy = load_policy(str(trained), LoadOptions(device="cpu"))
    monkeypatch.setattr(policy, "act", model.act, raising=False)
    monkeypatch.setattr(policy, "warm_up", lambda: 0.0, raising=False)
    data = open_dataset(world_set(tmp_path / "set.hdf5", "hdf5"))
    evaluate(policy, data, EvalConfig(cameras=CAMERAS))
    assert model.seen == [
        wanted(e, step, 1, 4) for e, length in enumerate(LENGTHS) for step in range(length)
    ]


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({"history": 2, "history_interval": 0.2}, "num_images counts them all"),
        ({"history": 1}, "give both, or none"),
        ({"history": 1, "history_interval": 0}, "it must be a number above 0"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(head, words):
    shape = tiny_model()
    shape["action_head"] |= {"num_images": 2, **head}
    with pytest.raises(VlaError, match=words):
        ModelConfig.from_json(shape)
