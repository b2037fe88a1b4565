"""Tests of generation: a seed gives the same episodes, and SIGKILL loses none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, replace

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_inference.episodes.hdf5 import Demonstrations
from vla_inference.episodes.robosuite import from_robosuite, to_robosuite
from vla_inference.errors import DataError, VlaError
from vla_inference.system.files import whole_file, write_whole
from vla_inference.system.workers import WorkerDiedError
from vla_inference.types import Episode, Observation, Step, eef_delta_spec
from vla_sim_bridge.generation import shards
from vla_sim_bridge.generation.generate import GenerateConfig, generate
from vla_sim_bridge.generation.shards import AttemptShards, store, to_bytes

CONFIG = GenerateConfig(task="Stack_D0", episodes=3, seed=5, images=False)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return generate(CONFIG, tmp_path_factory.mktemp("one") / "data", parallel=1)


def test_workers_do_not_change_a_byte(reference, tmp_path):
    other = generate(CONFIG, tmp_path / "data", parallel=2)
    assert reference.read_bytes() == other.read_bytes()


def test_what_a_worker_was_ended_in_goes_with_the_parts(reference, tmp_path):
    output = tmp_path / "data"

    def half_written(_):
        begun = output / "parts" / ".attempt_0000009.hdf5.x.tmp"
        begun.mkdir(exist_ok=True)
        (begun / "content").write_text("half")

    path = generate(CONFIG, output, parallel=1, report=half_written)
    assert reference.read_bytes() == path.read_bytes()
    assert not (output / "parts").exists()


def test_killed_generation_loses_no_success_and_ends_the_same(reference, tmp_path):
    output = tmp_path / "data"
    code = (
        "from vla_sim_bridge.generation.generate import *\n"
        f"if __name__ == '__main__': generate(GenerateConfig(**{asdict(CONFIG)!r}),"
        f" {str(output)!r}, parallel=1)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    stored = output / "parts"
    deadline = time.monotonic() + 120
    while not list(stored.glob("*.hdf5")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)  # the parent alone: its workers must end by themselves
    process.wait()
    deadline = time.monotonic() + 60
    while _group_lives(process.pid):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.1)
    kept = sorted(p.name for p in stored.glob("*.hdf5"))
    stamps = {name: (stored / name).stat().st_mtime_ns for name in kept}
    reused = []

    def look(_):
        reused.extend(n for n in kept if (stored / n).stat().st_mtime_ns == stamps[n])

    path = generate(CONFIG, output, parallel=1, report=look)
    assert set(reused) == set(kept)
    assert reference.read_bytes() == path.read_bytes()


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
    with pytest.raises(
        DataError, match=r"was started with seed \d+, not 6; give the same options"
    ):
        generate(GenerateConfig(**{**asdict(CONFIG), "seed": 6}), reference.parent)


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match="contains other files"):
        generate(CONFIG, tmp_path)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"episodes": 0}, "at least 1"),
        ({"task": "Stack_D9"}, "known tasks"),
        ({"method": "magic"}, "scripted"),
        ({"select_source": "best"}, "nearest_neighbor_object"),
        ({"randomize": ("colors",)}, "colours"),
        ({"randomize_ranges": {"lights": 1}}, "did you mean light"),
        ({"randomize_ranges": {"mass": [2, 1]}}, "the smaller first"),
        ({"recovery": 1.5}, "0 to 1"),
        ({"method": "mimicgen", "source": "nowhere.hdf5"}, "no source file nowhere.hdf5"),
        ({"task": "Stack_L", "method": "scripted", "cameras": ("none",)}, "no camera 'none'"),
    ],
)
def test_bad_requests_are_named_before_any_work(change, words, tmp_path):
    with pytest.raises(VlaError, match=words):
        generate(GenerateConfig(**{**asdict(CONFIG), **change}), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_episodes_are_settled_and_in_si_units(reference):
    data = Demonstrations(reference)
    assert len(data) == 3
    for i in range(3):
        group = data.group(i)
        assert group["rewards"][-11:].all() and group.attrs["settled"]
        assert group["obs/robot0_joint_pos"].shape == (len(group["dones"]), 7)
        assert group["dones"][:].tolist() == [0] * (len(group["dones"]) - 1) + [1]
        actions = from_robosuite(group["actions"][:])
        again = to_robosuite(actions.astype(np.float32))
        assert (again == group["actions"][:]).all()  # nothing is lost to formats of float32
        assert np.abs(actions[:, :3]).max() <= 0.05 + 1e-9
        assert set(np.unique(actions[:, 6])) == {0.0, 1.0}
        assert actions[0, 6] == 1.0
        assert all("red block" in t for t in group["instructions"].asstr()[:])


# -- without a simulation: scheduling, faults, statistics ---------------------------------------

FAKE = replace(CONFIG, episodes=20)


def fake_episode(index: int) -> Episode:
    n = 5 + index % 7
    action = np.full(7, index / 100)
    steps = [Step(Observation({}, "stack"), action, reward=1.0) for _ in range(n)]
    return Episode(steps, eef_delta_spec(), {"attempt": index}, {"states": np.zeros((n, 45))})


class StandIn:
    """Workers without processes. Attempts end in an order drawn from `seed`; every fifth fails.

    die: attempts at which a worker dies, once each.
    """

    def __init__(self, count=3, seed=0, die=()):
        self.count, self.rng, self.die = count, np.random.default_rng(seed), set(die)
        self.running, self.played, self.most = deque(), [], 0

    def __call__(self, make):  # a new set of workers
        self.running.clear()
        return self

    def start(self, index):
        self.running.append(index)
        self.most = max(self.most, len(self.running))

    def finished(self):
        self.running.rotate(int(self.rng.integers(self.count)))
        index = self.running.popleft()
        if index in self.die:
            self.die.remove(index)
            raise WorkerDiedError
        self.played.append(index)
        if index % 5 == 4:
            return [(index, ("no_grasp", None, False))]
        return [(index, ("success", to_bytes(fake_episode(index), None), False))]

    def close(self):
        pass


def kept(path) -> list[int]:
    with h5py.File(path, "r") as file:
        return [int(file[f"data/demo_{i}"].attrs["attempt"]) for i in range(len(file["data"]))]


def test_the_first_successes_by_number_are_kept_whatever_the_order(tmp_path):
    wanted = [i for i in range(25) if i % 5 != 4]
    contents = set()
    for seed, count in enumerate((1, 2, 7, 40)):
        workers = StandIn(count, seed)
        path = generate(FAKE, tmp_path / str(seed), start_workers=workers)
        assert kept(path) == wanted
        assert workers.most <= count and sorted(workers.played) == sorted(set(workers.played))
        assert len(workers.played) <= 25 + 2 * count
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_a_dead_worker_costs_only_what_it_was_at(tmp_path):
    workers = StandIn(3, die=(0, 7, 15))
    path = generate(FAKE, tmp_path / "data", start_workers=workers)
    assert kept(path) == [i for i in range(25) if i % 5 != 4]
    assert sorted(workers.played) == sorted(set(workers.played))


def test_workers_that_always_die_end_it_with_a_reason(tmp_path):
    def start(make):
        raise WorkerDiedError

    with pytest.raises(VlaError, match="workers die before"):
        generate(CONFIG, tmp_path / "data", start_workers=start)


def test_a_full_disk_is_told_and_the_same_call_goes_on(tmp_path, monkeypatch):
    room = [6]

    def full(path, content, **options):
        with whole_file(path, **options) as file:
            room[0] -= path.parent.name == "parts"
            if room[0] < 0:
                file.write(content[: len(content) // 2])
                raise OSError(28, "No space left on device")
            file.write(content if isinstance(content, bytes) else content.encode())

    monkeypatch.setattr(shards, "write_whole", full)
    output = tmp_path / "data"
    with pytest.raises(VlaError, match="the disk is full; make room"):
        generate(FAKE, output, start_workers=StandIn())
    there = sorted(p.name for p in (output / "parts").iterdir())
    assert len(there) == 6 and all(n.startswith("attempt_") for n in there)
    monkeypatch.undo()
    second = StandIn()
    assert kept(generate(FAKE, output, start_workers=second))[:3] == [0, 1, 2]
    assert not {int(n.split("_")[1].split(".")[0]) for n in there} & set(second.played)


def test_two_processes_never_work_in_one_folder(tmp_path):
    output, second = tmp_path / "data", StandIn()
    write_whole(output / "generate.json", json.dumps(asdict(FAKE)))
    code = "import sys, time; from pathlib import Path\n"
    code += "from vla_inference.system.files import only_one\n"
    code += (
        "with only_one(sys.argv[1], 'vla generate'): print('ready', flush=True); time.sleep(60)"
    )
    first = subprocess.Popen([sys.executable, "-c", code, output], stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"ready\n"
    with pytest.raises(
        VlaError, match=r"another vla generate is running in .*data; wait for it, or"
    ):
        generate(FAKE, output, start_workers=second)
    assert not second.played and first.poll() is None
    first.kill()  # with all its locks; what it was writing is no attempt
    first.wait()
    write_whole(output / "parts" / ".attempt_0000000.hdf5.x.tmp" / "attempt_0000000.hdf5", b"")
    generate(FAKE, output, start_workers=second)
    assert 0 in second.played
    assert {p.name for p in output.iterdir()} == {"demo.hdf5", "generate.json", "statistics.json"}


def test_a_damaged_part_is_made_again(tmp_path):
    workers = StandIn(1)
    output = tmp_path / "data"

    def damage(progress):
        if progress.attempts == 10:
            part = output / "parts" / "attempt_0000002.hdf5"
            part.write_bytes(part.read_bytes()[:200])

    path = generate(FAKE, output, report=damage, start_workers=workers)
    assert kept(path) == [i for i in range(25) if i % 5 != 4]
    assert workers.played.count(2) == 2


def test_statistics_say_how_it_went(tmp_path):
    path = generate(FAKE, tmp_path / "data", start_workers=StandIn())
    beside = json.loads((path.parent / "statistics.json").read_text())
    with h5py.File(path, "r") as file:
        assert json.loads(file["data"].attrs["statistics"]) == beside
    assert (beside["episodes"], beside["attempts"], beside["success_rate"]) == (20, 24, 20 / 24)
    assert beside["failures"] == {"no_grasp": 4}
    low, high = beside["success_rate_wilson95"]
    assert low < 20 / 24 < high
    lengths = [5 + i % 7 for i in kept(path)]
    assert beside["frames"] == sum(lengths)
    assert beside["length_median"] == np.median(lengths)
    assert beside["length_p5"] == np.percentile(lengths, 5)


@given(st.permutations(range(12)), st.sets(st.integers(0, 11)), st.integers(1, 12))
def test_the_ledger_waits_for_earlier_attempts(order, bad, wanted):
    ledger = AttemptShards()
    for i, index in enumerate(order):
        ledger.add(index, "timeout" if index in bad else "success")
        known, through = set(order[: i + 1]), 0
        while through in known:
            through += 1
        assert ledger.enough(wanted) == (len(set(range(through)) - bad) >= wanted)
    assert ledger.take() == 12 and ledger.take() == 13


def test_failures_are_kept_apart_on_request(tmp_path):
    config = replace(CONFIG, episodes=1, keep_failures=True)
    output = tmp_path / "data"
    (output / "parts").mkdir(parents=True)
    (output / "generate.json").write_text(json.dumps(asdict(config)))
    store(output / "parts", 0, "unsettled", to_bytes(fake_episode(0), None))
    path = generate(config, output, start_workers=StandIn(1))
    assert kept(path) == [1] and kept(output / "failed.hdf5") == [0]


def test_cut_file_is_named(reference, tmp_path):
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(reference.read_bytes()[: reference.stat().st_size // 2])
    with pytest.raises(DataError, match=r"cut\.hdf5"):
        Demonstrations(cut)
