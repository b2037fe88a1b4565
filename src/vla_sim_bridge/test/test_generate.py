"""Generation: the same seed gives the same episodes, and kill -9 loses none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict

import h5py
import numpy as np
import pytest

from vla_inference.errors import DataError, VlaError
from vla_sim_bridge.generate import GenerateConfig, _enough, generate
from vla_sim_bridge.hdf5 import Hdf5Episodes

CONFIG = GenerateConfig(task="Stack_D0", episodes=3, seed=5, pictures=False)


def read(path) -> dict[str, np.ndarray]:
    found = {}
    with h5py.File(path, "r") as file:
        file.visititems(
            lambda name, item: found.update({name: item[()]}) if hasattr(item, "dtype") else None
        )
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return generate(CONFIG, tmp_path_factory.mktemp("one") / "data", parallel=1)


def test_workers_do_not_change_the_data(reference, tmp_path):
    other = generate(CONFIG, tmp_path / "data", parallel=2)
    one, two = read(reference), read(other)
    assert one.keys() == two.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], two[key], err_msg=key)


def test_killed_generation_loses_no_success_and_ends_the_same(reference, tmp_path):
    output = tmp_path / "data"
    code = (
        "from vla_sim_bridge.generate import *\n"
        f"if __name__ == '__main__': generate(GenerateConfig(**{asdict(CONFIG)!r}),"
        f" {str(output)!r}, parallel=1)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    parts = output / "parts"
    deadline = time.monotonic() + 120
    while not list(parts.glob("*.hdf5")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)  # the parent alone: its workers must end by themselves
    process.wait()
    deadline = time.monotonic() + 60
    while _group_lives(process.pid):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.1)
    kept = sorted(p.name for p in parts.glob("*.hdf5"))
    stamps = {name: (parts / name).stat().st_mtime_ns for name in kept}
    reused = []

    def look(_):
        reused.extend(n for n in kept if (parts / n).stat().st_mtime_ns == stamps[n])

    path = generate(CONFIG, output, parallel=1, report=look)
    assert set(reused) == set(kept)
    one, two = read(reference), read(path)
    for key in one:
        np.testing.assert_array_equal(one[key], two[key], err_msg=key)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_second_call_does_nothing(reference):
    stamp = reference.stat().st_mtime_ns
    assert generate(CONFIG, reference.parent) == reference
    assert reference.stat().st_mtime_ns == stamp


def test_another_request_in_the_same_folder_is_refused(reference):
    with pytest.raises(DataError, match="another seed"):
        generate(GenerateConfig(**{**asdict(CONFIG), "seed": 6}), reference.parent)


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match="not empty"):
        generate(CONFIG, tmp_path)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"episodes": 0}, "at least 1"),
        ({"task": "Stack_D9"}, "known tasks"),
        ({"method": "magic"}, "scripted"),
    ],
)
def test_bad_requests_are_named_before_any_work(change, words, tmp_path):
    with pytest.raises(VlaError, match=words):
        generate(GenerateConfig(**{**asdict(CONFIG), **change}), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_episodes_are_settled_and_in_si_units(reference):
    data = Hdf5Episodes(reference)
    assert len(data) == 3
    for i in range(3):
        group = data.group(i)
        assert group["rewards"][-11:].all()
        assert group["dones"][:].tolist() == [0] * (len(group["dones"]) - 1) + [1]
        actions = data.actions(i)
        assert np.abs(actions[:, :3]).max() <= 0.05 + 1e-9
        assert set(np.unique(actions[:, 6])) == {0.0, 1.0}
        assert actions[0, 6] == 1.0
        assert all("red block" in t for t in data.instructions(i))


def test_workers_that_always_die_end_it_with_a_reason(tmp_path, monkeypatch):
    def die(*_):
        raise BrokenProcessPool

    monkeypatch.setattr("vla_sim_bridge.generate._work", die)
    with pytest.raises(VlaError, match="worker processes die"):
        generate(CONFIG, tmp_path / "data")


def test_enough_waits_for_earlier_attempts():
    assert not _enough({1: True, 2: True}, 2)
    assert _enough({0: False, 1: True, 2: True}, 2)


def test_cut_file_is_named(reference, tmp_path):
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(reference.read_bytes()[: reference.stat().st_size // 2])
    with pytest.raises(DataError, match=r"cut\.hdf5"):
        Hdf5Episodes(cut)


def test_missing_camera_lists_what_there_is(reference):
    with pytest.raises(DataError, match="cameras: none"):
        Hdf5Episodes(reference).images(0, "agentview")
