"""Decompresses storage files and messages recorded with `--compression-format zstd`."""

from __future__ import annotations

import atexit
import tempfile
from pathlib import Path

import zstandard

from vla_training.datasets.bag.files.paths import PACKED

MAGIC = b"\x28\xb5\x2f\xfd"  # of a zstd frame; CDR begins with a zero
BLOCK = 1 << 20
MOST_UNPACKED = 4  # files kept at once


class _Unpacked:
    def __init__(self, path: Path):
        self._folder = tempfile.TemporaryDirectory(prefix="vla-bag-")
        self.file = Path(self._folder.name, path.stem)
        self.lost = ""
        with path.open("rb") as packed, self.file.open("wb") as file:
            stream = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
            try:
                while block := stream.read(BLOCK):
                    file.write(block)
            except zstandard.ZstdError as error:  # what came before the damage counts
                self.lost = f"its compression breaks off ({error})"

    def remove(self) -> None:
        self._folder.cleanup()


_kept: dict[tuple, _Unpacked] = {}  # the last ones used, the newest at the end


def unpacked(path: Path) -> tuple[Path, str]:
    """The storage file in a compressed one, kept while in use, and what of it is lost."""
    if path.suffix != PACKED:
        return path, ""
    about = path.stat()
    key = path, about.st_ino, about.st_mtime_ns
    found = _kept.pop(key, None) or _Unpacked(path)
    _kept[key] = found
    while len(_kept) > MOST_UNPACKED:
        _kept.pop(next(iter(_kept))).remove()
    return found.file, found.lost


def plain(data: bytes) -> bytes:
    """A message before `--compression-mode message`."""
    if data[:4] == MAGIC:
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


@atexit.register
def _clear() -> None:
    for found in _kept.values():
        found.remove()
    _kept.clear()
