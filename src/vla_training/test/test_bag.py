"""Tests of rosbag2 bags written here: read back, read by other libraries, damaged."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import sqlite3

import numpy as np
import pytest
import yaml
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from rosbags.highlevel import AnyReader
from scipy.spatial.transform import Rotation

from vla_inference.errors import DataError
from vla_inference.types import Episode, Observation, Step, eef_delta_spec
from vla_training.datasets.bag.episode_bag import EpisodeBag
from vla_training.datasets.bag.reader import BagSet
from vla_training.datasets.bag.streams import NS
from vla_training.datasets.bag.writer import BagWriter
from vla_training.datasets.writers import DataForm

CAMERAS = {"agentview": (48, 64), "wrist": (32, 40)}
STORAGES = ("mcap", "sqlite3")


def episode(seed=0, length=12, rotation="rotvec") -> Episode:
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, 64)[None, :, None] + rng.integers(0, 50, 3)
    steps = [
        Step(
            Observation(
                {
                    "agentview": (np.zeros((48, 64, 3)) + ramp + t).astype(np.uint8),
                    "wrist": rng.integers(0, 256, (32, 40, 3), np.uint8),
                },
                "lege den roten Würfel ab" if t < 5 else "stop",
                rng.normal(size=8).astype(np.float32),
            ),
            np.append(0.01 * rng.normal(size=6), t % 2).astype(np.float32),
            float(t == length - 1) / 3,
            t == 0,
            t == length - 1,
            t == length - 1,
        )
        for t in range(length)
    ]
    about = {"task": "Stack_D0", "seed": 7, "outcome": "success", "success": True}
    return Episode(steps, eef_delta_spec(rotation, "base", 0.05), about)


def write(path, episodes, **options):
    images = [[dict(s.observation.images) for s in e.steps] for e in episodes]
    with BagWriter(path, DataForm("mine", episodes[0].spec, CAMERAS, 8), **options) as writer:
        for e in episodes:
            writer.write(e)
    return images


def assert_same(found: Episode, wanted: Episode):
    assert found.spec == wanted.spec and found.metadata == wanted.metadata
    assert found.instructions == wanted.instructions
    for a, b in zip(found.steps, wanted.steps, strict=True):
        np.testing.assert_array_equal(a.action, b.action, strict=True)
        np.testing.assert_array_equal(a.observation.state, b.observation.state, strict=True)
        assert (a.reward, a.is_first, a.is_last, a.is_terminal) == (
            b.reward,
            b.is_first,
            b.is_last,
            b.is_terminal,
        )


@pytest.mark.parametrize("storage", STORAGES)
def test_what_is_written_is_read_again(storage, tmp_path):
    episodes = [episode(0), episode(1, 5)]
    arrays = write(tmp_path / "set", episodes, storage=storage)
    read = pickle.loads(pickle.dumps(BagSet(tmp_path / "set")))
    assert len(read) == 2 and read.name == "mine" and read.cameras() == ["agentview", "wrist"]
    for found, wanted, images in zip(read, episodes, arrays, strict=True):
        assert_same(found, wanted)
        for step, original in zip(found.steps, images, strict=True):
            for camera, image in original.items():
                np.testing.assert_array_equal(step.observation.images[camera], image)
    assert read.notes == []


def test_jpeg_images_are_close_to_the_original(tmp_path):
    (images,) = write(tmp_path / "set", [episode()], images="jpeg")
    for step, original in zip(BagSet(tmp_path / "set")[0].steps, images, strict=True):
        error = step.observation.images["agentview"].astype(float) - original["agentview"]
        assert 10 * np.log10(255**2 / np.mean(error**2)) >= 35


@pytest.mark.parametrize("action", ["twist", "pose"])
@pytest.mark.parametrize("rotation", ["rotvec", "rpy"])
def test_actions_as_twists_and_targets(action, rotation, tmp_path):
    wanted = episode(3, rotation=rotation)
    write(tmp_path / "set", [wanted], action=action)
    actions = BagSet(tmp_path / "set").actions(0)
    turns = wanted.actions[:, 3:6]
    if rotation == "rpy":
        turns = Rotation.from_euler("xyz", turns).as_rotvec()
    np.testing.assert_allclose(actions[:, :3], wanted.actions[:, :3], atol=1e-8)
    np.testing.assert_allclose(actions[:, 3:6], turns, atol=1e-7)
    np.testing.assert_array_equal(actions[:, 6], wanted.actions[:, 6])


def test_others_read_them(tmp_path):
    """Also our own message, by the definition in the bag alone."""
    wanted = episode()
    write(tmp_path / "set", [wanted])
    folder = tmp_path / "set" / "episode_000000"
    with AnyReader([folder]) as reader:
        chunks = [
            reader.deserialize(data, c.msgtype)
            for c, _, data in reader.messages()
            if c.topic == "/action"
        ]
    assert [c.actions[0] for c in chunks] == wanted.actions[:, 0].tolist()
    with (folder / "episode_000000.mcap").open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        found = [m for *_, m in reader.iter_decoded_messages(["/action", "/episode"])]
    assert len(found) == len(wanted) + 2
    assert found[1].actions[6] == wanted.actions[0, 6]
    assert [p.name for p in found[1].parts] == ["arm", "gripper"]
    assert found[-1].outcome == "success" and found[-1].done


@pytest.mark.parametrize("storage", STORAGES)
def test_metadata_as_humble_writes_it(storage, tmp_path):
    wanted = episode()
    write(tmp_path / "set", [wanted], storage=storage)
    folder = tmp_path / "set" / "episode_000000"
    info = yaml.safe_load((folder / "metadata.yaml").read_text())
    inner = info["rosbag2_bagfile_information"]
    inner["version"] = 5
    for key in ("custom_data", "ros_distro"):
        del inner[key]
    for topic in inner["topics_with_message_count"]:
        del topic["topic_metadata"]["type_description_hash"]
    (folder / "metadata.yaml").write_text(yaml.safe_dump(info))
    if storage == "sqlite3":  # Humble's has no definitions, so ours must do
        with sqlite3.connect(folder / "episode_000000.db3") as database:
            database.executescript(
                "DROP TABLE message_definitions; DROP TABLE schema; DROP TABLE metadata;"
                "ALTER TABLE topics DROP COLUMN type_description_hash"
            )
    read = BagSet(folder)
    np.testing.assert_array_equal(read[0].actions, wanted.actions)
    assert read[0].instructions == wanted.instructions
    assert read[0].metadata["outcome"] == "success"  # by EpisodeStatus
    assert read.cameras() == ["image", "wrist"]


@pytest.mark.parametrize("storage", STORAGES)
def test_a_bag_cut_anywhere_gives_what_is_readable(storage, tmp_path):
    wanted = episode(length=60)
    write(tmp_path / "set", [wanted], storage=storage)
    whole = tmp_path / "set" / "episode_000000"
    (file,) = (f for f in whole.iterdir() if f.suffix != ".yaml")
    size, rng, lengths = file.stat().st_size, random.Random(1), []
    for number, at in enumerate(sorted(rng.sample(range(100, size - 1), 20))):
        folder = tmp_path / f"cut_{number}"
        shutil.copytree(whole, folder)
        with (folder / file.name).open("r+b") as cut:
            cut.truncate(at)
        if number % 2:
            (folder / "metadata.yaml").unlink()  # the recorder was killed
        try:
            read = BagSet(folder)
            read.read_all()
        except DataError as error:
            assert "damaged" in str(error) or "no step" in str(error) or "has no" in str(error)
            lengths.append(0)
            continue
        found = read[0]
        lengths.append(len(found))
        for a, b in zip(found.steps, wanted.steps, strict=False):
            np.testing.assert_array_equal(a.action, b.action)
            assert a.observation.images["agentview" if number % 2 == 0 else "image"].any()
        if len(found) < len(wanted):
            assert any(n.startswith("damaged, lost") for n in read.notes)
    assert lengths == sorted(lengths) and lengths[-1] > 50 and sum(n > 0 for n in lengths) > 14


def test_images_without_an_action_are_left_out_and_counted(tmp_path):
    wanted = episode()
    write(tmp_path / "set", [wanted])
    folder = tmp_path / "set" / "episode_000000"
    bag = BagSet(folder)
    late = EpisodeBag(tmp_path / "late")
    file = bag._files[0]
    for message in file.messages(set(file.topics)):
        if message.topic != "/action" or message.log % (3 * NS // 20):
            late.write(message.topic, file.topics[message.topic].type, message.log, message.data)
    late.close({}, {})
    read = BagSet(tmp_path / "late")
    assert 0 < len(read[0]) < len(wanted)
    assert (
        f"{len(wanted) - len(read[0])} of 12 images left out: no action answers them" in read.notes
    )


def test_writer_refuses_what_it_cannot_store(tmp_path):
    with pytest.raises(DataError, match="storage is 'bag1'; use mcap or sqlite3"):
        write(tmp_path / "a", [episode()], storage="bag1")
    bad = episode()
    bad.steps[3].action[0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        write(tmp_path / "b", [bad])
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "c", [episode()])
    about = yaml.safe_load((tmp_path / "c/episode_000000/metadata.yaml").read_text())
    custom = about["rosbag2_bagfile_information"]["custom_data"]
    assert custom["instruction"] == "lege den roten Würfel ab" and custom["outcome"] == "success"
    assert json.loads(custom["vla_episode"])["metadata"]["task"] == "Stack_D0"
