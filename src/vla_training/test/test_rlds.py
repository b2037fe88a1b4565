"""Tests of RLDS folders: episodes, policy views, and errors that name file and field."""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vla_inference.errors import DataError
from vla_training.datasets import open_dataset
from vla_training.datasets.images import decode_image
from vla_training.datasets.rlds.reader import RldsEpisodes
from vla_training.datasets.rlds.tf_example import build_example, parse_example
from vla_training.datasets.rlds.tfrecord import RecordFile, write_records
from vla_training.datasets.rlds.transforms import (
    binarise_gripper,
    bridge,
    find_conventions,
    libero,
)

ROOT = Path(__file__).resolve().parents[3]
DATA = Path(os.environ.get("VLA_TEST_DATA") or ROOT.parent / "shared" / "data")
BRIDGE = DATA / "bridge_rlds" / "bridge_dataset" / "1.0.0"
needs_bridge = pytest.mark.skipif(
    not BRIDGE.is_dir(), reason=f"no {BRIDGE} (VLA_TEST_DATA names the folder of bridge_rlds)"
)


# -- a small dataset of our own --------------------------------------------------------------


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 20, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def tensor(dtype: str, *shape: int) -> dict:
    return {"tensor": {"shape": {"dimensions": [str(n) for n in shape]}, "dtype": dtype}}


def features(**nodes: dict) -> dict:
    return {"featuresDict": {"features": nodes}}


def example(length: int, **changes) -> bytes:
    rng = np.random.default_rng(length)
    arrays = {
        "steps/action": rng.uniform(0, 1, (length, 7)).astype(np.float32),
        "steps/observation/state": rng.uniform(-1, 1, (length, 3)).astype(np.float32),
        "steps/observation/image": [png(10 * t) for t in range(length)],
        "steps/language_instruction": ["fass den würfel".encode()] * length,
        "steps/is_terminal": np.arange(length) == length - 1,
        "episode_metadata/file_path": [b"somewhere"],
    }
    return build_example({k: v for k, v in {**arrays, **changes}.items() if v is not None})


def write_set(root: Path, shards: list[list[bytes]], name: str = "toy", size: int = 7) -> Path:
    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    steps = features(
        action=tensor("float32", size),
        observation=features(
            state=tensor("float32", 3),
            image={"image": {"shape": {"dimensions": ["16", "20", "3"]}, "dtype": "uint8"}},
        ),
        language_instruction={"text": {}},
        is_terminal=tensor("bool"),
    )
    tree = features(
        steps={"sequence": {"feature": steps}}, episode_metadata=features(file_path={"text": {}})
    )
    (folder / "features.json").write_text(json.dumps(tree))
    info = {
        "name": name,
        "fileFormat": "tfrecord",
        "splits": [{"name": "train", "shardLengths": [str(len(s)) for s in shards]}],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for i, records in enumerate(shards):
        write_records(shard(folder, i, len(shards)), records)
    return folder


def shard(folder: Path, i: int, n: int) -> Path:
    return folder / f"{folder.parent.name}-train.tfrecord-{i:05d}-of-{n:05d}"


@pytest.fixture
def toy(tmp_path) -> Path:
    return write_set(tmp_path, [[example(3), example(5)], [example(2)]])


def test_episodes_of_all_shards_in_order(toy):
    data = open_dataset(toy)
    assert [len(e) for e in data] == [3, 5, 2]
    episode = data[1]
    assert episode.metadata["file_path"] == "somewhere"
    step = episode.steps[4]
    assert step.observation.instruction == "fass den würfel"
    assert (step.observation.images["image"] == 40).all()
    assert step.observation.images["image"].shape == (16, 20, 3)
    assert step.observation.state.shape == (3,)
    assert [s.is_first for s in episode.steps] == [True, False, False, False, False]
    assert [s.is_last for s in episode.steps] == [False, False, False, False, True]
    assert episode.steps[4].is_terminal
    np.testing.assert_array_equal(
        episode.actions, np.random.default_rng(5).uniform(0, 1, (5, 7)).astype(np.float32)
    )
    np.testing.assert_array_equal(data.actions(1), episode.actions)
    np.testing.assert_array_equal(data[-1].actions, data[2].actions)


@pytest.mark.parametrize("up", [0, 1, 2])
def test_the_folder_the_name_and_the_root_all_open(toy, up):
    assert len(open_dataset([toy, toy.parent, toy.parent.parent][up])) == 3


def test_the_newest_version_is_taken(toy):
    newer = toy.parent / "1.10.0"
    toy.rename(newer)
    write_set(toy.parent.parent, [[example(2)]])
    assert RldsEpisodes(toy.parent).path == newer


def test_unknown_names_are_read_as_stored_and_said_so(toy):
    data = open_dataset(toy)
    assert "no conventions are known for 'toy'" in data.notes[0]
    assert data.spec.rotation == "rpy"


def test_a_spec_beside_the_data_is_believed(toy):
    (toy / "action_spec.json").write_text('{"rotation": "rotvec", "dt": 0.05}')
    data = open_dataset(toy)
    assert (data.spec.rotation, data.spec.dt, data.notes) == ("rotvec", 0.05, [])


def test_statistics_are_those_of_all_actions(toy):
    data = open_dataset(toy)
    every = np.concatenate([e.actions for e in data]).astype(np.float64)
    statistics = data.statistics()
    np.testing.assert_allclose(statistics["action"]["q99"], np.quantile(every, 0.99, axis=0))
    assert statistics["action"]["mask"] == [True] * 6 + [False]
    assert (statistics["num_transitions"], statistics["num_trajectories"]) == (10, 3)


# -- bad input --------------------------------------------------------------------------------


def read_all(folder: Path) -> None:
    for episode in open_dataset(folder):
        for step in episode.steps:
            dict(step.observation.images)


def damage_cut(folder):
    path = shard(folder, 0, 2)
    path.write_bytes(path.read_bytes()[:-9])


def damage_bit(folder):
    path = shard(folder, 0, 2)
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)


def damage_count(folder):
    shard(folder, 1, 2).write_bytes(shard(folder, 0, 2).read_bytes())


def rewrite(**changes):
    def damage(folder):
        write_records(shard(folder, 1, 2), [example(2, **changes)])

    return damage


def rewrite_bytes(data: bytes):
    return lambda folder: write_records(shard(folder, 1, 2), [data])


DAMAGE = {
    "truncated": (damage_cut, r"00000-of-00002, record 1 at byte \d+: it should end at"),
    "a bit": (damage_bit, r"00000-of-00002, record 0 at byte 0: the CRC of its data is wrong"),
    "no shard": (lambda f: shard(f, 1, 2).unlink(), r"00001-of-00002 is missing"),
    "mixed shards": (damage_count, r"00001-of-00002 contains 2 episodes, shardLengths .* says 1"),
    "no example": (rewrite_bytes(b"\xff" * 30), r"record 0 is not a tf.train.Example"),
    "no action": (rewrite(**{"steps/action": None}), r"record 0 has no feature 'steps/action'"),
    "action length": (
        rewrite(**{"steps/action": np.zeros(13, np.float32)}),
        r"'steps/action' has 13 numbers, no multiple of 7",
    ),
    "state length": (
        rewrite(**{"steps/observation/state": np.zeros(5, np.float32)}),
        r"'steps/observation/state' has 5 values, 6 are expected for 2 steps",
    ),
    "images": (
        rewrite(**{"steps/observation/image": [png(0)]}),
        r"'steps/observation/image' has 1 values, 2 are expected for 2 steps",
    ),
    "kind": (
        rewrite(**{"steps/observation/image": np.zeros(2, np.float32)}),
        r"'steps/observation/image' contains float32, not image",
    ),
    "image": (
        rewrite(**{"steps/observation/image": [png(0), b"\xff\xd8 no JPEG"]}),
        r"record 0, step 1, image 'image' is not a readable JPEG or PNG",
    ),
    "text": (
        rewrite(**{"steps/language_instruction": [b"\xff\xfe", b""]}),
        r"record 0: a text is not UTF-8",
    ),
    "not finite": (
        rewrite(**{"steps/action": np.full((2, 7), np.nan, np.float32)}),
        r"action 'x' of step 0 is not finite",
    ),
    "polarity": (
        rewrite(**{"steps/action": np.full((2, 7), -1, np.float32)}),
        r"the gripper goes from -1 to -1, rlds_dataset_builder has 1 open and 0 closed",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named_by_file_and_field(toy, what):
    damage, message = DAMAGE[what]
    damage(toy)
    with pytest.raises(DataError, match=message):
        read_all(toy)


def test_folders_that_are_no_data_set(tmp_path, toy):
    with pytest.raises(DataError, match="there is no dataset at"):
        open_dataset(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"not a dataset of a known type \(rlds, hdf5, lerobot"):
        open_dataset(tmp_path / "empty")
    with pytest.raises(DataError, match="unknown dataset type 'csv'; known: rlds, hdf5, lerobot"):
        open_dataset(toy, "csv")
    with pytest.raises(DataError, match="has no split 'test'; splits: train"):
        open_dataset(toy, split="test")
    with pytest.raises(DataError, match="unknown conventions 'x'; known: bridge_orig"):
        open_dataset(toy, conventions="x")
    (toy / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset_info\.json cannot be read"):
        open_dataset(toy)
    (toy / "dataset_info.json").unlink()
    with pytest.raises(DataError, match=r"dataset_info\.json is missing"):
        open_dataset(toy)


def test_actions_of_another_length_are_refused(tmp_path):
    folder = write_set(tmp_path, [[example(2)]], size=9)
    with pytest.raises(DataError, match=r"'steps/action' has 9 numbers, .* says 7"):
        open_dataset(folder)


@pytest.mark.parametrize("mode", ["CMYK", "I;16", "1"])
def test_images_that_are_not_8_bit_rgb_are_refused(mode):
    buffer = io.BytesIO()
    Image.new(mode, (20, 16)).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    with pytest.raises(DataError, match=r"the image (is not a readable|has colour mode)"):
        decode_image(buffer.getvalue(), "the image")


def bomb(kind: str, width: int, height: int) -> bytes:
    """A small file whose header claims many pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (20, 16)).save(buffer, kind)
    data = bytearray(buffer.getvalue())
    if kind == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    else:
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [8001, 9500, 14_000, 65_500])
@pytest.mark.filterwarnings("error")
def test_images_that_claim_to_be_huge_are_refused_before_memory_is_taken(kind, size):
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"the image (claims \d+x\d+ pixels; store|is not a read)"):
        decode_image(bomb(kind, size, size), "the image")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begin < 50_000  # KiB


# -- conventions ------------------------------------------------------------------------------


def test_gripper_is_decided_backwards():
    gripper = np.array([0.5, 1.0, 0.5, 0.02, 0.4, 0.96, 0.3, 0.0])
    assert binarise_gripper(gripper).tolist() == [1, 1, 0, 0, 1, 1, 0, 0]
    assert binarise_gripper(np.array([0.0, 0.4]))[1] == 0.4  # undecided to the end


def test_bridge_moves_by_the_difference_of_states():
    state = np.cumsum(np.arange(35.0).reshape(5, 7), axis=0)
    action = np.column_stack([np.full((5, 6), 9.0), [0, 1, 1, 0, 1]])
    actions, kept = bridge({"action": action, "state": state})
    assert (kept.start, kept.stop) == (1, 4)
    np.testing.assert_array_equal(actions[:, :6], np.diff(state, axis=0)[1:, :6])
    assert actions[:, 6].tolist() == [1, 1, 0]
    assert len(bridge({"action": action[:2], "state": state[:2]})[0]) == 0


def test_libero_turns_the_gripper_round():
    actions, _ = libero({"action": np.column_stack([np.zeros((3, 6)), [-1, 1, 0.25]])})
    assert actions[:, 6].tolist() == [1, 0, 0.75]


def test_conventions_go_by_the_name_or_its_beginning():
    assert find_conventions("bridge_orig_ep100").transform is bridge
    assert find_conventions("libero_spatial_no_noops").transform is libero
    assert find_conventions("rlds_dataset_builder").known
    assert not find_conventions("bridges").known


# -- the Bridge slice -------------------------------------------------------------------------


@needs_bridge
def test_all_steps_of_the_bridge_slice_as_they_are_stored():
    data = RldsEpisodes(BRIDGE)
    assert len(data) == 25
    steps, instructions, openings = 0, set(), []
    for i in range(len(data)):
        raw = data.raw(i)
        assert raw["steps/action"].shape == (10, 7) and raw["steps/action"].dtype == np.float32
        assert raw["steps/observation/state"].shape == (10, 7)
        assert raw["steps/language_embedding"].shape == (10, 512)
        assert raw["steps/is_first"].dtype == bool and not raw["steps/is_last"].any()
        assert raw["episode_metadata/episode_id"].dtype == np.int32
        for camera in range(4):
            images = raw[f"steps/observation/image_{camera}"]
            assert len(images) == 10
            for data_ in images:
                image = decode_image(data_, "image")
                assert image.shape == (64, 64, 3)
                assert camera != 3 or image.max() == 0
        steps += 10
        instructions |= set(raw["steps/language_instruction"])
        openings += raw["steps/action"][:, 6].tolist()
    assert steps == 250
    assert len(instructions) == 4
    assert np.mean(openings) == pytest.approx(0.74, abs=0.01)


@needs_bridge
def test_the_bridge_slice_as_policies_see_it():
    data = open_dataset(DATA / "bridge_rlds")
    assert data.name == "bridge_dataset" and data.cameras()[0] == "image_0"
    episode = data[3]
    state = data.raw(3)["steps/observation/state"]
    assert len(episode) == 8
    for n, step in enumerate(episode.steps):
        np.testing.assert_array_equal(step.action[:6], state[n + 2, :6] - state[n + 1, :6])
        np.testing.assert_array_equal(step.observation.state, state[n + 1])
        assert step.action[6] in (0, 1)
    assert sum(map(len, data)) == data.statistics()["num_transitions"] == 200


@needs_bridge
def test_what_we_write_of_the_bridge_slice_is_what_we_read(tmp_path):
    records = RecordFile(next(BRIDGE.glob("*.tfrecord-*")))
    features_ = parse_example(records[0])
    again = parse_example(build_example(features_))
    assert all(np.array_equal(again[k], v) for k, v in features_.items())
    path = tmp_path / "again"
    write_records(path, records)
    assert path.read_bytes() == records.path.read_bytes()
