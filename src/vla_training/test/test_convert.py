"""From every format to every other: what stays equal, what is named, what is refused."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from vla_inference.cli import main as vla
from vla_inference.errors import DataError, VlaError
from vla_inference.types import Episode, Observation, Step, eef_delta_spec
from vla_sim_bridge.hdf5 import write_episode, write_header
from vla_training.convert import Source, Work, _encoded, convert
from vla_training.datasets import open_dataset
from vla_training.datasets.action_form import (
    absolute_to_delta,
    convert_rotation,
    join_actions,
    with_rotation,
)
from vla_training.datasets.writers import WRITERS, DataForm, open_writer
from vla_training.episode_change import Change, ConvertConfig
from vla_training.jobs import JobRunner

SIZE = (48, 64)  # height, width
LENGTHS = (7, 4, 5)


def picture(t: int, shift: int) -> np.ndarray:
    """Smooth, with a block that moves."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    rgb = np.stack([2 * x + t, 3 * y + shift, 120 + x - y], axis=-1)
    rgb[10:22, 8 + 3 * t : 20 + 3 * t] = (200, 40, 30)
    return rgb.clip(0, 255).astype(np.uint8)


def write_set(path: Path, edit=None, **header) -> Path:
    rng = np.random.default_rng(5)
    with h5py.File(path, "w") as file:
        write_header(file, "Stack_D2", sum(LENGTHS), {})
        for i, n in enumerate(LENGTHS):
            gripper = np.where(np.arange(n) < n // 2, -1.0, 1.0)
            data = {
                "actions": np.column_stack([rng.uniform(-1, 1, (n, 6)), gripper]),
                "states": np.zeros((n, 3)),
                "rewards": (np.arange(n) == n - 1) * 1.0,
                "dones": (np.arange(n) == n - 1) * np.int64(i != 1),  # the second was cut off
                "instructions": [f"stack the würfel {i}"] * (n - 1) + ["now wait"],
                "obs": {
                    "agentview_image": np.stack([picture(t, 0) for t in range(n)]),
                    "wrist_image": np.stack([picture(t, 60) for t in range(n)]),
                    "robot0_state": rng.normal(size=(n, 8)).astype(np.float32),
                },
                "attrs": {"task": "Stack_D2", "seed": 3, "attempt": i},
            }
            group = file.create_group(f"data/demo_{i}")
            write_episode(group, data)
            if edit:
                edit(group)
        for key, value in header.items():
            file["data"].attrs[key] = value
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("source") / "demo.hdf5")


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(float) - b) ** 2)
    return np.inf if error == 0 else 10 * np.log10(255**2 / error)


def worst_picture(a, b) -> float:
    """Least PSNR of all pictures, once everything else was found equal."""
    worst = np.inf
    assert len(a) == len(b)
    for one, two in zip(a, b, strict=True):
        np.testing.assert_array_equal(one.actions, two.actions)
        assert one.instructions == two.instructions
        assert {**two.metadata, **one.metadata} == two.metadata
        for s, r in zip(one.steps, two.steps, strict=True):
            np.testing.assert_array_equal(s.observation.state, r.observation.state)
            flags = [(x.reward, x.is_first, x.is_last, x.is_terminal) for x in (s, r)]
            assert flags[0] == flags[1]
            assert list(s.observation.images) == list(r.observation.images)
            for camera, seen in s.observation.images.items():
                worst = min(worst, psnr(seen, r.observation.images[camera]))
    return worst


# -- round trips ------------------------------------------------------------------------------

FORMS = [
    ("rlds", {}, 35),
    ("rlds", {"encoding": "png"}, np.inf),
    ("hdf5", {"compression": "none"}, np.inf),
    ("lerobot", {}, 35),
    ("lerobot", {"pictures": "png"}, np.inf),
    ("bag", {}, np.inf),
]


@pytest.mark.parametrize("kind, options, least", FORMS)
def test_there_and_back(source, tmp_path, kind, options, least):
    there = tmp_path / ("there.hdf5" if kind == "hdf5" else "there")
    convert(source, there, kind, writing=options, workers=1)
    convert(there, tmp_path / "back.hdf5", "hdf5", workers=1)
    first, middle, last = (open_dataset(p) for p in (source, there, tmp_path / "back.hdf5"))
    assert first.spec == middle.spec == last.spec
    assert last.plain  # in robosuite's own form again
    assert worst_picture(first, middle) >= least
    assert worst_picture(first, last) >= least
    with h5py.File(source) as a, h5py.File(tmp_path / "back.hdf5") as b:
        for key in ("actions", "obs/robot0_state", "rewards", "dones", "instructions"):
            one, two = a[f"data/demo_1/{key}"][:], b[f"data/demo_1/{key}"][:]
            assert one.dtype == two.dtype and one.shape == two.shape
            if key == "actions":  # stored as float32 in SI on the way
                np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-12)
            else:
                np.testing.assert_array_equal(one, two)
        assert a["data"].attrs["action_convention"] == b["data"].attrs["action_convention"]
        assert a["data"].attrs["total"] == b["data"].attrs["total"]


def test_what_is_compressed_already_is_not_compressed_twice(source, tmp_path):
    convert(source, tmp_path / "one", "rlds", workers=1)
    convert(tmp_path / "one", tmp_path / "two", "rlds", workers=1)
    one, two = (open_dataset(tmp_path / n) for n in ("one", "two"))
    seen = [d[0].steps[3].observation.images.encoded("wrist") for d in (one, two)]
    assert seen[0] == seen[1]


def test_any_number_of_workers_and_shards_makes_the_same_set(source, tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        convert(source, tmp_path / name / "set", "rlds", workers=workers,
                writing={"shard_mb": 0.01})  # fmt: skip
    files = sorted((tmp_path / "one" / "set" / "1.0.0").iterdir())
    assert len([f for f in files if "tfrecord" in f.name]) > 1
    for file in files:
        assert file.read_bytes() == (tmp_path / "two/set/1.0.0" / file.name).read_bytes()
    assert len(open_dataset(tmp_path / "two" / "set")) == len(LENGTHS)


@pytest.mark.parametrize("pictures", ["video", "png"])
def test_a_lerobot_set_of_many_files(source, tmp_path, pictures):
    writing = {"pictures": pictures, "file_mb": 0.002}
    convert(source, tmp_path / "set", "lerobot", workers=1, writing=writing)
    kind, folder = ("*.mp4", "videos") if pictures == "video" else ("*.parquet", "data")
    assert len(list((tmp_path / "set" / folder).rglob(kind))) > 2
    data = open_dataset(tmp_path / "set")
    assert worst_picture(open_dataset(source), data) >= 35
    last = data[2].steps[4].observation.images  # out of order, and again
    assert psnr(last["agentview"], picture(4, 0)) > 35
    assert psnr(data[2].steps[1].observation.images["wrist"], picture(1, 60)) > 35
    assert psnr(last["agentview"], picture(4, 0)) > 35


# -- what is changed on the way ---------------------------------------------------------------


def test_keys_sizes_and_steps(source, tmp_path):
    config = ConvertConfig(
        {"wrist": None, "agentview": "image"}, width=32, sample_steps=3, sample_actions=3,
        max_episodes=2,
    )  # fmt: skip
    result = convert(source, tmp_path / "out", "rlds", config, workers=1)
    assert result.left_out == ["states", "wrist"]
    assert (result.episodes, result.frames) == (2, 3 + 2)
    data, before = open_dataset(tmp_path / "out"), open_dataset(source)[0]
    assert data.cameras() == ["image"]
    assert data.spec.dt == pytest.approx(0.15)
    steps = data[0].steps
    assert steps[0].observation.images["image"].shape == (24, 32, 3)
    assert [s.is_last for s in steps] == [False, False, True]
    assert [s.reward for s in steps] == [0, 0, 1]  # the window's last: step 6
    assert [s.is_terminal for s in steps] == [False, False, True]
    want = before.actions.astype(np.float64)
    np.testing.assert_allclose(data[0].actions[0][:3], want[:3, :3].sum(0), atol=1e-7)
    np.testing.assert_array_equal(data[0].actions[:, 6], want[[2, 5, 6], 6])


def test_angles_are_converted_and_back(source, tmp_path):
    convert(source, tmp_path / "rpy", "rlds", ConvertConfig(rotation="rpy"), workers=1)
    result = convert(tmp_path / "rpy", tmp_path / "back.hdf5", "hdf5", workers=1)
    assert any("rotation vectors" in n for n in result.notes)
    assert open_dataset(tmp_path / "rpy").spec.names[3:6] == ("roll", "pitch", "yaw")
    want, got = open_dataset(source), open_dataset(tmp_path / "back.hdf5")
    np.testing.assert_allclose(got.actions(0), want.actions(0), atol=1e-6)


@pytest.mark.parametrize("gripper, opened", [("0 open, 1 closed", 0.0), ("+1 open, -1 closed", 1)])
def test_a_stated_convention_is_converted(tmp_path, gripper, opened):
    def edit(group):
        actions = group["actions"][:]
        actions[:, 6] = np.where(actions[:, 6] < 0, opened, 1 - opened if opened == 0 else -1)
        del group["actions"]
        group["actions"] = actions

    stated = json.dumps({"gripper": gripper, "scale": [0.1] * 3 + [1.0] * 3, "control_freq": 10})
    path = write_set(tmp_path / "other.hdf5", edit, action_convention=stated)
    usual = open_dataset(write_set(tmp_path / "usual.hdf5"))
    data = open_dataset(path)
    assert not data.plain and data.spec.dt == 0.1
    np.testing.assert_allclose(data.actions(0)[:, :6], 2 * usual.actions(0)[:, :6])
    np.testing.assert_array_equal(data.actions(0)[:, 6], usual.actions(0)[:, 6])
    convert(path, tmp_path / "again.hdf5", "hdf5", workers=1)
    again = open_dataset(tmp_path / "again.hdf5")
    assert again.spec.dt == 0.1
    np.testing.assert_array_equal(again[0].actions, data[0].actions)


def test_target_poses_become_deltas_where_the_arms_pose_is_known(tmp_path):
    rng = np.random.default_rng(0)
    turns = {n: Rotation.random(n, random_state=n) for n in LENGTHS}

    def edit(group, pose=True):
        n = len(group["actions"])
        if pose:
            group["obs/robot0_eef_pos"] = np.full((n, 3), 0.5)
            group["obs/robot0_eef_quat"] = turns[n].as_quat()
        small = Rotation.from_rotvec(rng.uniform(-0.1, 0.1, (n, 3)))
        targets = np.column_stack([np.full((n, 3), 0.52), (small * turns[n]).as_rotvec()])
        gripper = group["actions"][:, 6:]
        del group["actions"]
        group["actions"] = np.concatenate([targets, gripper], axis=1)
        group["wanted"] = small.as_rotvec()

    controller = {"type": "OSC_POSE", "control_delta": False}
    args = json.dumps({"env_kwargs": {"controller_configs": controller}})
    data = open_dataset(write_set(tmp_path / "abs.hdf5", edit, env_args=args))
    assert "holds target poses: read as deltas" in data.notes[0]
    np.testing.assert_allclose(data.actions(0)[:, :3], 0.02)
    wanted = data.episodes.group(0)["wanted"][:]
    np.testing.assert_allclose(data.actions(0)[:, 3:6], wanted, atol=1e-9)
    blind = write_set(tmp_path / "b.hdf5", lambda g: edit(g, pose=False), env_args=args)
    with pytest.raises(DataError, match=r"holds target poses, and no obs/robot0_eef_pos"):
        open_dataset(blind).actions(0)


def random_actions(seed: int, length: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    gripper = rng.integers(0, 2, (length, 1)).astype(float)
    return np.concatenate([rng.uniform(-0.5, 0.5, (length, 6)), gripper], axis=1)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 999), length=st.integers(1, 9), size=st.integers(1, 4),
    frame=st.sampled_from(["base", "tool"]), rotation=st.sampled_from(["rotvec", "rpy"]),
)  # fmt: skip
def test_joined_actions_lead_to_the_same_pose(seed, length, size, frame, rotation):
    spec = eef_delta_spec(rotation, frame)
    actions = random_actions(seed, length)

    def end(rows):
        place, turn = np.zeros(3), Rotation.identity()
        for row in rows:
            angles = row[3:6]
            step = (
                Rotation.from_rotvec(angles)
                if rotation == "rotvec"
                else Rotation.from_euler("xyz", angles)
            )
            if frame == "tool":
                place, turn = place + turn.apply(row[:3]), turn * step
            else:
                place, turn = place + row[:3], step * turn
        return place, turn

    joined = join_actions(actions, spec, size)
    assert len(joined) == -(-length // size)
    (a, ra), (b, rb) = end(actions), end(joined)
    np.testing.assert_allclose(a, b, atol=1e-9)
    assert (ra * rb.inv()).magnitude() < 1e-7
    assert joined[-1, 6] == actions[-1, 6]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), length=st.integers(1, 5))
def test_rotations_convert_both_ways(seed, length):
    spec, actions = eef_delta_spec("rotvec"), random_actions(seed, length)
    other = with_rotation(spec, "rpy")
    assert other.names == ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    there = convert_rotation(actions, spec, other)
    np.testing.assert_allclose(convert_rotation(there, other, spec), actions, atol=1e-9)
    normalised = replace(spec, dims=tuple(replace(d, unit="1") for d in spec.dims))
    with pytest.raises(DataError, match="in unit '1', not rad"):
        with_rotation(normalised, "rpy")
    poses = np.tile(np.eye(4), (length, 1, 1))
    np.testing.assert_allclose(absolute_to_delta(actions[:, :6], poses), actions[:, :6])


def test_actions_that_are_no_arm_motion_pass_unchanged(tmp_path):
    """A rover's two numbers: stored as they are, and no convention is guessed."""
    from vla_inference.types import ActionSpec, DimSpec

    spec = ActionSpec((DimSpec("v", "m/s"), DimSpec("w", "rad/s")), "base", "rotvec", 0.1)
    actions = np.array([[0.5, -0.25], [3.0, 0.125]], np.float32)
    steps = [
        Step(Observation({"front": picture(t, 0)}, "drive"), a) for t, a in enumerate(actions)
    ]
    for kind in ("rlds", "hdf5", "lerobot"):
        path = tmp_path / (f"{kind}.hdf5" if kind == "hdf5" else kind)
        with open_writer(path, kind, DataForm("rover", spec, {"front": SIZE})) as writer:
            writer.write(Episode(steps, spec, {"outcome": "success"}))
        data = open_dataset(path)
        assert data.spec == spec
        np.testing.assert_array_equal(data[0].actions, actions)
        assert data[0].metadata["outcome"] == "success"
        assert data[0].steps[0].observation.state is None
    with pytest.raises(DataError, match="joining actions needs an end-effector delta"):
        join_actions(actions, spec, 2)


# -- read by others ---------------------------------------------------------------------------


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


# -- bad input --------------------------------------------------------------------------------


def test_unknown_keys_are_told_what_there_is(source, tmp_path):
    for remap, message in (
        ({"front": "image"}, r"names 'front', .* does not have; there is agentview, wrist, state"),
        ({"agentview": "wrist"}, "would both be called 'wrist'"),
        ({"state": "proprio"}, "'state' cannot be called 'proprio'"),
        ({"wrist": "a/b"}, "'a/b' is no name for a camera"),
    ):
        with pytest.raises(DataError, match=message):
            convert(source, tmp_path / "out", "rlds", ConvertConfig(remap), workers=1)
    for config in (ConvertConfig(width=0), ConvertConfig(sample_steps=0)):
        with pytest.raises(VlaError, match="give at least 1"):
            convert(source, tmp_path / "out", "rlds", config, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unasked_and_nothing_but_a_data_set_ever(source, tmp_path):
    out = tmp_path / "out"
    convert(source, out, "rlds", ConvertConfig(max_episodes=1), workers=1)
    with pytest.raises(DataError, match="exists; choose another output, or give --overwrite"):
        convert(source, out, "rlds", workers=1)
    assert len(open_dataset(out)) == 1
    convert(source, out, "lerobot", workers=1, overwrite=True)
    assert type(open_dataset(out)).__name__ == "LerobotSet" and not (out / "1.0.0").exists()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years")
    with pytest.raises(DataError, match="is no data set, --overwrite replaces nothing else"):
        convert(source, precious, "rlds", workers=1, overwrite=True)
    with pytest.raises(DataError, match="overlap; choose an output elsewhere"):
        convert(out, out / "inner", "rlds", workers=1)
    assert (precious / "thesis.tex").read_text() == "years"


@contextlib.contextmanager
def files_up_to(size: int):
    """Writing further fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [100, 5000, 20_000])
@pytest.mark.parametrize("kind", ["rlds", "lerobot", "hdf5"])
def test_a_full_disk_leaves_nothing(source, tmp_path, kind, size):
    with files_up_to(size), pytest.raises(DataError, match=r"cannot be written \(.*; make room"):
        convert(source, tmp_path / "out.hdf5", kind, workers=1)
    assert list(tmp_path.iterdir()) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9000])


def other_length(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["data/demo_1/actions"]
        file["data/demo_1/actions"] = np.zeros((4, 14))


def not_finite(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["data/demo_1/actions"][2, 1] = np.nan


def other_size(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["data/demo_2/obs/wrist_image"]
        file["data/demo_2/obs/wrist_image"] = np.zeros((5, 32, 32, 3), np.uint8)


def no_state(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["data/demo_1/obs/robot0_state"]


DAMAGE = {
    cut: r"demo\.hdf5 is not a readable robomimic file",
    other_length: r"demo_1/actions has shape \(4, 14\), \[T, 7\] is due",
    not_finite: "episode 1: action 'y' of step 2 is not finite",
    other_size: "episode 2, step 0: picture 'wrist' is 32x32, the first was 64x48",
    no_state: "episode 1, step 0 has a state of none numbers, the first had 8",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
def test_damage_in_the_source_is_named_and_nothing_half_is_left(tmp_path, damage):
    path = write_set(tmp_path / "demo.hdf5")
    damage(path)
    with pytest.raises(DataError, match=DAMAGE[damage]):
        convert(path, tmp_path / "out", "rlds", workers=1)
    assert [p.name for p in tmp_path.iterdir()] == ["demo.hdf5"]


def test_a_wrong_crc_ends_a_conversion(source, tmp_path):
    convert(source, tmp_path / "set", "rlds", workers=1)
    shard = next((tmp_path / "set" / "1.0.0").glob("*tfrecord*"))
    raw = bytearray(shard.read_bytes())
    raw[-100] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(DataError, match=r"record 2 at byte \d+: the CRC of its data is wrong"):
        convert(tmp_path / "set", tmp_path / "out.hdf5", "hdf5", workers=1)
    assert not (tmp_path / "out.hdf5").exists()


LEROBOT_DAMAGE = {
    "meta/info.json": "info.json cannot be read",
    "meta/tasks.parquet": r"tasks\.parquet cannot be read",
    "data/chunk-000/file-000.parquet": r"file-000\.parquet cannot be read",
    "videos/observation.images.wrist/chunk-000/file-000.mp4": r"file-000\.mp4 cannot be read",
}


@pytest.mark.parametrize("name", LEROBOT_DAMAGE)
def test_damage_in_a_lerobot_set_is_named(source, tmp_path, name):
    convert(source, tmp_path / "set", "lerobot", workers=1)
    file = tmp_path / "set" / name
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match=LEROBOT_DAMAGE[name]):
        for episode in open_dataset(tmp_path / "set", "lerobot"):
            for step in episode.steps:
                dict(step.observation.images)


def test_a_lerobot_set_of_others_is_not_guessed_at(source, tmp_path):
    convert(source, tmp_path / "set", "lerobot", workers=1)
    (tmp_path / "set/meta/action_spec.json").unlink()
    data = open_dataset(tmp_path / "set")
    assert "in unknown units" in data.notes[0]
    with pytest.raises(DataError, match="rz, gripper with rotation 'unknown'"):
        convert(tmp_path / "set", tmp_path / "o", "rlds", ConvertConfig(sample_actions=2))
    convert(tmp_path / "set", tmp_path / "rlds", "rlds", workers=1)
    assert open_dataset(tmp_path / "rlds").spec == data.spec
    info = tmp_path / "set/meta/info.json"
    info.write_text(info.read_text().replace("v3.0", "v2.1"))
    with pytest.raises(DataError, match=r"of version v2\.1, we read v3\.0"):
        open_dataset(tmp_path / "set")


def test_a_worker_that_dies_is_told_of(source, tmp_path, monkeypatch):
    (tmp_path / "dying.py").write_text("import os\ndef encode(episode): os._exit(9)\n")
    monkeypatch.syspath_prepend(tmp_path)
    encode = importlib.import_module("dying").encode
    change = Change.of(open_dataset(source), ConvertConfig(), "x")
    work = Work(Source(source, None, {}), change, encode)
    with pytest.raises(VlaError, match="a worker process died"):
        list(_encoded(work, 3, 2))


def test_what_a_killed_process_left_is_cleared_away(source, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = tmp_path / f".out.partial-{dead.pid}"
    stale.mkdir()
    convert(source, tmp_path / "out", "rlds", ConvertConfig(max_episodes=1), workers=1)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_writers_refuse_what_they_do_not_know(source, tmp_path):
    for kind, options, message in (
        ("tar", {}, f"cannot write data sets of type 'tar'; known: {', '.join(WRITERS)}"),
        ("rlds", {"crf": 3}, "type rlds takes no crf; it takes encoding, quality, shard_mb"),
        ("rlds", {"quality": 0}, "quality is 0"),
        ("lerobot", {"pictures": "gif"}, "unknown form of pictures 'gif'"),
        ("hdf5", {}, r"does not end in \.hdf5"),
    ):
        with pytest.raises(DataError, match=message):
            convert(source, tmp_path / "out", kind, writing=options, workers=1)
    with pytest.raises(DataError, match="MP4 takes even sizes only"):
        convert(source, tmp_path / "out", "lerobot", ConvertConfig(width=33, height=32))
    assert list(tmp_path.iterdir()) == []


# -- the verbs --------------------------------------------------------------------------------


def test_the_verb_tells_what_it_left_out(source, tmp_path, capsys):
    args = ["--dataset", str(source), "--convert", "rlds", "--output", str(tmp_path / "set")]
    more = ["--remap-keys", "agentview:image,wrist:None", "--lossless", "--workers", "1"]
    assert vla(["convert", *args, *more]) == 0
    assert "left out: states, wrist" in capsys.readouterr().out
    assert vla(["convert", *args, *more]) == 2
    assert "exists; choose another output" in capsys.readouterr().err
    assert vla(["convert", *args, "--option", "qualty=3"]) == 2
    assert "known: encoding=" in capsys.readouterr().err


def test_a_job_converts(source, tmp_path):
    (tmp_path / "demo.hdf5").write_bytes(source.read_bytes())
    runner = JobRunner(tmp_path)
    try:
        job = runner.start("convert", ["--dataset", "demo.hdf5", "--convert", "lerobot",
                                       "--output", "made/set", "--workers", "1"])  # fmt: skip
        end = time.monotonic() + 60
        while runner.running() and time.monotonic() < end:
            runner.poll()
            time.sleep(0.05)
        done = next(j for j in runner.list() if j.job_id == job.job_id)
        assert done.state == "succeeded", done
        assert (done.step, done.total) == (3, 3)
        assert len(open_dataset(tmp_path / "made/set")) == 3
    finally:
        runner.close()


@pytest.mark.parametrize("kind", ["hdf5", "rlds", "lerobot"])
def test_data_info_of_any_format(source, tmp_path, capsys, kind):
    path = source
    if kind != "hdf5":
        path = tmp_path / "set"
        convert(source, path, kind, workers=1)
    assert vla(["data", "info", str(path), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert (info["episodes"], info["frames"]) == (3, sum(LENGTHS))
    assert (info["length"]["min"], info["length"]["max"]) == (4, 7)
    assert info["cameras"] == {"agentview": list(SIZE), "wrist": list(SIZE)}
    assert info["instruction_episodes"]["now wait"] == 3
    every = np.concatenate([e.actions for e in open_dataset(source)])
    np.testing.assert_allclose(info["action"]["max"], every.max(0), rtol=1e-6)
    assert sum(info["histograms"][0]["counts"]) == sum(LENGTHS)
    assert vla(["data", "info", str(path)]) == 0
    assert "4 to 7 steps" in capsys.readouterr().out


def test_data_pictures(source, tmp_path, capsys):
    def run(*args) -> int:
        return vla(["data", args[0], str(source), *args[1:]])

    sheet, plot, film = (tmp_path / n for n in ("sheet.png", "plot.png", "film.mp4"))
    assert run("show", "--output", str(sheet), "--camera", "wrist") == 0
    with Image.open(io.BytesIO(sheet.read_bytes())) as image:
        assert len(image.convert("RGB").getcolors(1 << 20)) > 1000
    assert run("plot", "--output", str(plot)) == 0
    assert "█" in capsys.readouterr().out
    assert run("video", "--episode", "2", "--output", str(film), "--json") == 0
    assert json.loads(capsys.readouterr().out)["frames"] == LENGTHS[2]
    with av.open(str(film)) as container:
        assert len(list(container.decode(video=0))) == LENGTHS[2]
    before = film.read_bytes()
    assert run("video", "--output", str(film)) == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert film.read_bytes() == before
    assert run("video", "--episode", "9", "--output", str(tmp_path / "x.mp4")) == 2
    assert "has 3 episodes; 9 is not one of 0 to 2" in capsys.readouterr().err
    assert run("show", "--camera", "top", "--output", str(tmp_path / "x.png")) == 2
    assert "cameras: agentview, wrist" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["film.mp4", "plot.png", "sheet.png"]
