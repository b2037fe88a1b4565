"""Tests of refused conversions: nothing half-written is left."""

from __future__ import annotations

import contextlib
import importlib
import random
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from demonstrations import write_set

from vla_inference.errors import DataError, VlaError
from vla_training.conversion.config import ConvertConfig
from vla_training.conversion.convert import Work, _encoded, convert
from vla_training.conversion.transform import EpisodeTransform
from vla_training.datasets import open_dataset
from vla_training.datasets.writers import WRITERS


def test_unknown_keys_are_told_what_there_is(source, tmp_path):
    for remap, message in (
        ({"front": "image"}, r"names 'front', .* does not have; there is agentview, wrist, state"),
        ({"agentview": "wrist"}, "would both be called 'wrist'"),
        ({"state": "proprio"}, "'state' cannot be called 'proprio'"),
        ({"wrist": "a/b"}, "'a/b' is not a name for a camera"),
    ):
        with pytest.raises(DataError, match=message):
            convert(source, tmp_path / "out", "rlds", ConvertConfig(remap=remap), workers=1)
    for config, message in (
        (ConvertConfig(width=0), "--width is 0; give 1 to 4096 pixels"),
        (ConvertConfig(width=100_000), "--width is 100000; give 1 to 4096 pixels"),
        (ConvertConfig(sample_steps=0), "--sample-steps is 0; give at least 1"),
    ):
        with pytest.raises(VlaError, match=message):
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
    with pytest.raises(DataError, match="is not a dataset, --overwrite replaces nothing else"):
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
@pytest.mark.parametrize("kind", ["rlds", "lerobot", "hdf5", "bag"])
def test_a_full_disk_leaves_nothing(source, tmp_path, kind, size):
    with files_up_to(size), pytest.raises(DataError, match=r"cannot be written \(.*; make room"):
        convert(source, tmp_path / "out.hdf5", kind, workers=1)
    assert list(tmp_path.iterdir()) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9000])


def flipped(path: Path) -> None:
    with h5py.File(path) as file:
        images = file["data/demo_2/obs/wrist_image"].id
        at = images.get_chunk_info_by_coord((3, 0, 0, 0)).byte_offset
    raw = bytearray(path.read_bytes())
    raw[at + 30] ^= 8
    path.write_bytes(raw)


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
    flipped: r"demo\.hdf5: /data/demo_2/obs/wrist_image cannot be read .*damaged",
    cut: r"demo\.hdf5 is not a readable robomimic file",
    other_length: r"demo_1/actions has shape \(4, 14\), \[T, 7\] is expected",
    not_finite: "episode 1: action 'y' of step 2 is not finite",
    other_size: "episode 2, step 0: image 'wrist' is 32x32, the first was 64x48",
    no_state: "episode 1, step 0 has a state of none numbers, the first had 8",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
def test_damage_in_the_source_is_named_and_nothing_half_is_left(tmp_path, damage):
    path = write_set(tmp_path / "demo.hdf5")
    damage(path)
    with pytest.raises(DataError, match=DAMAGE[damage]):
        convert(path, tmp_path / "out", "rlds", workers=1)
    assert [p.name for p in tmp_path.iterdir()] == ["demo.hdf5"]


def test_an_hdf5_file_with_other_bytes_anywhere_is_read_or_refused(source, tmp_path):
    rng, whole, refused = random.Random(1), source.read_bytes(), 0
    for number in range(60):
        raw = bytearray(whole)
        at = rng.randrange(len(raw) if number % 2 else 20_000)
        raw[at : at + 4] = rng.randbytes(len(raw[at : at + 4]))
        path = tmp_path / f"{number}.hdf5"
        path.write_bytes(raw)
        try:
            data = open_dataset(path)
            data.left_out()
            for step in (s for e in data for s in e.steps):
                dict(step.observation.images)
        except DataError as error:
            refused += 1
            assert path.name in str(error)
    assert 10 < refused < 55


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
    with pytest.raises(DataError, match=r"rz, gripper \(actions: unknown\)"):
        convert(tmp_path / "set", tmp_path / "o", "rlds", ConvertConfig(sample_actions=2))
    convert(tmp_path / "set", tmp_path / "rlds", "rlds", workers=1)
    assert open_dataset(tmp_path / "rlds").spec == data.spec
    info = tmp_path / "set/meta/info.json"
    info.write_text(info.read_text().replace("v3.0", "v1.6"))
    with pytest.raises(DataError, match=r"of version v1\.6, we read v2\.0, v2\.1, v3\.0"):
        open_dataset(tmp_path / "set")


def test_a_worker_that_dies_is_told_of(source, tmp_path, monkeypatch):
    (tmp_path / "dying.py").write_text("import os\ndef encode(episode): os._exit(9)\n")
    monkeypatch.syspath_prepend(tmp_path)
    encode = importlib.import_module("dying").encode
    change = EpisodeTransform.of(open_dataset(source), ConvertConfig(), "x")
    work = Work(partial(open_dataset, source), change, encode)
    with pytest.raises(VlaError, match="a worker process died"):
        list(_encoded(work, 3, 2))


def test_what_a_killed_process_left_is_cleared_away(source, tmp_path):
    code = f"""
import os, time
from vla_training.conversion import convert
from vla_training.datasets.rlds.writer import RldsWriter
def add(self, encoded):
    print("ready", flush=True)
    time.sleep(60)
RldsWriter.add = add
convert.convert({str(source)!r}, {str(tmp_path / "out")!r}, "rlds", workers=1)
"""
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"ready\n"
    once = ConvertConfig(max_episodes=1)
    with pytest.raises(DataError, match=r"another process writes .*out \(\.out\..*\.tmp\); wait"):
        convert(source, tmp_path / "out", "rlds", once, workers=1)
    assert first.poll() is None
    first.kill()
    first.wait()
    assert len(list(tmp_path.iterdir())) == 1
    convert(source, tmp_path / "out", "rlds", once, workers=1)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_writers_refuse_what_they_do_not_know(source, tmp_path):
    for kind, options, message in (
        ("tar", {}, f"cannot write datasets of type 'tar'; known: {', '.join(WRITERS)}"),
        ("rlds", {"crf": 3}, "type rlds takes no crf; it takes encoding, quality, shard_mb"),
        ("rlds", {"quality": 0}, "quality is 0"),
        ("lerobot", {"images": "gif"}, "images is 'gif'; use video or png"),
        ("hdf5", {}, r"does not end in \.hdf5"),
    ):
        with pytest.raises(DataError, match=message):
            convert(source, tmp_path / "out", kind, writing=options, workers=1)
    with pytest.raises(DataError, match="MP4 takes even sizes only"):
        convert(source, tmp_path / "out", "lerobot", ConvertConfig(width=33, height=32))
    assert list(tmp_path.iterdir()) == []
