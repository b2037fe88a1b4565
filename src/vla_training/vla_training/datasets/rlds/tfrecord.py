"""TFRecord files without TensorFlow: framed records with masked CRC32C checksums.

A record: u64 length, u32 CRC of those 8 bytes, the data, u32 CRC of the data; little endian.
Source: tensorflow/tensorflow tensorflow/core/lib/io/record_writer.h (format).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, BinaryIO

import google_crc32c

from vla_inference.errors import DataError
from vla_inference.system.files import whole_file

HEADER, FOOTER = 12, 4
COPY_AGAIN = "the file is damaged or truncated: copy or make it again"


def masked_crc(data: bytes) -> int:
    """CRC32C, rotated and shifted as TFRecord stores it."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


class RecordFile:
    """The records of one file by number. Opening it reads and checks only the lengths.

    `close` frees the file; reading opens it again, so that a set of thousands of shards needs one
    at a time. Threads and forked processes may share one.
    Raises DataError with file, record and offset where a CRC is wrong or the file ends early.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._file: BinaryIO | None = None
        try:
            with self.path.open("rb") as file:
                self._spans = list(self._scan(file))
        except OSError as error:
            raise DataError(f"{self.path} cannot be read ({error})", "check the path") from error

    def _scan(self, file: BinaryIO) -> Iterator[tuple[int, int]]:
        """(offset of the data, its length) of each record."""
        size, at, number = os.fstat(file.fileno()).st_size, 0, 0
        while at < size:
            file.seek(at)
            header = file.read(HEADER)
            if len(header) < HEADER:
                raise self._fault(number, at, f"the file ends {len(header)} bytes into its header")
            length, crc = struct.unpack("<QI", header)
            if masked_crc(header[:8]) != crc:
                raise self._fault(number, at, "the CRC of its length is wrong")
            end = at + HEADER + length + FOOTER
            if end > size:
                raise self._fault(number, at, f"it should end at {end}, the file ends at {size}")
            yield at + HEADER, length
            at, number = end, number + 1

    def _fault(self, number: int, offset: int, what: str) -> DataError:
        return DataError(f"{self.path}, record {number} at byte {offset}: {what}", COPY_AGAIN)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> bytes:
        offset, length = self._spans[index]
        try:
            if self._file is None:
                self._file = self.path.open("rb", buffering=0)
            # No shared position in the file: threads and forks don't disturb one another.
            raw = os.pread(self._file.fileno(), length + FOOTER, offset)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read ({error})", COPY_AGAIN) from error
        data = raw[:length]
        if len(raw) < length + FOOTER:
            raise self._fault(index, offset - HEADER, "the file has become shorter")
        if struct.unpack("<I", raw[length:])[0] != masked_crc(data):
            raise self._fault(index, offset - HEADER, "the CRC of its data is wrong")
        return data

    def __iter__(self) -> Iterator[bytes]:
        return (self[i] for i in range(len(self)))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def write_record(file: IO[bytes], data: bytes) -> None:
    """Appends a record."""
    length = struct.pack("<Q", len(data))
    header = length + struct.pack("<I", masked_crc(length))
    file.writelines((header, data, struct.pack("<I", masked_crc(data))))


def write_records(path: str | os.PathLike, records: Iterable[bytes]) -> None:
    """Writes a file of records, which gets its name when it is complete."""
    with whole_file(path) as file:
        for data in records:
            write_record(file, data)
