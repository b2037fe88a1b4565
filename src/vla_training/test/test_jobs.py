"""Tests of jobs: which options are allowed, and how each way a job ends is reported."""

from __future__ import annotations

import os
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from vla_inference.cli.main import find_subcommands
from vla_inference.cli.options import options_of
from vla_inference.errors import VlaError
from vla_training.jobs import KINDS, JobRunner, Kind
from vla_training.jobs.kinds import COMMANDS, command_words
from vla_training.jobs.paths import RECORDS
from vla_training.jobs.record import CANCELLED, FAILED, RUNNING, SUCCEEDED

FAKE = """
import os, signal, subprocess, sys, time
from vla_inference.system import progress
command, *options = sys.argv[1:]
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
            JobRunner._kill(job, signal.SIGKILL)
        runner.close()


def until(runner, condition, patience=60.0):
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, runner.all()
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


def test_a_failure_says_what_the_subcommand_said(make):
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


def test_a_step_of_the_wall_clock_kills_nothing_early(make, monkeypatch):
    monkeypatch.setattr("vla_training.jobs.runner.TERM_GRACE", 60.0)
    runner = make()
    runner.cancel_grace = 60.0
    job = runner.start("fake", [*LONG, "--stubborn=1"])
    until(runner, lambda: job.step > 1)
    sent = []
    monkeypatch.setattr(runner, "_kill", lambda job, number: sent.append(number))
    runner.cancel(job.job_id)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e6)
    for _ in range(5):
        runner.poll()
    assert sent == [signal.SIGINT] and not job.over


def test_close_does_not_wait_for_ever_for_what_cannot_be_killed(make, monkeypatch):
    for name in ("TERM_GRACE", "KILL_GRACE"):
        monkeypatch.setattr(f"vla_training.jobs.runner.{name}", 0.2)
    runner = make()
    job = runner.start("fake", LONG)
    until(runner, lambda: job.step > 1)
    monkeypatch.setattr(runner, "_kill", lambda *_: None)  # as in a call that never returns
    begin = time.monotonic()
    assert runner.close() == [job] and time.monotonic() - begin < 5
    second = make()
    assert second.get(job.job_id).state == RUNNING  # found by the next one
    second.cancel(job.job_id)
    assert ended(second, second.get(job.job_id)).state == CANCELLED


def test_logs_and_records_do_not_grow_without_end(make, monkeypatch):
    monkeypatch.setattr("vla_training.jobs.runner.LOG_MOST", 2000)
    monkeypatch.setattr("vla_training.jobs.runner.LOG_KEPT", 300)
    runner = make(keep=2)
    job = runner.start("fake", ["--steps", "2000", "--pause", "0.001"])
    sizes = []

    def over() -> bool:
        sizes.append(job.log_file.stat().st_size)
        return job.over

    until(runner, over)
    assert max(sizes) < 100_000 and any(b < a for a, b in pairwise(sizes))
    said = runner.log(job.job_id)
    assert "its beginning is gone" in said and said.endswith("all done\n") and "\0" not in said
    names = [ended(runner, runner.start("fake", [])).job_id for _ in range(3)]
    assert [j.job_id for j in runner.all()] == names[:0:-1]
    assert {p.name for p in (runner.root / RECORDS).iterdir() if p.is_dir()} == set(names[1:])
    runner.close()
    assert [j.job_id for j in make(keep=1).all()] == names[2:]


def test_kill_9_of_the_subcommand_is_a_failure_and_takes_its_workers_along(make):
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
    assert [j.kind for j in runner.all()] == ["fake", "other", "fake"]


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
    assert [j.job_id for j in second.all()] == [good.job_id]
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
        (["--output"], "needs a value"),
        (["--output", "--steps"], "needs a value"),
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
    assert runner.all() == [] and not any(p.is_dir() for p in (runner.root / RECORDS).iterdir())


def test_kinds_that_are_refused(make):
    with pytest.raises(VlaError, match="no kind of job 'rm'; use fake, other"):
        make().start("rm", [])


# What may be a path must be known as one, or a job would read and write anywhere.
PATHS = {
    "generate": "output source randomize-ranges model",
    "convert": "dataset output",
    "train": "dataset data output start average-with",
    "finetune": "dataset data-root-dir run-root-dir vla-path model",
    "improve": "dataset output recorded vla-path model",
    "study": "output dataset data start",
    "eval": "dataset model reference-model save-stats report engine vision"
    " unnorm-key action-space",
}
LOCAL = {"json", "ray-address", "wandb", "read", "load"}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_jobs_take_every_option_of_a_command_but_the_local_ones(name):
    kind, function = KINDS[name], COMMANDS[name]
    there = {w.removeprefix("--") for o in options_of(function) for w in (*o.names, *o.off)}
    assert kind.options == there - LOCAL
    assert kind.paths | kind.names | kind.engines == set(PATHS[name].split())


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_kind_of_job_is_the_command_of_its_name(name):
    subcommands = find_subcommands()
    if name not in subcommands:
        pytest.skip(f"the command {name} is not installed")
    assert subcommands[name].load() is COMMANDS[name]


def test_the_folder_of_an_engine_is_kept_inside_the_root(tmp_path):
    def words(value: str) -> list[str]:
        return command_words(KINDS["eval"], ["--engine", value], tmp_path)

    assert words("torch") == ["eval", "--engine=torch"]
    assert words("tvm:made") == ["eval", f"--engine=tvm:{tmp_path}/made"]
    with pytest.raises(VlaError, match="--engine"):
        words("tvm:../made")
