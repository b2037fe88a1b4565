"""Tests of conversion between all formats: what stays equal and what changes."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from demonstrations import LENGTHS, SIZE, image, psnr, write_set
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_inference.errors import DataError
from vla_inference.types import Episode, Observation, Step, eef_delta_spec
from vla_training.conversion.config import ConvertConfig
from vla_training.conversion.convert import convert
from vla_training.datasets import open_dataset
from vla_training.datasets.action_form import (
    absolute_to_delta,
    convert_rotation,
    join_actions,
    with_rotation,
)
from vla_training.datasets.writers import DataForm, open_writer


def worst_image(a, b) -> float:
    """Least PSNR of all images, once everything else was found equal."""
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
    ("lerobot", {"images": "png"}, np.inf),
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
    assert worst_image(first, middle) >= least
    assert worst_image(first, last) >= least
    with h5py.File(source) as a, h5py.File(tmp_path / "back.hdf5") as b:
        for key in ("actions", "obs/robot0_state", "rewards", "dones", "instructions"):
            one, two = a[f"data/demo_1/{key}"][:], b[f"data/demo_1/{key}"][:]
            assert one.dtype == two.dtype and one.shape == two.shape
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
        convert(
            source, tmp_path / name / "set", "rlds", workers=workers, writing={"shard_mb": 0.01}
        )
    files = sorted((tmp_path / "one" / "set" / "1.0.0").iterdir())
    assert len([f for f in files if "tfrecord" in f.name]) > 1
    for file in files:
        assert file.read_bytes() == (tmp_path / "two/set/1.0.0" / file.name).read_bytes()
    assert len(open_dataset(tmp_path / "two" / "set")) == len(LENGTHS)


@pytest.mark.parametrize("images", ["video", "png"])
def test_a_lerobot_set_of_many_files(source, tmp_path, images):
    writing = {"images": images, "file_mb": 0.002}
    convert(source, tmp_path / "set", "lerobot", workers=1, writing=writing)
    kind, folder = ("*.mp4", "videos") if images == "video" else ("*.parquet", "data")
    assert len(list((tmp_path / "set" / folder).rglob(kind))) > 2
    data = open_dataset(tmp_path / "set")
    assert worst_image(open_dataset(source), data) >= 35
    last = data[2].steps[4].observation.images  # out of order, and again
    assert psnr(last["agentview"], image(4, 0)) > 35
    assert psnr(data[2].steps[1].observation.images["wrist"], image(1, 60)) > 35
    assert psnr(last["agentview"], image(4, 0)) > 35


# -- what is changed on the way ---------------------------------------------------------------


def test_keys_sizes_and_steps(source, tmp_path):
    config = ConvertConfig(
        remap={"wrist": None, "agentview": "image"},
        width=32,
        sample_steps=3,
        sample_actions=3,
        max_episodes=2,
    )
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
            group["obs/robot0_eef_quat_site"] = turns[n].as_quat()
        small = Rotation.from_rotvec(rng.uniform(-0.1, 0.1, (n, 3)))
        targets = np.column_stack([np.full((n, 3), 0.52), (small * turns[n]).as_rotvec()])
        gripper = group["actions"][:, 6:]
        del group["actions"]
        group["actions"] = np.concatenate([targets, gripper], axis=1)
        group["wanted"] = small.as_rotvec()

    controller = {"type": "OSC_POSE", "control_delta": False}
    args = json.dumps({"env_kwargs": {"controller_configs": controller}})
    data = open_dataset(write_set(tmp_path / "abs.hdf5", edit, env_args=args))
    assert "contains target poses: read as deltas" in data.notes[0]
    np.testing.assert_allclose(data.actions(0)[:, :3], 0.02)
    wanted = data.episodes.group(0)["wanted"][:]
    np.testing.assert_allclose(data.actions(0)[:, 3:6], wanted, atol=1e-9)
    blind = write_set(tmp_path / "b.hdf5", lambda g: edit(g, pose=False), env_args=args)
    with pytest.raises(DataError, match=r"contains target poses, and no obs/robot0_eef_pos"):
        open_dataset(blind).actions(0)


def random_actions(seed: int, length: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    gripper = rng.integers(0, 2, (length, 1)).astype(float)
    return np.concatenate([rng.uniform(-0.5, 0.5, (length, 6)), gripper], axis=1)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 999),
    length=st.integers(1, 9),
    size=st.integers(1, 4),
    frame=st.sampled_from(["base", "tool"]),
    rotation=st.sampled_from(["rotvec", "rpy"]),
)
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
    normalised = spec.with_units(["1"] * 7)
    with pytest.raises(DataError, match="in unit '1', not rad"):
        with_rotation(normalised, "rpy")
    poses = np.tile(np.eye(4), (length, 1, 1))
    np.testing.assert_allclose(absolute_to_delta(actions[:, :6], poses), actions[:, :6])


def test_actions_that_are_no_arm_motion_pass_unchanged(tmp_path):
    """A rover's two numbers: stored as they are, and no convention is guessed."""
    from vla_inference.types import ActionPart, ActionSpec, DimSpec

    twist = (DimSpec("v", "m/s"), DimSpec("w", "rad/s"))
    spec = ActionSpec((ActionPart("base", "base_twist", twist, "base"),), 0.1)
    actions = np.array([[0.5, -0.25], [3.0, 0.125]], np.float32)
    steps = [Step(Observation({"front": image(t, 0)}, "drive"), a) for t, a in enumerate(actions)]
    for kind in ("rlds", "hdf5", "lerobot", "bag"):
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


@pytest.mark.parametrize(
    ("change", "spacing", "dt"),
    [({"sample_steps": 2}, 0.1, 0.05), ({"sample_actions": 4}, 0.05, 0.2)],
)
def test_frames_are_as_far_apart_as_they_are_not_as_long_as_an_action(
    source, tmp_path, change, spacing, dt
):
    config = ConvertConfig(**change)
    made = {
        kind: convert(source, tmp_path / f"{kind}.hdf5", kind, config, workers=1)
        for kind in ("lerobot", "bag", "hdf5")
    }
    for kind, done in made.items():
        note = f"frames are {spacing:g} s apart, the action of each is for {dt:g} s"
        assert note in done.notes, kind
    info = json.loads((tmp_path / "lerobot.hdf5" / "meta" / "info.json").read_text())
    assert info["fps"] == 1 / spacing and open_dataset(tmp_path / "lerobot.hdf5").spec.dt == dt
    bags = open_dataset(tmp_path / "bag.hdf5")
    assert np.diff(bags.episode(0).stamps) == pytest.approx(1e9 * spacing) and bags.spec.dt == dt
    with h5py.File(tmp_path / "hdf5.hdf5") as file:
        kwargs = json.loads(file["data"].attrs["env_args"])["env_kwargs"]
    assert kwargs["control_freq"] == 1 / spacing
    assert open_dataset(tmp_path / "hdf5.hdf5").spec.dt == pytest.approx(dt)
