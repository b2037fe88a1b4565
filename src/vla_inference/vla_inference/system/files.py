"""Atomic file and folder writes, and locks that end with their process.

What is being written lies in a hidden folder beside its target, `.NAME.XXXXXXXX.tmp`. A lock marks
that folder as in use, so that leftovers of killed processes are told from work that goes on: by
`flock`, since process numbers repeat in containers and mean nothing on other hosts.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

from vla_inference.errors import VlaError

LOCK = ".lock"  # in a hidden folder that is in use
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_HERE = -100  # AT_FDCWD
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EXDEV)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


UMASK = _umask()  # read once: reading it sets it, for all threads


class FileLock:
    """An exclusive lock on `path`, a file made for it; it ends with its process.

    Raises BlockingIOError where somebody else holds it, another OSError where there are no locks.
    """

    def __init__(self, path: Path):
        self.path = path
        while True:
            self._file = path.open("ab")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(self._file.fileno()), path.stat()):
                    return
            except FileNotFoundError:
                pass  # its last holder removed it between the two calls
            except BaseException:
                self._file.close()
                raise
            self._file.close()

    def release(self) -> None:
        """Remove the file and free the lock."""
        if not self._file.closed:
            self.path.unlink(missing_ok=True)
            self._file.close()


@contextlib.contextmanager
def only_one(folder: str | os.PathLike, command: str) -> Iterator[None]:
    """No other process works in `folder`, which is made, as long as this lasts.

    Raises VlaError where another one does. Where the disk has no locks nothing is checked.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise VlaError(f"{folder} is a file", "choose another folder")
    made, lock = not folder.exists(), None
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / LOCK)
    except BlockingIOError:
        raise VlaError(
            f"another {command} is running in {folder}", "wait for it, or choose another folder"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
        if made:  # nothing is left of what could not begin
            with contextlib.suppress(OSError):
                folder.rmdir()


def take_over(folder: Path) -> FileLock | None:
    """The lock of a hidden folder whose owner is gone; None if it is or may be in use."""
    try:
        return FileLock(folder / LOCK)
    except OSError:
        return None


class HiddenFolder:
    """A new hidden folder in `parent` with a unique name, locked until it is removed.

    Where the disk knows no locks nobody can take it over, so its leftovers stay.
    """

    def __init__(self, parent: Path, prefix: str, suffix: str = ""):
        self._lock: FileLock | None = None
        while self._lock is None:
            self.path = Path(tempfile.mkdtemp(suffix, prefix, parent))
            try:
                self.path.chmod(0o777 & ~UMASK)
                self._lock = FileLock(self.path / LOCK)
            except (BlockingIOError, FileNotFoundError):
                continue  # taken for a leftover before it was locked
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    shutil.rmtree(self.path, ignore_errors=True)
                    raise
                return

    def remove(self) -> None:
        """Removes it with its content."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._release()

    def remove_empty(self) -> None:
        """Removes it only if it is empty."""
        self._release()
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()


class Staged:
    """A file or folder being made: write to `staged`, then `commit` gives it its name.

    The target's parent folder is made where it is missing. As a context manager it commits at the
    end and discards after an error. Raises OSError, with the target's name in it.
    sync: it is there after a power cut too. clean: remove first what killed processes left of it,
    which looks through the whole folder.
    """

    def __init__(self, path: str | os.PathLike, sync: bool = True, clean: bool = True):
        self.path, self._sync = Path(path), sync
        with _named(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if clean:
                remove_leftovers(self.path.parent, self.path.name)
            self._place = HiddenFolder(self.path.parent, f".{self.path.name}.", ".tmp")
        self.staged = self._place.path / self.path.name

    def commit(self) -> Path:
        """Replaces what is at `path`; either the old or the new one is always there."""
        try:
            with _named(self.path):
                _set_mode(self.staged)
                if self._sync:
                    sync_tree(self.staged)
                replace_entry(self.staged, self.path)
                if self._sync:
                    sync(self.path.parent)
        finally:
            self.discard()
        return self.path

    def discard(self) -> None:
        """Removes what was written and what it would have replaced."""
        self._place.remove()

    def __enter__(self) -> Path:
        return self.staged

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.commit()
            return
        self.discard()
        if isinstance(error, OSError):
            _give_name(error, self.path)


@contextlib.contextmanager
def whole_file(
    path: str | os.PathLike, sync: bool = True, clean: bool = True
) -> Iterator[IO[bytes]]:
    """A file that gets its name once it is complete; see `Staged`."""
    with Staged(path, sync, clean) as staged, staged.open("wb") as file:
        yield file


def write_whole(
    path: str | os.PathLike, content: bytes | str, sync: bool = True, clean: bool = True
) -> Path:
    """Writes a file so that readers never see half of it, even after a power cut."""
    with whole_file(path, sync, clean) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return Path(path)


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Removes what killed processes left in `folder` while writing `name`, or anything."""
    for left in folder.glob(f".{glob.escape(name) or '*'}.*.tmp"):
        lock = take_over(left) if left.is_dir() and not left.is_symlink() else None
        if lock is not None:
            shutil.rmtree(left, ignore_errors=True)
            lock.release()


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EROFS):  # a file system that has no sync
            raise
    finally:
        os.close(handle)


def sync_tree(path: Path) -> None:
    """Flushes a file, or a folder with everything in it, to disk."""
    if path.is_dir():
        for folder, _, names in os.walk(path):
            for name in names:
                sync(Path(folder, name))
            sync(Path(folder))
    else:
        sync(path)


def writable(
    path: str | os.PathLike, kind: Literal["file", "folder", "new folder"] = "file"
) -> None:
    """Refuses, before any work, an output that could not be written at the end.

    kind: "folder" is one that files are put into, "new folder" one that is made or replaced whole.
    Raises VlaError.
    """
    path = Path(path)
    if kind == "file" and path.is_dir():
        raise VlaError(f"{path} is a folder", "name a file")
    if kind == "folder" and path.exists() and not path.is_dir():
        raise VlaError(f"{path} is a file", "name a folder")
    there = path if kind == "folder" else path.parent
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise VlaError(
            f"{path} cannot be written: {there} is not a folder", "choose another place"
        )
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise VlaError(
            f"{path} cannot be written ({there}: {error.strerror})", "choose another place"
        ) from error


def replaceable(output: Path, overwrite: bool, mark: str, kind: str) -> None:
    """Refuses a folder to write that exists, unless it may be overwritten and is of that kind.

    mark: the file that every folder of this kind holds.
    """
    writable(output, "new folder")
    if not output.exists():
        return
    if not overwrite:
        raise VlaError(f"{output} already exists", "choose another or give --overwrite")
    if not output.is_dir() or (any(output.iterdir()) and not (output / mark).is_file()):
        raise VlaError(f"{output} is not a {kind}", "it is not overwritten: choose another")


def being_written(path: Path) -> list[Path]:
    """Hidden folders of processes that are now writing `path`."""
    found = []
    for place in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        lock = take_over(place)
        if lock is None:
            found.append(place)
        else:
            lock.release()
    return found


def replace_entry(new: Path, old: Path) -> None:
    """Renames `new` to `old`; a folder that had the name gets the name `new`."""
    if (new.is_dir() or old.is_dir()) and os.path.lexists(old):
        _exchange(new, old)
    else:
        os.replace(new, old)


def _exchange(new: Path, old: Path) -> None:
    """Swaps two names atomically, or in two steps where the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(new), os.fsencode(old)
    if not libc.renameat2(_HERE, names[0], _HERE, names[1], _EXCHANGE):
        return
    code = ctypes.get_errno()
    if code not in _CANNOT_EXCHANGE:
        raise OSError(code, os.strerror(code), str(old))
    aside = new.with_name(f"{new.name}.old")
    os.rename(old, aside)
    try:
        os.rename(new, old)
    except OSError:
        os.rename(aside, old)
        raise
    os.rename(aside, new)


def _set_mode(path: Path) -> None:
    """Sets the mode of a plain `open`; some libraries make files private."""
    if path.is_file():
        path.chmod(0o666 & ~UMASK)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _give_name(error, path)
        raise


def _give_name(error: OSError, path: Path) -> None:
    """Names the target instead of the hidden path in an error, or nothing (full disk)."""
    if error.errno is None:
        return  # a library's own words
    if error.filename is None or str(path.parent / f".{path.name}.") in str(error.filename):
        error.filename, error.filename2 = str(path), None
