"""Deletes, restores and tags episodes of HDF5 datasets that this project wrote.

A deleted episode moves from `data` to `deleted` in the same file, where no reader looks for one:
nothing is lost. The file is written anew beside its place and replaced as a whole.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py

from vla_inference.episodes.hdf5 import Demonstrations
from vla_inference.errors import DataError
from vla_inference.system.files import Staged, only_one

BIN = "deleted"  # the group of deleted episodes, and their attribute: Unix seconds
TAG_LENGTH, TAGS = 40, 20  # characters of a tag, and how many an episode has at most


def delete_episode(path: str | os.PathLike, index: int, name: str = "") -> str:
    """Takes an episode out of a dataset; returns its name in the file ("demo_3").

    name: what it is expected to be called; empty: anything. Raises DataError where there is no
    such episode, it is the file's last one, or the file is not this project's.
    """
    file, found = _find(Path(path), index, name)
    with _edited(file) as edited:
        if len(edited["data"]) < 2:
            raise DataError(
                f"{found} is the last episode of {file}", "remove the file if you do not need it"
            )
        bin_ = edited.require_group(BIN)
        if found in bin_:
            raise DataError(f"{file} already has a deleted {found}", "restore that one first")
        edited.move(f"data/{found}", f"{BIN}/{found}")
        bin_[found].attrs[BIN] = time.time()
        _count(edited)
    return found


def restore_episode(path: str | os.PathLike) -> str:
    """Puts back the episode that was deleted last; returns its name."""
    file, found = _newest(Path(path))
    with _edited(file) as edited:
        if found in edited["data"]:
            raise DataError(
                f"{file} has another {found} by now", "copy the deleted one out of the file"
            )
        edited.move(f"{BIN}/{found}", f"data/{found}")
        del edited[f"data/{found}"].attrs[BIN]
        _count(edited)
    return found


def tag_episode(path: str | os.PathLike, index: int, tags: Sequence[str], name: str = "") -> str:
    """Sets an episode's tags, which are part of its metadata; none: removes them."""
    for tag in tags:
        if not tag.strip() or len(tag) > TAG_LENGTH or "," in tag or not tag.isprintable():
            raise DataError(
                f"{tag!r:.60} is no tag", f"give 1 to {TAG_LENGTH} characters without a comma"
            )
    if len(tags) > TAGS:
        raise DataError(f"{len(tags)} tags are too many", f"give at most {TAGS}")
    file, found = _find(Path(path), index, name)
    with _edited(file) as edited:
        attributes = edited[f"data/{found}"].attrs
        attributes.pop("tags", None)
        if tags:
            attributes["tags"] = ", ".join(tag.strip() for tag in tags)
    return found


def deleted_episodes(path: str | os.PathLike) -> list[str]:
    """Names of the deleted episodes of a file or folder, the one deleted last at the end."""
    return [name for _, _, name in _deleted(Path(path))]


def episode_name(path: str | os.PathLike, index: int) -> str:
    """What an episode is called in its file."""
    return _find(Path(path), index, "", ours=False)[1]


def _find(path: Path, index: int, name: str, ours: bool = True) -> tuple[Path, str]:
    """The file that holds an episode, and its name there."""
    if path.exists() and not _files(path):
        raise DataError(f"{path} is no HDF5 dataset", "convert it: vla convert --to hdf5")
    episodes = Demonstrations(path)
    if not 0 <= index < len(episodes):
        raise DataError(
            f"{path} has {len(episodes)} episodes",
            f"{index} is not one of 0 to {len(episodes) - 1}",
        )
    group, file = episodes.group(index), Path(episodes.filename(index))
    found = str(group.name).rpartition("/")[2]
    if ours and "action_convention" not in group.file["data"].attrs:
        raise DataError(
            f"{file} was not written by vla",
            "convert it first: vla convert --to hdf5; the original stays as it is",
        )
    if ours and str(group.name) != f"/data/{found}":
        raise DataError(f"{file}: {group.name} is a link", "edit the file it leads to")
    if name and name != found:
        raise DataError(
            f"episode {index} of {path} is {found} by now, not {name}", "show it again"
        )
    return file, found


def _files(path: Path) -> list[Path]:
    """The HDF5 files of a dataset; none: it is of another format."""
    files = [path] if path.is_file() else sorted(path.glob("**/*"))
    return [file for file in files if file.suffix in (".hdf5", ".h5")]


def _deleted(path: Path) -> list[tuple[float, Path, str]]:
    """(when, file, name) of each deleted episode, in the order in which they were."""
    found = []
    for file in _files(path):
        with contextlib.suppress(OSError), h5py.File(file, "r") as opened:
            groups = opened.get(BIN, {}).items()
            found += [(float(g.attrs.get(BIN, 0)), file, name) for name, g in groups]
    return sorted(found)


def _newest(path: Path) -> tuple[Path, str]:
    found = _deleted(path)
    if not found:
        raise DataError(f"{path} has no deleted episode", "there is nothing to restore")
    return found[-1][1:]


@contextlib.contextmanager
def _edited(file: Path) -> Iterator[h5py.File]:
    """A copy of the file, open for changes, which takes its place at the end."""
    if file.is_symlink():
        raise DataError(f"{file} is a link", "edit the file it leads to")
    try:
        with only_one(file.parent, "vla command"), Staged(file) as staged:
            shutil.copyfile(file, staged)
            shutil.copymode(file, staged)
            with h5py.File(staged, "r+") as edited:
                yield edited
    except OSError as error:
        raise DataError(
            f"{file} cannot be written ({error.strerror or error})",
            "make room, or free it; it is as it was",
        ) from error


def _count(file: h5py.File) -> None:
    """Writes how many steps the remaining episodes have."""
    data = file["data"]
    data.attrs["total"] = sum(len(group["actions"]) for group in data.values())
