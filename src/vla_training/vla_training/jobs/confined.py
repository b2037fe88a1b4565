"""Runs `vla` as a job, with all file access confined to the job root.

    VLA_JOB_ROOT=/root/of/jobs python -m vla_training.jobs.confined COMMAND --NAME=VALUE ...

The paths themselves were confined when the job was asked for. This looks inside them: at links in
datasets, checkpoints and runs, and at files that HDF5 files name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py

from vla_inference.cli.main import complain
from vla_inference.cli.main import main as vla
from vla_inference.errors import VlaError
from vla_training.jobs.kinds import KINDS
from vla_training.jobs.paths import ROOT, confine

HDF5 = (".hdf5", ".h5")
REMEDY = "put the files themselves there, or use the command line on that machine"


def opened(words: Sequence[str]) -> Iterator[Path]:
    """The paths that a command with these words (from `command_words`) would open."""
    kind = KINDS[words[0]]
    given = [word.removeprefix("--").partition("=")[::2] for word in words[1:]]
    options = dict(given)
    for name, value in given:
        if name in kind.paths | kind.names and name != "data-root-dir":
            yield Path(value)
        elif name in kind.engines and ":" in value:
            yield Path(value.partition(":")[2])
    # Only the datasets that are named: others beside them may lie wherever they like.
    data = Path(options.get("data-root-dir", "."))
    for name in filter(None, options.get("dataset-name", "").split(",")):
        for stem in {name.strip(), name.strip().rpartition(":")[0]} - {""}:
            yield data / stem
            yield data / f"{stem}.hdf5"


def check(path: Path, root: Path) -> None:
    """Refuses links out of `root` (`check_root`) at `path` or anywhere below it.

    Raises VlaError that names the link or the HDF5 object.
    """
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        path = waiting.pop()
        try:
            real = confine(root, str(path), "link")
        except VlaError:
            raise VlaError(
                f"{path} leads out of the root folder {root}, to {os.path.realpath(path)}", REMEDY
            ) from None
        if real in seen:
            continue
        seen.add(real)
        if real.is_dir():
            waiting += [Path(entry.path) for entry in os.scandir(real) if _matters(entry)]
        elif real.suffix in HDF5 and real.is_file():
            for what, name in files_named_by(real):
                waiting.append(_named(real, what, name, root))


def _matters(entry: os.DirEntry) -> bool:
    """Whether to check an entry: of plain files only HDF5 can refer to others."""
    return entry.is_symlink() or entry.is_dir() or entry.name.endswith(HDF5)


def _named(file: Path, what: str, name: str, root: Path) -> Path:
    path = file.parent / name
    try:
        return confine(root, str(path), "file")
    except VlaError:
        raise VlaError(
            f"{file}: {what} is in {path}, which is outside of the root folder {root}", REMEDY
        ) from None


def files_named_by(path: Path) -> list[tuple[str, str]]:
    """External references of an HDF5 file: the object's name and the other file's."""
    found: list[tuple[str, str]] = []
    seen: set[int] = set()

    def look(group: h5py.Group) -> None:
        for name in group:
            where = f"{group.name.rstrip('/')}/{name}"
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                found.append((where, link.filename))
                continue
            if isinstance(link, h5py.SoftLink):
                continue  # to what is seen by its own name, or by an external link
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(item, h5py.Group):
                look(item)
            elif isinstance(item, h5py.Dataset):
                found.extend((where, name) for name, _, _ in item.external or ())
                if item.is_virtual:
                    sources = {s.file_name for s in item.virtual_sources()} - {"."}
                    found.extend((where, name) for name in sources)

    try:
        with h5py.File(path, "r") as file:
            look(file)
    except (OSError, RuntimeError, KeyError):
        pass  # damaged: the reader says so, in better words
    return found


def main() -> int:
    words = sys.argv[1:]
    try:
        root = Path(os.environ[ROOT])
        for path in opened(words):
            check(path if path.is_absolute() else root / path, root)
    except VlaError as error:
        complain(f"vla {words[0]}", str(error))
        return 2
    return vla(words)


if __name__ == "__main__":
    sys.exit(main())
