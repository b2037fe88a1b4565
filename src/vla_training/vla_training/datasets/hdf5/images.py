"""Images in HDF5 files: arrays, or JPEGs and PNGs padded to one length."""

from __future__ import annotations

import contextlib
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import deflate
import h5py
import numpy as np

from vla_inference.errors import DataError
from vla_training.datasets.base import EpisodeSet
from vla_training.datasets.images import StoredImages, decode_image

# What h5py raises where the file is damaged, depending on which byte it is.
FAULTS = (
    OSError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    RuntimeError,
    MemoryError,
    deflate.DeflateError,
)


@contextlib.contextmanager
def readable(where: str) -> Iterator[None]:
    """Raises damage as DataError that names the file and what is in it."""
    try:
        yield
    except FAULTS as error:
        raise _damaged(where, error) from error


def _damaged(where: str, error: Exception) -> DataError:
    return DataError(
        f"{where} cannot be read ({error})", "the file is damaged: generate or copy it again"
    )


class ImageColumn:
    """Images of one camera of an episode: uint8 [T, H, W, 3], or encoded ones [T, N].

    shuffled: they are not read one after the other. Else, all are read at once where a chunk
        holds several.
    flipped: the file has the bottom row first; what is read is upright.
    mirrored: what is read is mirrored left to right.
    length: steps; None: as many as are stored.
    """

    def __init__(
        self,
        data: h5py.Dataset,
        shuffled: bool = False,
        flipped: bool = False,
        mirrored: bool = False,
        length: int | None = None,
    ):
        self._data, self._shuffled = data, shuffled
        self._turn = slice(None, None, -1 if flipped else 1), slice(None, None, 1 - 2 * mirrored)
        self._turned = flipped or mirrored
        self._length = len(data) if length is None else length

    @cached_property
    def _source(self) -> h5py.Dataset | np.ndarray:
        chunks = self._data.chunks
        return self._data if self._shuffled or chunks is None or chunks[0] == 1 else self._data[:]

    @cached_property
    def _whole_chunks(self) -> bool:
        """Whether each chunk is one image under gzip and nothing else: read without HDF5's own
        zlib, which takes twice the time."""
        data = self._data
        return (
            data.chunks == (1, *data.shape[1:])
            and data.dtype == np.uint8
            and data.compression == "gzip"
            and not (data.shuffle or data.fletcher32 or data.scaleoffset)
        )

    @cached_property
    def _encoded(self) -> bool:
        return is_encoded(self._data)

    def read(self, step: int) -> np.ndarray:
        """uint8 [H, W, 3] of a step."""
        try:
            stored = self._stored(step)
        except FAULTS as error:
            raise _damaged(self._where(), error) from error
        if self._encoded:
            data = np.asarray(stored, np.uint8).tobytes()
            stored = decode_image(data, f"{self._where()}, step {step}")
        return stored[self._turn] if self._turned else stored

    def all(self) -> np.ndarray:
        """uint8 [T, H, W, 3]."""
        return np.stack([self.read(step) for step in range(self._length)])

    def _where(self) -> str:
        return f"{self._data.file.filename}: {self._data.name}"

    def _stored(self, step: int) -> np.ndarray:
        data = self._data
        if not self._whole_chunks:
            return self._source[step]
        unfiltered, raw = data.id.read_direct_chunk((step, *(0 for _ in data.shape[1:])))
        shape = data.shape[1:]
        pixels = raw if unfiltered else deflate.zlib_decompress(raw, math.prod(shape))
        return np.frombuffer(pixels, np.uint8).reshape(shape)


def is_encoded(data: h5py.Dataset) -> bool:
    """Whether it contains JPEGs or PNGs: rows of bytes of equal or variable length."""
    ragged = h5py.check_vlen_dtype(data.dtype)
    return (data.ndim == 2 and data.dtype == np.uint8) or (
        data.ndim == 1 and ragged is not None and np.dtype(ragged).itemsize == 1
    )


class Hdf5StepImages(StoredImages):
    """Camera name -> image of one step, read on each access."""

    __slots__ = ("_step",)

    def __init__(self, columns: Mapping[str, ImageColumn], step: int):
        super().__init__(columns)
        self._step = step

    def __getitem__(self, camera: str) -> np.ndarray:
        return self._stored[camera].read(self._step)


class ImageColumnSet(EpisodeSet):
    """A dataset whose images can be read one by one, without the rest of the episode."""

    @abstractmethod
    def columns(
        self, index: int, cameras: Sequence[str], shuffled: bool = False
    ) -> dict[str, ImageColumn]:
        """The image columns of an episode, for the cameras it has."""

    @abstractmethod
    def instructions(self, index: int) -> list[str]:
        """An instruction for each step; "" if there is none."""
