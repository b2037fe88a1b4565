"""Tests of Ctrl-C at any moment: no traceback, no worker left, a prompt end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vla_inference.system import interrupts
from vla_inference.system.worker_pool import WorkerPool

IMPORTING = """
import sys, time
from vla_inference.system.interrupts import node_process
sys.path.insert(0, {folder!r})
node_process("slow_node")()
"""
SLOW_NODE = """
import signal, time
print("importing", flush=True)
time.sleep(1.0)  # an import that takes its time
heard = []
def main():
    signal.signal(signal.SIGINT, lambda n, f: heard.append(n))
    print("running", flush=True)
    time.sleep(1.0)
    print("asked to stop", heard)  # to be flushed at the end
    return 7
"""
POOL = """
import contextlib, multiprocessing, time
from vla_inference.system import interrupts
from vla_inference.system.worker_pool import WorkerPool

def main():
    with contextlib.closing(WorkerPool(2)) as pool:
        jobs = [pool.submit(time.sleep, 60) for _ in range(4)]
        print("submitted", flush=True)
        jobs[0].result()

if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", multiprocessing.active_children())
"""


def hear_ctrl_c() -> None:
    """Where the tests run in the background, their shell has Ctrl-C ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupted(code: str, after: float, first: str) -> tuple[str, str, int, float]:
    """Run code in a group of its own, Ctrl-C to all of it: output, errors, status, seconds."""
    process = subprocess.Popen(
        code,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )
    assert process.stdout.readline().strip() == first
    time.sleep(after)
    begun = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return out, err, process.returncode, time.monotonic() - begun


@pytest.fixture
def node(tmp_path):
    (tmp_path / "slow_node.py").write_text(SLOW_NODE)
    return [sys.executable, "-c", IMPORTING.format(folder=str(tmp_path))]


def test_ctrl_c_while_a_node_is_imported_ends_it_without_a_word(node):
    out, err, status, seconds = interrupted(node, 0.1, "importing")
    assert (out, err, status) == ("", "", 130)
    assert seconds < 0.9


def test_later_it_is_the_nodes_to_answer_and_its_last_words_are_printed(node):
    out, err, status, _ = interrupted(node, 1.5, "importing")
    assert (out.splitlines(), err, status) == (["running", "asked to stop [2]"], "", 7)


def test_a_node_that_was_started_with_ctrl_c_held_back_hears_it_later(node):
    with interrupts.held():
        out, err, status, _ = interrupted(node, 0.0, "importing")
    assert (out, err, status) == ("", "", 130)


@pytest.mark.parametrize("after", [0.0, 0.05, 2.0])
def test_workers_are_silent_and_end_with_their_pool(tmp_path, after):
    (tmp_path / "pool.py").write_text(POOL)
    code = [sys.executable, tmp_path / "pool.py"]
    out, err, status, seconds = interrupted(code, after, "submitted")
    assert (out.strip(), err, status) == ("interrupted []", "", 0)
    assert seconds < 20  # 60 is what the work takes


def test_workers_of_a_killed_parent_end(tmp_path):
    (tmp_path / "pool.py").write_text(POOL)
    process = subprocess.Popen([sys.executable, tmp_path / "pool.py"], stdout=subprocess.PIPE)
    process.stdout.readline()
    time.sleep(1.0)
    task = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    children = [int(n) for n in task.read_text().split()]
    assert children
    process.kill()
    process.wait()
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def test_a_pool_that_was_never_used_closes():
    with contextlib.closing(WorkerPool(1)):
        pass


def test_a_signal_waits_for_what_is_being_made_and_no_longer():
    stop, made, after = interrupts.StopSignals(), [], []
    before = sys.unraisablehook
    try:
        with pytest.raises(KeyboardInterrupt), stop.interruptible():
            with stop.deferred():
                stop(signal.SIGINT, None)
                made.append("a lock and its owner")
            after.append("more work")
    finally:
        sys.unraisablehook = before
    assert made and not after


HANGING = """
import ctypes
from vla_inference.system.interrupts import ended_within
with ended_within(5.0):
    pass
with ended_within(0.2):
    ctypes.PyDLL(None).sleep(300)  # holds Python's lock, as rclpy does while an endpoint goes
"""


def test_what_hangs_with_pythons_lock_held_ends_all_the_same():
    assert subprocess.run([sys.executable, "-c", HANGING], timeout=100).returncode == 1
