"""Writes the tables and videos of a LeRobotDataset, starting new files at a size limit."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_training.datasets.lerobot import layout as layout

PIXELS = ("yuv444p", "yuv420p")


class TableFiles:
    """Parquet files with one row group per table written, and a new file at a size limit."""

    def __init__(self, folder: Path, pattern: str, limit: float):
        self._folder, self._pattern, self._limit = folder, pattern, limit
        self._number = 0
        self._writer: pq.ParquetWriter | None = None
        self._path: Path | None = None

    def next_file(self) -> dict[str, int]:
        """Chunk and file number of the next table."""
        path = self._path if self._writer is not None else None
        if path is not None and path.stat().st_size > self._limit:
            self.close()
            self._number += 1
        return layout.file_number(self._number)

    def write(self, table: pa.Table) -> dict[str, int]:
        place = self.next_file()
        if self._writer is None:
            self._path = self._folder / self._pattern.format(**place)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._path, table.schema, compression="snappy")
        self._writer.write_table(table)
        return place

    def close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()


class VideoFiles:
    """MP4 files of one camera: encoded episodes in order, copied packet by packet."""

    def __init__(self, folder: Path, key: str, rate: Fraction, limit: float):
        self._folder, self._key, self._rate, self._limit = folder, key, rate, limit
        self._number = self._frames = self._bytes = 0
        self._container: Any = None
        self._stream: Any = None

    def append(self, data: bytes, length: int) -> dict[str, float]:
        if self._container is not None and self._bytes + len(data) > self._limit:
            self.close()
            self._number += 1
        place = layout.file_number(self._number)
        with av.open(io.BytesIO(data)) as source:
            stream = source.streams.video[0]
            if self._container is None:
                self._begin(place, stream)
            step = Fraction(1, 1) / self._rate / stream.time_base  # ticks of a frame
            for packet in source.demux(stream):
                if packet.dts is None:
                    continue  # the demuxer's end
                packet.pts += round(self._frames * step)
                packet.dts += round(self._frames * step)
                packet.stream = self._stream
                self._container.mux(packet)
        begun = self._frames
        self._frames += length
        self._bytes += len(data)
        return {
            **place,
            "from_timestamp": float(begun / self._rate),
            "to_timestamp": float(self._frames / self._rate),
        }

    def _begin(self, place: dict[str, int], template: Any) -> None:
        path = self._folder / layout.VIDEO.format(video_key=self._key, **place)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(path), "w", format="mp4")
        self._stream = self._container.add_stream_from_template(template)
        self._stream.time_base = template.time_base
        self._frames = self._bytes = 0

    def close(self) -> None:
        if self._container is not None:
            container, self._container = self._container, None
            container.close()


def encode_video(
    frames: Sequence[np.ndarray], rate: Fraction, crf: int = 14, pixels: str = PIXELS[0]
) -> bytes:
    """Encodes uint8 [H, W, 3] images to MP4.

    Every second image stands alone, so that any is found fast, and none refers to a later one,
    so that films can be joined.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.options = {
            "preset": "veryfast",
            "crf": str(crf),
            "g": "2",
            "bf": "0",
            "threads": "1",
        }
        for frame in frames:
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    return buffer.getvalue()
