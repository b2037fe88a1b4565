"""Tests of reworded sentences, the opposite order and reset images in training."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import torch
from tiny_model import tiny_model

from vla_inference.episodes.hdf5 import write_columns, write_header
from vla_inference.episodes.robosuite import to_robosuite
from vla_inference.errors import DataError, VlaError
from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.tasks import Scene
from vla_sim_bridge.tasks.stack_language import HELD_OUT, TRAIN
from vla_training.small_model.auxiliary_targets import (
    COLOURS,
    NUMBERS,
    SIZE,
    other_order,
    wordings,
)
from vla_training.small_model.episode_frames import frames_from_paths
from vla_training.small_model.frames import load_frames
from vla_training.small_model.instruction_following import instruction_following
from vla_training.small_model.model import SceneHead
from vla_training.small_model.reset_images import ResetImages, make_reset_image, write_reset_images
from vla_training.small_model.train import TrainConfig, Trainer

SIDE, LENGTH = 32, 6
TINY = tiny_model(layers=1)
SCENE = Scene({"cubeA": "red", "cubeB": "blue"}, {"moved": "cubeB", "base": "cubeA"})
PLACES = {"cubeA": (0.1, 0.0), "cubeB": (0.0, 0.2)}


def poses(place, length: int = LENGTH) -> np.ndarray:
    matrices = np.tile(np.eye(4), (length, 1, 1))
    matrices[:, :2, 3] = place
    return matrices


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    """Two demonstrations of Stack_L, grasped from step 4 on, and one of Lift_D1."""
    path = tmp_path_factory.mktemp("data") / "demo.hdf5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        write_header(file, "Stack_L", 0, {})
        for i, task in enumerate(("Stack_L", "Stack_L", "Lift_D1")):
            objects = {n: poses(p) for n, p in PLACES.items()}
            objects |= {role: objects[n] for role, n in SCENE.roles.items()}
            if task == "Lift_D1":
                objects = {"cube": poses((0.3, 0.3))}
            record = {"colours": SCENE.colours, "roles": SCENE.roles} if i < 2 else {}
            data = {
                "actions": to_robosuite(rng.uniform(-0.04, 0.04, (LENGTH, 7))),
                "states": np.zeros((LENGTH, 3)),
                "rewards": np.zeros(LENGTH),
                "dones": np.zeros(LENGTH),
                "instructions": ["as it was recorded"] * LENGTH,
                "obs": {
                    "agentview_image": np.full((LENGTH, SIDE, SIDE, 3), 40 * i, np.uint8),
                    "robot0_state": np.zeros((LENGTH, 8), np.float32),
                },
                "datagen_info": {
                    "eef_pose": poses((0, 0)),
                    "object_poses": objects,
                    "subtask_term_signals": {"grasp": np.arange(LENGTH) >= 4},
                },
                "attrs": {"task": task, "scene": json.dumps(record)},
            }
            write_columns(file["data"].create_group(f"demo_{i}"), data, None)
    return path


@pytest.fixture(scope="module")
def sim():
    simulation = Simulation("Stack_L", width=SIDE, height=SIDE)
    yield simulation
    simulation.close()


@pytest.fixture(scope="module")
def reset_images(sim, tmp_path_factory):
    path = tmp_path_factory.mktemp("reset_images") / "reset_images.hdf5"
    assert write_reset_images(path, sim, 5, range(1, 6, 2), 3) == 3
    return path


def test_sentences_fit_the_scene_and_are_of_the_language_trained_on():
    said = wordings("Stack_L", SCENE, 300)
    assert said == wordings("Stack_L", SCENE, 300)
    assert set(said) <= set(TRAIN.sentences(a="blue", b="red"))
    turned = wordings("Stack_L", other_order(SCENE), 300)
    assert set(turned) <= set(TRAIN.sentences(a="red", b="blue"))
    held_out = set(HELD_OUT.sentences(a="blue", b="red"))
    assert not held_out & set(said) and len(set(said)) > 150


@pytest.mark.parametrize("task", ["Stack_D0", "Stack_D3", "Stack_D4", "unheard of"])
def test_a_recorded_sentence_stays_where_it_is_not_for_a_whole_episode(task):
    assert wordings(task, Scene({"cubeA": "red", "cubeB": "blue"}), 4) is None


def test_a_reset_image_is_reproducible_and_knows_both_orders(sim, reset_images):
    data = ResetImages(reset_images)
    reset_image = make_reset_image(sim, 5, 3, 3)
    np.testing.assert_array_equal(data.images(1, 2)[0], reset_image["image"])
    np.testing.assert_array_equal(data.actions[1], reset_image["actions"])
    asked, other = reset_image["scenes"]
    # the gripper to the other block is the way to the first one, and on
    np.testing.assert_allclose(other[:3], asked[:3] + asked[3:6], atol=1e-5)
    np.testing.assert_allclose(other[3:6], -asked[3:6], atol=1e-5)
    for scene, actions in zip(reset_image["scenes"], reset_image["actions"], strict=True):
        assert actions[0, :2] @ scene[:2] > 0  # the expert sets off to it


def test_reset_images_of_a_task_without_two_roles_are_refused(tmp_path):
    lift = Simulation("Lift", width=SIDE, height=SIDE)
    with pytest.raises(VlaError, match="Lift_D0 has no other order"):
        write_reset_images(tmp_path / "s.hdf5", lift, 0, range(1), 1)
    assert not (tmp_path / "s.hdf5").exists()


def test_frames_have_the_other_order_until_the_grasp(episodes, reset_images):
    frames = load_frames([episodes, reset_images], count=8)
    known = frames.other.text >= 0
    assert known.tolist() == ([True] * 4 + [False] * 2) * 2 + [False] * 6 + [True] * 3
    np.testing.assert_allclose(frames.scene[0, :2], [0, 2], atol=1e-6)
    np.testing.assert_allclose(frames.other.scene[0, :2], [1, 0], atol=1e-6)
    assert frames.episode.tolist() == [0] * 6 + [1] * 6 + [2] * 6 + [3, 4, 5]
    assert (frames.episodes, frames.recorded, len(frames.actions)) == (3, 18, 18 + 2 * 9)
    data = ResetImages(reset_images)
    for order, where in enumerate((frames, frames.other)):
        for i in range(3):
            rows = frames.actions[where.start[18 + i] : where.end[18 + i]]
            np.testing.assert_array_equal(rows, data.actions[i, order])

    def said(text: int) -> set[str]:
        return {frames.sentences[i] for i in frames.wordings[text]}

    assert said(frames.text[0]) <= set(TRAIN.sentences(a="blue", b="red"))
    assert said(frames.other.text[0]) <= set(TRAIN.sentences(a="red", b="blue"))
    as_it_was = load_frames([episodes], count=0)
    assert as_it_was.sentences == ["as it was recorded"] and as_it_was.other is None


def test_a_batch_asks_for_the_other_order_with_its_answer_and_no_action(episodes, reset_images):
    frames = load_frames([episodes, reset_images], count=8)
    config = TrainConfig(batch_size=8, shift=0, validation=0.0, other_order=1.0)
    trainer = Trainer(frames, config, "cpu", TINY)
    index = torch.tensor([0, 5, 13, 18])  # before and after the grasp, lifting, a reset image
    drawn = trainer.batch(index, torch.Generator().manual_seed(0))
    turned = [True, False, False, True]
    expected = [w.scene[i] for i, w in zip(index, _which(frames, turned), strict=True)]
    torch.testing.assert_close(drawn.scene, torch.stack(expected), equal_nan=True)
    assert drawn.inside.sum(1).tolist() == [0, 1, 5, 3]
    plain = trainer.batch(index)
    assert plain.inside.sum(1).tolist() == [6, 1, 5, 3]
    ids = {tuple(trainer.batch(index, g).ids[3].tolist()) for g in _generators(12)}
    assert len(ids) > 3 and tuple(plain.ids[3].tolist()) not in ids
    losses = []
    trainer.batches.config = TrainConfig(batch_size=8, steps=2, shift=0)
    trainer.loop.config = trainer.batches.config.loop
    trainer.run(lambda r: losses.append(r["loss"]), every=1)
    assert all(np.isfinite(losses))


def answered(scene: torch.Tensor) -> torch.Tensor:
    """A scene as the head that knows it would say it."""
    named = scene[:, NUMBERS:].nan_to_num(0).long()
    logits = torch.nn.functional.one_hot(named, len(COLOURS)).flatten(1).float()
    return torch.cat([scene[:, :NUMBERS], 9 * logits], 1)


def test_the_scene_head_is_asked_for_what_is_known_alone():
    scene = torch.full((2, SIZE), torch.nan)
    scene[0, :3], scene[0, NUMBERS:] = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 1.0])
    seen = answered(scene).nan_to_num(7.0).requires_grad_()
    loss = SceneHead.loss(seen, scene)
    assert 0 < loss < 1e-3
    loss.backward()
    assert seen.grad.isfinite().all() and not seen.grad[1].any() and not seen.grad[0, 3:9].any()
    assert SceneHead.loss(seen + 1, scene) > 0.99


def test_parts_of_a_scene_are_by_colour(episodes):
    frames = load_frames([episodes], count=8)
    red, blue = (9 + 3 * COLOURS.index(c) for c in ("red", "blue"))
    for where, named in ((frames, ("blue", "red")), (frames.other, ("red", "blue"))):
        row = where.scene[0]
        torch.testing.assert_close(row[red : red + 3], torch.tensor([1.0, 0.0, 0.0]))
        torch.testing.assert_close(row[blue : blue + 3], torch.tensor([0.0, 2.0, 0.0]))
        assert row[9:NUMBERS].isfinite().sum() == 6
        assert [COLOURS[int(i)] for i in row[NUMBERS:]] == list(named)


def _which(frames, turned):
    return [frames.other if t else frames for t in turned]


def _generators(count: int):
    return (torch.Generator().manual_seed(i) for i in range(count))


def test_instruction_following_tells_a_reader_from_one_that_follows_its_arm(
    episodes, reset_images
):
    frames = load_frames([episodes, reset_images], count=8)
    trainer = Trainer(frames, TrainConfig(batch_size=8, validation=0.0), "cpu", TINY)
    index = torch.arange(len(frames))

    def reader(batch):
        return batch.targets, answered(batch.scene)

    found = instruction_following(trainer.batches, index, reader)
    assert found == {"seen": [1.0, 1.0], "read": [1.0, 1.0], "acted": [1.0, 1.0]}
    asked = {int(p.sum()): trainer.batch(index[i : i + 1]) for i, p in enumerate(frames.images)}

    def follower(batch):
        recorded = [asked[int(p.sum())] for p in batch.images]
        targets, scene = (
            torch.cat([getattr(r, n) for r in recorded]) for n in ("targets", "scene")
        )
        return targets, answered(scene)

    found = instruction_following(trainer.batches, index, follower)
    assert found == {"seen": [1.0, 0.0], "read": [1.0, 0.0], "acted": [1.0, 0.0]}
    assert not any(instruction_following(trainer.batches, index[12:18], reader).values())


def test_reset_images_go_only_with_episodes_of_their_own_kind(episodes, reset_images):
    with pytest.raises(DataError, match="only reset images"):
        frames_from_paths([reset_images], SIDE)
    with pytest.raises(DataError, match="reset images, which go with episodes"):
        frames_from_paths([episodes, reset_images], SIDE + 8)


def test_a_table_is_told_of_in_other_words_and_has_no_other_order():
    colours, roles = {"cubeA": "red", "cubeB": "blue"}, {"moved": "cubeA", "base": "cubeB"}
    words = {"act": "stack", "moved": "the red block", "base": "the big block", "side": ""}
    scene = Scene(colours, roles, words)
    said = wordings("Table_L", scene, 20)
    assert len(set(said)) > 3 and other_order(scene) is None
