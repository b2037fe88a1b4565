"""Tests of atomic file writes and locks, with processes that are killed."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vla_inference.errors import VlaError
from vla_inference.system import files
from vla_inference.system.files import (
    FileLock,
    Staged,
    only_one,
    whole_file,
    writable,
    write_whole,
)

WRITER = """
import sys, time
from vla_inference.system.files import Staged
staged = Staged(sys.argv[1])
staged.staged.write_text("half")
print("ready", flush=True)
time.sleep(60)
"""


def start_writer(path: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


def test_a_killed_writer_s_leftover_goes_and_a_live_one_s_stays(tmp_path):
    path = tmp_path / "out.json"
    write_whole(path, "old")
    dead, alive = start_writer(path), start_writer(path)
    try:
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        assert path.read_text() == "old"
        assert len(list(tmp_path.glob(".out.json.*.tmp"))) == 2
        write_whole(path, b"new")
        (left,) = tmp_path.glob(".out.json.*.tmp")
        assert (left / "out.json").read_text() == "half" and path.read_text() == "new"
    finally:
        alive.kill()
        alive.wait()
    write_whole(path, "newest")
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


def test_a_lock_is_one_process_s_and_ends_with_it(tmp_path):
    path = tmp_path / "lock"
    code = "import sys, time; from pathlib import Path\n"
    code += "from vla_inference.system.files import FileLock\n"
    code += "lock = FileLock(Path(sys.argv[1])); print('ready', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"ready\n"
    with pytest.raises(BlockingIOError):
        FileLock(path)
    holder.kill()
    holder.wait()
    first = FileLock(path)
    with pytest.raises(BlockingIOError):
        FileLock(path)
    first.release()
    assert not path.exists()
    FileLock(path).release()


def test_a_folder_is_exchanged_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "model"
    for number in range(3):
        with Staged(path) as staged:
            staged.mkdir()
            (staged / f"file{number}").write_text("x")
        assert [p.name for p in path.iterdir()] == [f"file{number}"]
    # a kill right after the swap: the new one has its name, the old one is in the hidden folder
    staged = Staged(path)
    staged.staged.mkdir()
    monkeypatch.setattr(files.shutil, "rmtree", lambda *a, **k: os.kill(os.getpid(), 9))
    child = os.fork()
    if child == 0:
        staged.commit()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    assert list(path.iterdir()) == []
    assert [p.name for p in staged.staged.iterdir()] == ["file2"]


def test_where_the_disk_cannot_exchange_the_old_comes_back_if_the_new_cannot_go(
    tmp_path, monkeypatch
):
    class Libc:
        def renameat2(self, *_):
            files.ctypes.set_errno(files.errno.EINVAL)
            return -1

    monkeypatch.setattr(files.ctypes, "CDLL", lambda *a, **k: Libc())
    path = tmp_path / "model"
    write_whole(path / "old", "")
    with Staged(path) as staged:
        write_whole(staged / "new", "")
    assert [p.name for p in path.iterdir()] == ["new"]
    rename, calls = os.rename, []

    def second_fails(*names):
        calls.append(names)
        if len(calls) == 2:
            raise OSError(5, "Input/output error", str(names[0]))
        rename(*names)

    monkeypatch.setattr(files.os, "rename", second_fails)
    with pytest.raises(OSError, match="Input/output") as error, Staged(path) as staged:
        write_whole(staged / "newest", "")
    assert error.value.filename == str(path)
    assert [p.name for p in path.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_everything_is_on_the_disk_before_and_after_the_name_changes(tmp_path, monkeypatch):
    told, path = [], tmp_path / "a" / "out.bin"
    fsync, replace = os.fsync, os.replace

    def traced(handle):
        told.append(("fsync", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def moved(old, new):
        told.append(("replace", str(new)))
        replace(old, new)

    monkeypatch.setattr(files.os, "fsync", traced)
    monkeypatch.setattr(files.os, "replace", moved)
    write_whole(path, b"1")
    (first, staged), second, third = told
    assert first == "fsync" and staged.endswith("/out.bin")
    assert second == ("replace", str(path)) and third == ("fsync", str(path.parent))
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~files.UMASK


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "out.bin"
    write_whole(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large") as error, whole_file(path) as file:
            file.write(bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.filename == str(path) and path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.bin"]


def test_what_cannot_be_written_is_refused_by_name(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("precious")
    writable(tmp_path / "a" / "b" / "new.json")
    writable(tmp_path / "a" / "b", "folder")
    writable(file)
    for path, kind, words in (
        (tmp_path, "file", "is a folder; name a file"),
        (file, "folder", "is a file; name a folder"),
        (file / "x" / "y", "file", f"y cannot be written: {file} is not a folder; choose another"),
        (file / "x", "folder", f"x cannot be written: {file} is not a folder"),
        (Path("/proc/self/out"), "new folder", r"out cannot be written \(/proc/self: "),
    ):
        with pytest.raises(VlaError, match=words):
            writable(path, kind)
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and file.read_text() == "precious"


def test_only_one_works_in_a_folder(tmp_path):
    folder = tmp_path / "new"
    with only_one(folder, "vla train"):
        running = r"another vla train is running in .*new; wait for it"
        with pytest.raises(VlaError, match=running), only_one(folder, "vla train"):
            pass
        assert folder.is_dir()
    assert not folder.exists()  # it was made for this, and is empty
    with only_one(folder, "vla train"):
        (folder / "result").touch()
    assert [p.name for p in folder.iterdir()] == ["result"]
    with pytest.raises(VlaError, match="is a file"), only_one(folder / "result", "vla train"):
        pass
