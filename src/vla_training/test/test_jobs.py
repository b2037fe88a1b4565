"""Jobs: what may run, where it may read and write, and how each end of one is told."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
import typing
from pathlib import Path

import pytest

from vla_inference import progress
from vla_inference.cli import find_verbs
from vla_inference.errors import VlaError
from vla_training.jobs import KINDS, JobRunner, Kind
from vla_training.jobs.kinds import command_words
from vla_training.jobs.paths import RECORDS, check_root, confine
from vla_training.jobs.record import CANCELLED, FAILED, RUNNING, SUCCEEDED, read_progress

FAKE = """
import os, signal, subprocess, sys, time
from vla_inference import progress
verb, *options = sys.argv[1:]
options = dict(o.removeprefix("--").split("=", 1) for o in options)
if "fail" in options:
    print("vla fake: no such thing; try another")
    sys.exit(int(options["fail"]))
if "stubborn" in options:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "worker" in options:
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print("worker", worker.pid)
steps = int(options.get("steps", 3))
for step in range(steps):
    progress.report(step + 1, steps, "working")
    print("step", step + 1)
    time.sleep(float(options.get("pause", 0)))
if "output" in options:
    open(options["output"], "w").write("made")
print("all done")
"""
VALUES = frozenset(["steps", "pause", "fail", "stubborn", "worker"])
TABLE = {name: Kind(name, frozenset(["output"]), VALUES) for name in ("fake", "other")}
LONG = ["--steps", "600", "--pause", "0.05"]


@pytest.fixture
def make(tmp_path):
    (tmp_path / "fake.py").write_text(FAKE)
    root = tmp_path / "root"
    root.mkdir()
    runners = []

    def build(**kwargs) -> JobRunner:
        command = [sys.executable, str(tmp_path / "fake.py")]
        runners.append(JobRunner(root, TABLE, command, cancel_grace=0.3, **kwargs))
        return runners[-1]

    yield build
    for runner in runners:
        for job in runner.running():
            runner._kill(job, signal.SIGKILL)
        runner.close()


def until(runner, condition, patience=60.0):
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, runner.list()
        runner.poll()
        time.sleep(0.02)


def ended(runner, job):
    until(runner, lambda: job.over)
    return job


# -- running ----------------------------------------------------------------------------------


def test_a_job_runs_to_its_end(make):
    runner = make()
    job = runner.start("fake", ["--steps", "4", "--pause=0.3", "--output", "made.txt"])
    assert job.state == RUNNING and job.pid
    until(runner, lambda: 0 < job.step < 4 and job.rate > 0)
    assert job.total == 4 and job.fraction == job.step / 4 and job.message == "working"
    assert 0 < job.seconds_left < 5
    assert ended(runner, job).state == SUCCEEDED
    assert (job.step, job.fraction, job.exit_code, job.message) == (4, 1.0, 0, "all done")
    assert job.ended >= job.started
    assert runner.log(job.job_id).splitlines()[0] == "step 1"
    assert runner.log(job.job_id, 1) == "all done\n"
    assert (runner.root / "made.txt").read_text() == "made"
    assert runner.poll() == []


def test_a_failure_says_what_the_verb_said(make):
    runner = make()
    job = ended(runner, runner.start("fake", ["--fail", "2"]))
    assert (job.state, job.exit_code) == (FAILED, 2)
    assert job.message == "vla fake: no such thing; try another"


def test_a_command_that_cannot_be_run_fails(make):
    runner = make()
    runner.command = ["/no/such/program"]
    job = ended(runner, runner.start("fake", []))
    assert (job.state, job.exit_code) == (FAILED, 127) and "/no/such/program" in job.message


def test_a_job_gives_way_to_what_else_runs(make):
    runner = make(nice=7)
    job = runner.start("fake", LONG)
    until(runner, lambda: job.step)
    assert os.getpriority(os.PRIO_PGRP, job.pid) == min(19, os.nice(0) + 7)


def test_cancel_interrupts(make):
    runner = make()
    job = runner.start("fake", LONG)
    until(runner, lambda: job.step > 1)
    runner.cancel(job.job_id)
    runner.cancel(job.job_id)  # twice does no harm
    assert ended(runner, job).state == CANCELLED
    assert "KeyboardInterrupt" in runner.log(job.job_id)  # SIGINT it was
    with pytest.raises(VlaError, match="is over"):
        runner.cancel(job.job_id)
    with pytest.raises(VlaError, match="no job 'nothing'"):
        runner.cancel("nothing")


def test_cancel_kills_what_does_not_listen(make, monkeypatch):
    monkeypatch.setattr("vla_training.jobs.runner.TERM_GRACE", 0.3)
    runner = make()
    job = runner.start("fake", [*LONG, "--stubborn=1"])
    until(runner, lambda: job.step > 1)
    runner.cancel(job.job_id)
    assert ended(runner, job).state == CANCELLED and job.exit_code == -signal.SIGKILL


def test_kill_9_of_the_verb_is_a_failure_and_takes_its_workers_along(make):
    runner = make()
    job = runner.start("fake", [*LONG, "--worker=1"])
    until(runner, lambda: job.step > 1)
    worker = int(runner.log(job.job_id).split()[1])
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    assert ended(runner, job).state == FAILED
    assert job.exit_code == -9 and "killed by SIGKILL" in job.message
    until(runner, lambda: not alive(worker))


def test_kill_9_of_the_whole_group_is_a_failure(make):
    runner = make()
    job = runner.start("fake", LONG)
    until(runner, lambda: job.step > 1)
    os.killpg(job.pid, signal.SIGKILL)
    assert ended(runner, job).state == FAILED


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_one_job_of_a_kind_at_a_time(make):
    runner = make()
    first = runner.start("fake", LONG)
    with pytest.raises(VlaError, match=f"{first.job_id} is running; wait for it or cancel"):
        runner.start("fake", [])
    other = runner.start("other", [])
    assert ended(runner, other).state == SUCCEEDED
    runner.cancel(first.job_id)
    ended(runner, first)
    assert ended(runner, runner.start("fake", [])).state == SUCCEEDED
    assert [j.kind for j in runner.list()] == ["fake", "other", "fake"]


# -- a runner that ends -----------------------------------------------------------------------


def test_close_cancels_what_runs(make):
    runner = make()
    job = runner.start("fake", LONG)
    runner.close()
    assert job.state == CANCELLED
    assert make().get(job.job_id).state == CANCELLED


def test_the_next_runner_takes_over_what_still_runs(make):
    runner = make()
    job = runner.start("fake", ["--steps", "20", "--pause", "0.1"])
    until(runner, lambda: job.step > 1)
    runner.close(keep_running=True)  # as if killed: nothing is written down
    second = make()
    found = second.get(job.job_id)
    assert found.state == RUNNING and found.step > 1
    with pytest.raises(VlaError, match="is running"):
        second.start("fake", [])
    assert ended(second, found).state == SUCCEEDED and found.exit_code == 0


def test_a_job_that_died_meanwhile_is_lost(make):
    runner = make()
    job = runner.start("fake", LONG)
    until(runner, lambda: job.step > 1)
    runner.close(keep_running=True)
    os.killpg(job.pid, signal.SIGKILL)
    runner._processes[job.job_id].wait()
    second = make()
    found = ended(second, second.get(job.job_id))
    assert found.state == FAILED and found.message.startswith("lost")


def test_a_job_that_ended_meanwhile_is_told_as_it_ended(make):
    runner = make()
    job = runner.start("fake", ["--fail=3"])
    runner.close(keep_running=True)
    runner._processes[job.job_id].wait()
    second = make()
    found = ended(second, second.get(job.job_id))
    assert (found.state, found.exit_code) == (FAILED, 3)


def test_damaged_records_are_left_out_and_named(make):
    runner = make()
    good = ended(runner, runner.start("fake", []))
    runner.close()
    for name, text in (("a", ""), ("b", "[]"), ("c", '{"job_id": 3}'), ("d", None)):
        folder = runner.root / RECORDS / name
        folder.mkdir()
        if text is not None:
            (folder / "job.json").write_text(text)
    second = make()
    assert [j.job_id for j in second.list()] == [good.job_id]
    assert len(second.warnings) == 4 and all("remove its folder" in w for w in second.warnings)


def test_one_runner_per_root(make):
    make()
    with pytest.raises(VlaError, match="another process runs the jobs"):
        make()


# -- what may be asked for --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--output", "../out"], "leads out of the root"),
        (["--output=/etc/passwd"], "leads out of the root"),
        (["--output", f"{RECORDS}/x"], "records"),
        (["--output", ""], "is empty"),
        (["--output"], "lacks its value"),
        (["--output", "--steps"], "lacks its value"),
        (["--unknown", "1"], "'--unknown' is not for jobs"),
        (["-o", "1"], "'-o' is not for jobs"),
        (["made.txt"], "'made.txt' is not for jobs"),
        (["--steps", "1\0"], "zero byte"),
        (["--steps", "1" * 5000], "too long"),
        (["--steps=1"] * 300, "too long"),
    ],
)
def test_arguments_that_are_refused(make, arguments, reason):
    runner = make()
    with pytest.raises(VlaError, match=reason):
        runner.start("fake", arguments)
    assert runner.list() == [] and not any(p.is_dir() for p in (runner.root / RECORDS).iterdir())


def test_kinds_that_are_refused(make):
    with pytest.raises(VlaError, match="no kind of job 'rm'; use fake, other"):
        make().start("rm", [])


def test_names_are_confined_where_they_could_be_paths(tmp_path):
    root = check_root(tmp_path)
    (root / "stats.json").touch()

    def words(value):
        return command_words(KINDS["eval"], ["--action-space", value], root)[1]

    assert words("normalized") == "--action-space=normalized"
    assert words("stats.json") == f"--action-space={root}/stats.json"
    for value in ("..", "/etc/passwd", "a/../../b"):
        with pytest.raises(VlaError, match="leads out"):
            words(value)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_path_of_a_verb_is_known_as_one(kind):
    verbs = find_verbs()
    if kind not in verbs:
        pytest.skip(f"the verb {kind} is not installed")
    options = {}
    for name, hint in typing.get_type_hints(verbs[kind].load(), include_extras=True).items():
        if name != "return":
            kinds, info = hint.__args__[0], hint.__metadata__[0]
            given = [info.default, *(info.param_decls or ())]
            words = [w for w in given if isinstance(w, str)] or [name.replace("_", "-")]
            words = [w.removeprefix("--") for both in words for w in both.split("/")]
            if kinds is bool:  # a flag without a name of its own can be turned off
                words += [f"no-{w}" for w in words]
            options.update(dict.fromkeys(words, kinds))
    assert KINDS[kind].options <= set(options)
    for name in KINDS[kind].options:
        if "Path" in str(options[name]):
            assert name in KINDS[kind].paths
        assert (options[name] is bool) == (name in KINDS[kind].flags)


# -- confinement ------------------------------------------------------------------------------


def test_roots_that_are_refused(tmp_path):
    (tmp_path / "file").touch()
    for root, reason in (
        ("", "no root"), ("/", "whole file system"), (tmp_path / "no", "does not exist"),
        (tmp_path / "file", "not a folder"), (f"{tmp_path}/{'../' * 50}", "whole file system"),
    ):  # fmt: skip
        with pytest.raises(VlaError, match=reason):
            check_root(root)


def test_no_path_leads_out(tmp_path):
    """Random paths over a tree with links of every sort: what is let through is inside.

    Judged by the kernel: the file is made at the path given, and looked for afterwards.
    """
    root = tmp_path / "root"
    for folder in ("root/a/b", "root/c", "outside/deep", "root-twin"):
        (tmp_path / folder).mkdir(parents=True)
    links = {
        "out": "../outside", "a/up": "..", "a/b/upup": "../..", "abs": str(tmp_path / "outside"),
        "twin": "../root-twin", "c/chain": "../out/deep", "in": "a/b", "loop": "loop",
        "dangling": "../outside/new", "a/home": str(root),
    }  # fmt: skip
    for name, target in links.items():
        (root / name).symlink_to(target)
    root = check_root(root)
    pieces = [
        "a", "b", "c", "up", "upup", "out", "abs", "twin", "chain", "in", "loop", "dangling",
        "home", "..", "..", ".", "", "deep", "root", "root-twin", "new", "~", "a b", "\u00e9",
    ]  # fmt: skip
    starts = ["", "", "", str(root), str(tmp_path), "/", f"{root}-twin"]
    rng = random.Random(0)
    counts = {True: 0, False: 0}
    for _ in range(4000):
        start, words = rng.choice(starts), rng.choices(pieces, k=rng.randint(1, 6))
        value = "/".join([start, *words] if start else words)
        try:
            path = confine(root, value)
        except VlaError:
            allowed = False
        else:
            allowed = True
            assert path == root or root in path.parents
            assert os.path.realpath(path) == str(path)
            confined_again = confine(root, str(path))
            assert confined_again == path
        counts[allowed] += 1
        # What the kernel says of the folder it names, where there is one.
        given = os.path.join(root, value)
        with contextlib.suppress(OSError, ValueError):
            there = Path(os.path.realpath(given, strict=True))
            inside = there == root or root in there.parents
            assert allowed == inside or (not value and inside), value
    assert min(counts.values()) > 500


# -- progress ---------------------------------------------------------------------------------


@pytest.fixture
def progress_file(tmp_path, monkeypatch):
    path = tmp_path / "progress.json"
    monkeypatch.setenv(progress.VARIABLE, str(path))
    monkeypatch.setattr(progress, "_first", None)
    monkeypatch.setattr(progress, "_written", float("-inf"))
    return path


def test_progress_is_written_where_it_was_asked_for(progress_file, monkeypatch):
    clock = [10.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    progress.report(100, 200, "resumed")
    assert read_progress(progress_file)["rate"] == 0
    clock[0] += 0.1
    progress.report(105, 200)
    assert read_progress(progress_file)["step"] == 100  # too soon for another
    clock[0] += 1.9
    progress.report(150, 200)
    values = read_progress(progress_file)
    assert (values["rate"], values["seconds_left"], values["fraction"]) == (25, 2, 0.75)
    clock[0] += 0.01
    progress.report(200, 200, seconds_left=float("inf"))
    values = read_progress(progress_file)
    assert (values["step"], values["fraction"], values["seconds_left"]) == (200, 1, -1)
    assert [p.name for p in progress_file.parent.iterdir()] == ["progress.json"]


def test_progress_does_no_harm(tmp_path, monkeypatch):
    monkeypatch.delenv(progress.VARIABLE, raising=False)
    progress.report(1, 2)
    monkeypatch.setenv(progress.VARIABLE, str(tmp_path / "no" / "folder"))
    progress.report(2, 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"step": "x"}', '{"step": Infinity}', '{"step": 1', "\xff\0"]
)
def test_progress_of_no_use_is_passed_over(tmp_path, text):
    (tmp_path / "p").write_text(text)
    assert read_progress(tmp_path / "p") is None
    (tmp_path / "p").write_text(json.dumps({"step": -3, "fraction": 7, "rate": None}))
    values = read_progress(tmp_path / "p")
    assert (values["step"], values["fraction"], values["rate"]) == (0, 1.0, 0.0)
