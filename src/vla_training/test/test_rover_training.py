"""Tests of training on a rover's demonstrations: what the model is asked, and what it answers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from vla_inference.openvla.config import ModelConfig
from vla_inference.openvla.model import VLA
from vla_inference.policies.registry import load_policy
from vla_inference.types import Observation, base_twist_spec
from vla_sim_bridge.generation.config import GenerateConfig
from vla_sim_bridge.generation.generate import generate
from vla_sim_bridge.generation.rover_answers import STEPS
from vla_training.datasets import open_dataset
from vla_training.small_model.auxiliary_targets import COLOURS, HALF_VIEW, NUMBERS
from vla_training.small_model.config import TrainConfig
from vla_training.small_model.episode_frames import frames_from_paths
from vla_training.small_model.train import train

SIZE = 64


def demonstrations(folder, task: str) -> str:
    size = {"camera_width": SIZE, "camera_height": SIZE}
    return str(generate(GenerateConfig(task=task, episodes=2, **size), folder / task, parallel=1))


@pytest.fixture(scope="module")
def reach(tmp_path_factory):
    return demonstrations(tmp_path_factory.mktemp("rover"), "Rover_D0")


def test_the_target_is_where_it_is_driven_to_and_is_named(reach):
    frames = frames_from_paths([reach], SIZE)
    assert frames.spec == base_twist_spec() and frames.actions.shape[1] == 2
    places = frames.scene[:, :2]
    assert places[:, 0].nan_to_num(1).min() > 0  # ahead
    angles = torch.atan2(places[:, 1], places[:, 0]).nan_to_num(0)
    assert angles.abs().max() <= HALF_VIEW + 1e-6
    last = torch.nonzero(frames.episode == 0).max()
    assert places[last, 0] == pytest.approx(0.55, abs=0.2) and abs(places[last, 1]) < 0.15
    assert (frames.scene[:, 2].isnan() == places[:, 0].isnan()).all()
    for row in (0, len(frames) - 1):
        colour = COLOURS[int(frames.scene[row, NUMBERS])]
        said = {frames.sentences[i] for i in frames.wordings[frames.text[row]]}
        assert len(said) > 20 and all(colour in sentence for sentence in said)


def test_the_same_image_is_asked_about_every_other_object_with_what_would_be_done(reach):
    frames = frames_from_paths([reach], SIZE)
    other = frames.other
    assert (other.text >= 0).all() and (other.end - other.start == STEPS).all()
    for row in range(0, len(frames), 5):
        index = int(other.scene[row, NUMBERS])
        said = {frames.sentences[i] for i in frames.wordings[other.text[row]]}
        assert all(COLOURS[index] in sentence for sentence in said)
        assert index != frames.scene[row, NUMBERS]
        place = other.scene[row, :2]
        assert torch.equal(place, other.scene[row, 9 + 3 * index :][:2]) or place.isnan().all()
    first = frames.episode == 0
    assert len(other.scene[first, NUMBERS].unique()) == 2


def test_what_would_be_done_is_another_motion_and_a_search_for_what_is_out_of_sight(reach):
    frames = frames_from_paths([reach], SIZE)
    answers = frames.actions[frames.other.start]
    asked_now = frames.actions[frames.start]
    assert (answers - asked_now)[:, 1].abs().mean() > 0.3  # rad/s
    unseen = frames.other.scene[:, 1].isnan()
    assert unseen.any() and (answers[unseen] == torch.tensor([0.0, 0.8])).all()


def test_the_narrow_model_is_less_than_a_quarter_of_the_other():
    shapes = [TrainConfig(narrow=narrow).model_json() for narrow in (False, True)]
    wide, narrow = (
        sum(p.numel() for p in VLA(ModelConfig.from_json(shape)).parameters()) for shape in shapes
    )
    assert narrow < wide / 4


def test_a_model_is_trained_and_answers_with_velocities(reach, tmp_path):
    shape = {"layers": 1, "image_size": SIZE, "narrow": True}
    config = TrainConfig(steps=2, batch_size=4, tensorboard=False, **shape)
    checkpoint = train([reach], tmp_path / "run", config, 0, report=lambda _: None)
    chunk = load_policy(checkpoint).act(
        Observation({"agentview": np.zeros((SIZE, SIZE, 3), np.uint8)}, "go to the red ball")
    )
    assert chunk.spec == base_twist_spec() and chunk.actions.shape == (8, 2)
    assert np.isfinite(chunk.actions).all()


@pytest.mark.parametrize("task", ["RoverGate_D0", "RoverWord_D0"])
def test_other_tasks_are_read_with_their_sentences(tmp_path, task):
    path = demonstrations(tmp_path, task)
    frames = frames_from_paths([path], SIZE)
    told = open_dataset(path)[0].instructions
    changes = sum(a != b for a, b in itertools.pairwise(told))
    assert len(frames) and changes == (task == "RoverWord_D0")
