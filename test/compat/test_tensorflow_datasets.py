"""Compatibility with tensorflow-datasets: each side reads what the other wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from demonstrations import LENGTHS, SIZE, write_set
from elsewhere import elsewhere, interpreter
from foreign_files import scene

from vla_inference.episodes.language import persistent_row
from vla_training.conversion.config import ConvertConfig
from vla_training.conversion.convert import convert
from vla_training.datasets import open_dataset

PYTHON = "VLA_TF_PYTHON"
ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("VLA_TEST_DATA") or ROOT.parent / "shared" / "data")
BRIDGE = DATA / "bridge_rlds" / "bridge_dataset" / "1.0.0"
READ = """
import json, sys
import tensorflow_datasets as tfds
folder, root = sys.argv[1:]
found = []
for builder in (tfds.builder_from_directory(folder), tfds.builder("set", data_dir=root)):
    for episode in builder.as_dataset(split="train", read_config=tfds.ReadConfig(
            interleave_cycle_length=1)):
        steps = list(episode["steps"].as_numpy_iterator())
        found.append({
            "actions": [s["action"].tolist() for s in steps],
            "texts": [s["language_instruction"].decode() for s in steps],
            "last": [bool(s["is_last"]) for s in steps],
            "pixel": steps[2]["observation"]["image"][15, 15].tolist(),
            "shape": list(steps[0]["observation"]["image"].shape),
            "file": episode["episode_metadata"]["file_path"].numpy().decode(),
        })
print(json.dumps(found))
"""
WHO_ACTED = """
import json, sys
import tensorflow_datasets as tfds
episodes = tfds.builder_from_directory(sys.argv[1]).as_dataset(
    split="train", read_config=tfds.ReadConfig(interleave_cycle_length=1))
print(json.dumps([{
    "acted": [bool(s["intervention"]) for s in e["steps"].as_numpy_iterator()],
    "rows": json.loads(e["episode_metadata"]["language_persistent"].numpy()),
} for e in episodes]))
"""
WRITE = """
import json, sys
import numpy as np
import tensorflow_datasets as tfds

class Theirs(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.3")

    def _info(self):
        f = tfds.features
        step = f.FeaturesDict({
            "observation": f.FeaturesDict({
                "image": f.Image(shape=(48, 64, 3), dtype=np.uint8, encoding_format="png"),
                "state": f.Tensor(shape=(8,), dtype=np.float32),
            }),
            "action": f.Tensor(shape=(7,), dtype=np.float32),
            "language_instruction": f.Text(),
            "is_first": f.Scalar(dtype=np.bool_), "is_last": f.Scalar(dtype=np.bool_),
            "is_terminal": f.Scalar(dtype=np.bool_), "reward": f.Scalar(dtype=np.float32),
            "discount": f.Scalar(dtype=np.float32),
        })
        return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict({
            "steps": f.Dataset(step),
            "episode_metadata": f.FeaturesDict({"file_path": f.Text()}),
        }))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for episode, length in enumerate((5, 8, 3)):
            yield f"{episode:03}", {"episode_metadata": {"file_path": "made"}, "steps": [{
                "observation": {
                    "image": np.full((48, 64, 3), 10 * t + episode, np.uint8),
                    "state": np.arange(8, dtype=np.float32) + t,
                },
                "action": np.array([0.01 * t, 0, 0.02 * episode, 0, 0, 0, t % 2], np.float32),
                "language_instruction": f"task {episode}",
                "is_first": t == 0, "is_last": t == length - 1, "is_terminal": t == length - 1,
                "reward": float(t == length - 1), "discount": 1.0,
            } for t in range(length)]}

Theirs(data_dir=sys.argv[1]).download_and_prepare()
print(json.dumps(tfds.__version__))
"""
# LIBERO as it is published for OpenVLA: the features, and -1 for an open gripper.
LIBERO = """
import json, sys
import numpy as np
import tensorflow_datasets as tfds

class LiberoSpatialNoNoops(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        f = tfds.features
        image = lambda: f.Image(shape=(64, 64, 3), dtype=np.uint8, encoding_format="png")
        step = f.FeaturesDict({
            "observation": f.FeaturesDict({
                "wrist_image": image(), "image": image(),
                "state": f.Tensor(shape=(8,), dtype=np.float32),
                "joint_state": f.Tensor(shape=(7,), dtype=np.float32),
            }),
            "action": f.Tensor(shape=(7,), dtype=np.float32),
            "language_instruction": f.Text(),
            "is_first": f.Scalar(dtype=np.bool_), "is_last": f.Scalar(dtype=np.bool_),
            "is_terminal": f.Scalar(dtype=np.bool_), "reward": f.Scalar(dtype=np.float32),
            "discount": f.Scalar(dtype=np.float32),
        })
        return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict({
            "steps": f.Dataset(step),
            "episode_metadata": f.FeaturesDict({"file_path": f.Text()}),
        }))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        images = np.load(sys.argv[1] + "/images.npy")
        yield "0", {"episode_metadata": {"file_path": "x_demo.hdf5"}, "steps": [{
            "observation": {
                "image": image, "wrist_image": image // 2,
                "state": np.float32([0.1, 0, 1, 3.2, 0.1, 0, 0.04, -0.04]) + t,
                "joint_state": np.arange(7, dtype=np.float32),
            },
            "action": np.float32([0.9375, -0.5, 0, 0.1, 0, 0, -1 if t < 3 else 1]),
            "language_instruction": "pick up the black bowl", "is_first": t == 0,
            "is_last": t == 5, "is_terminal": t == 5, "reward": float(t == 5), "discount": 1.0,
        } for t, image in enumerate(images)]}

LiberoSpatialNoNoops(data_dir=sys.argv[1]).download_and_prepare()
print(json.dumps(tfds.__version__))
"""


def test_it_reads_who_acted_and_language(tmp_path):
    row = persistent_row("subtask", "reach", 0.0)

    def edit(group):
        group["intervention"] = np.arange(len(group["actions"])) % 2
        group["language_persistent"] = np.array([json.dumps(row)], h5py.string_dtype())

    source = write_set(tmp_path / "source.hdf5", edit)
    convert(source, tmp_path / "set", "rlds", workers=1)
    found = elsewhere(PYTHON, tmp_path, WHO_ACTED, tmp_path / "set" / "1.0.0")
    assert [e["acted"] for e in found] == [[t % 2 == 1 for t in range(n)] for n in LENGTHS]
    assert [e["rows"] for e in found] == [[row]] * len(LENGTHS)


def test_we_read_libero_as_it_is_published(tmp_path):
    """Images stay as they are, which is turned by 180 degrees: so models are trained and asked."""
    turned = np.stack([scene(t)[:, ::-1] for t in range(6)])
    np.save(tmp_path / "images.npy", turned)
    elsewhere(PYTHON, tmp_path, LIBERO, tmp_path)
    data = open_dataset(tmp_path / "libero_spatial_no_noops" / "1.0.0")
    assert data.cameras() == ["image", "wrist_image"] and "turned by 180" in data.notes[0]
    assert (data.spec.dims[0].unit, data.spec.dims[3].unit) == ("0.05 m", "0.5 rad")
    assert data.spec.dt == 0.05
    assert sorted(data.left_out()) == ["discount", "observation/joint_state"]
    (episode,) = data
    assert episode.actions[:, 6].tolist() == [1, 1, 1, 0, 0, 0]  # open, then closed
    np.testing.assert_allclose(episode.actions[0, :4], [0.9375, -0.5, 0, 0.1])
    for t, step in enumerate(episode.steps):
        state = np.float32([0.1, 0, 1, 3.2, 0.1, 0, 0.04, -0.04]) + np.float32(t)
        np.testing.assert_array_equal(step.observation.state, state)
        np.testing.assert_array_equal(step.observation.images["image"], turned[t])
        np.testing.assert_array_equal(step.observation.images["wrist_image"], turned[t] // 2)
        assert step.observation.instruction == "pick up the black bowl"


def test_it_reads_ours(source, tmp_path):
    config = ConvertConfig(remap={"agentview": "image"})
    convert(source, tmp_path / "set", "rlds", config, workers=1, writing={"encoding": "png"})
    found = elsewhere(PYTHON, tmp_path, READ, tmp_path / "set" / "1.0.0", tmp_path)
    assert len(found) == 2 * len(LENGTHS)
    for seen, episode in zip(found, [*open_dataset(source)] * 2, strict=True):
        np.testing.assert_array_equal(np.array(seen["actions"], np.float32), episode.actions)
        assert seen["texts"] == episode.instructions
        assert seen["last"] == [s.is_last for s in episode.steps]
        assert seen["pixel"] == episode.steps[2].observation.images["agentview"][15, 15].tolist()
        assert seen["shape"] == [*SIZE, 3] and "demo.hdf5, episode" in seen["file"]


def test_we_read_its_own(tmp_path):
    elsewhere(PYTHON, tmp_path, WRITE, tmp_path)
    data = open_dataset(tmp_path / "theirs" / "1.2.3")
    found = {e.instructions[0]: e for e in data}  # it shuffles what it writes
    assert sorted(found) == ["task 0", "task 1", "task 2"]
    for number, length in enumerate((5, 8, 3)):
        episode = found[f"task {number}"]
        actions = [[0.01 * t, 0, 0.02 * number, 0, 0, 0, t % 2] for t in range(length)]
        np.testing.assert_array_equal(episode.actions, np.array(actions, np.float32))
        for t, step in enumerate(episode.steps):
            (seen,) = step.observation.images.values()
            assert seen.shape == (48, 64, 3) and (seen == 10 * t + number).all()
            np.testing.assert_array_equal(step.observation.state, np.arange(8) + t)


@pytest.mark.skipif(not BRIDGE.is_dir(), reason=f"no {BRIDGE}: VLA_TEST_DATA names its folder")
def test_the_bridge_slice_is_what_it_reads():
    done = subprocess.run(
        [sys.executable, ROOT / "bench/data/rlds_reader.py", "--data", BRIDGE, "--repeat", "1"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, PYTHON: interpreter(PYTHON)},
    )
    result = json.loads(done.stdout)
    assert result["steps"] == 250 and result["features_equal"] == 17
    assert not result["features_different"] and not result["features_not_ours"]
