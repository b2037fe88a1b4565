"""What we write, read by others: pyarrow, PyAV, and the formats' own libraries where they are."""

from __future__ import annotations

import json
import os
import subprocess
from fractions import Fraction

import av
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from demonstrations import LENGTHS, SIZE, picture, psnr

from vla_training.convert import convert
from vla_training.datasets import open_dataset
from vla_training.episode_change import ConvertConfig


def test_the_lerobot_layout_by_pyarrow_and_av(source, tmp_path):
    out = tmp_path / "set"
    convert(source, out, "lerobot", ConvertConfig({"agentview": "top"}), workers=1)
    info = json.loads((out / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"]) == ("v3.0", 20)
    assert (info["total_episodes"], info["total_frames"]) == (3, sum(LENGTHS))
    rows = pq.read_table(out / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [r["length"] for r in rows] == list(LENGTHS)
    assert [r["dataset_to_index"] for r in rows] == list(np.cumsum(LENGTHS))
    table = pq.read_table(out / info["data_path"].format(chunk_index=0, file_index=0))
    assert pq.ParquetFile(out / "data/chunk-000/file-000.parquet").num_row_groups == 3
    assert table.column("index").to_pylist() == list(range(sum(LENGTHS)))
    tasks = pq.read_table(out / "meta/tasks.parquet")
    index = json.loads(tasks.schema.metadata[b"pandas"])["index_columns"]
    assert index == ["task"] and tasks.column("task_index").to_pylist() == [0, 1, 2, 3]
    names = [tasks.column("task")[n].as_py() for n in table.column("task_index").to_pylist()]
    data = open_dataset(source)
    assert names == [t for e in data for t in e.instructions]
    np.testing.assert_array_equal(
        np.array(table.column("action").to_pylist(), np.float32),
        np.concatenate([e.actions for e in data]),
    )
    stats = json.loads((out / "meta/stats.json").read_text())
    every = np.concatenate([e.actions for e in data]).astype(float)
    np.testing.assert_allclose(stats["action"]["mean"], every.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["action"]["std"], every.std(0), atol=1e-6)
    assert np.shape(stats["observation.images.top"]["mean"]) == (3, 1, 1)
    key = "observation.images.top"
    film = out / info["video_path"].format(video_key=key, chunk_index=0, file_index=0)
    with av.open(str(film)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == sum(LENGTHS)
    assert [Fraction(f.pts) * f.time_base for f in frames] == [
        Fraction(n, 20) for n in range(len(frames))
    ]
    begins = round(rows[1][f"videos/{key}/from_timestamp"] * 20)
    seen = frames[begins + 2].to_ndarray(format="rgb24")
    assert psnr(seen, picture(2, 0)) > 35


def elsewhere(variable: str, script: str, *arguments) -> dict:
    """What a script prints under an interpreter that a variable names; skips without one."""
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} names no interpreter")
    hidden = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
    done = subprocess.run(
        [python, "-c", script, *map(str, arguments)], capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if k not in hidden} | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


TFDS = """
import json, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
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


def test_tensorflow_datasets_reads_it(source, tmp_path):
    config = ConvertConfig({"agentview": "image"})
    convert(source, tmp_path / "set", "rlds", config, workers=1, writing={"encoding": "png"})
    found = elsewhere("VLA_TF_PYTHON", TFDS, tmp_path / "set" / "1.0.0", tmp_path)
    assert len(found) == 2 * len(LENGTHS)
    for seen, episode in zip(found, [*open_dataset(source)] * 2, strict=True):
        np.testing.assert_array_equal(np.array(seen["actions"], np.float32), episode.actions)
        assert seen["texts"] == episode.instructions
        assert seen["last"] == [s.is_last for s in episode.steps]
        assert seen["pixel"] == episode.steps[2].observation.images["agentview"][15, 15].tolist()
        assert seen["shape"] == [*SIZE, 3] and "demo.hdf5, episode" in seen["file"]


LEROBOT = """
import json, sys
from lerobot.datasets.lerobot_dataset import LeRobotDataset
data = LeRobotDataset("local/set", root=sys.argv[1], video_backend="pyav")
items = [data[i] for i in range(len(data))]
print(json.dumps({
    "episodes": data.num_episodes, "fps": data.fps,
    "actions": [i["action"].tolist() for i in items],
    "state": [i["observation.state"].tolist() for i in items],
    "texts": [i["task"] for i in items],
    "pixels": [(255 * i["observation.images.agentview"][:, 15, 15]).tolist() for i in items],
    "stats": data.meta.stats["action"]["mean"].tolist(),
}))
"""


@pytest.mark.parametrize("pictures, apart", [("video", 12), ("png", 0.01)])
def test_lerobot_reads_it(source, tmp_path, pictures, apart):
    writing = {"pictures": pictures, "file_mb": 0.002}  # several files of each kind
    convert(source, tmp_path / "set", "lerobot", workers=1, writing=writing)
    found = elsewhere("VLA_LEROBOT_PYTHON", LEROBOT, tmp_path / "set")
    steps = [s for e in open_dataset(source) for s in e.steps]
    assert (found["episodes"], found["fps"], len(found["texts"])) == (3, 20, len(steps))
    assert found["texts"] == [s.observation.instruction for s in steps]
    for key, wanted in (
        ("actions", [s.action for s in steps]),
        ("state", [s.observation.state for s in steps]),
    ):
        np.testing.assert_array_equal(np.array(found[key], np.float32), wanted)
    pixels = [s.observation.images["agentview"][15, 15] for s in steps]
    np.testing.assert_allclose(found["pixels"], pixels, atol=apart)


ROBOMIMIC = """
import json, sys
import robomimic.utils.obs_utils as ObsUtils
from robomimic.utils.dataset import SequenceDataset
ObsUtils.initialize_obs_utils_with_obs_specs(
    {"obs": {"low_dim": ["robot0_state"], "rgb": ["agentview_image"]}})
data = SequenceDataset(sys.argv[1], obs_keys=("robot0_state", "agentview_image"),
    dataset_keys=("actions", "rewards", "dones"), hdf5_cache_mode=None, seq_length=1,
    load_next_obs=False)
items = [data[i] for i in range(len(data))]
print(json.dumps({
    "demos": data.n_demos,
    "actions": [i["actions"][0].tolist() for i in items],
    "pixels": [i["obs"]["agentview_image"][0][15, 15].tolist() for i in items],
}))
"""


def test_robomimic_reads_it(source, tmp_path):
    convert(source, tmp_path / "set", "rlds", workers=1, writing={"encoding": "png"})
    convert(tmp_path / "set", tmp_path / "back.hdf5", "hdf5", workers=1)
    found = elsewhere("VLA_ROBOMIMIC_PYTHON", ROBOMIMIC, tmp_path / "back.hdf5")
    with h5py.File(source) as file:
        raw = [file[f"data/demo_{i}/actions"][:] for i in range(3)]
    np.testing.assert_allclose(found["actions"], np.concatenate(raw), rtol=1e-5, atol=1e-7)
    steps = [s for e in open_dataset(source) for s in e.steps]
    pixels = [s.observation.images["agentview"][15, 15].tolist() for s in steps]
    assert (found["demos"], found["pixels"]) == (3, pixels)
