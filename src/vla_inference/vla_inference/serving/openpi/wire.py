"""openpi's messages: msgpack with NumPy arrays, packed and unpacked within limits.

An array is a map {b"__ndarray__": true, b"data", b"dtype", b"shape"}, a NumPy scalar a map
{b"__npgeneric__": true, b"data", b"dtype"}. Sources: Physical-Intelligence/openpi-client
msgpack_numpy.py (form on the wire). Nothing that is unpacked can run code: dtypes go by an
allow-list, and a message can take little more memory than it has bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from vla_inference.errors import ObservationError

MAX_BYTES = 64 << 20
MAX_TEXT, MAX_KEYS, MAX_LIST, MAX_NESTED = 65_536, 1024, 4096, 1024
MAX_DIMS = 6
KINDS = "buif"  # bool, unsigned, integer, float: no objects, records, complex, text, dates
DTYPES = frozenset(
    np.dtype(f"{order}{kind}{size}").str
    for order in "<>"
    for kind, sizes in (("u", (1, 2, 4, 8)), ("i", (1, 2, 4, 8)), ("f", (2, 4, 8)), ("b", (1,)))
    for size in sizes
)


class WireError(ObservationError):
    """An unusable message; its text may be sent to the client."""


# -- out --------------------------------------------------------------------------------------


def pack(value: Any) -> bytes:
    """Packs maps, lists, text, numbers and arrays into one message."""
    return msgpack.packb(value, default=_pack_numpy)


def _pack_numpy(value: Any) -> dict[bytes, Any]:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in KINDS:
        if isinstance(value, np.generic):
            return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
        # C order, whatever it was
        data = value.tobytes()
        return {
            b"__ndarray__": True,
            b"data": data,
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    raise TypeError(f"a {type(value).__name__} cannot be sent")


# -- in ---------------------------------------------------------------------------------------


def unpack(data: bytes, most: int = MAX_BYTES) -> Any:
    """Unpacks a message; its arrays are read-only. Raises WireError.

    most: bytes it may have.
    """
    if len(data) > most:
        raise WireError(f"the message has {len(data)} bytes", f"send at most {most}")
    hooks = _Hooks()
    try:
        return msgpack.unpackb(
            data,
            object_hook=hooks.map,
            list_hook=hooks.list,
            strict_map_key=True,
            max_str_len=MAX_TEXT,
            max_bin_len=most,
            max_array_len=MAX_LIST,
            max_map_len=MAX_KEYS,
            max_ext_len=0,
        )
    except WireError:
        raise
    except Exception as error:  # msgpack's own, Unicode's, too deep a nesting
        raise WireError(
            f"the message is not valid msgpack ({type(error).__name__})",
            "send a map of arrays, numbers and text",
        ) from error


def unpack_map(data: bytes, most: int = MAX_BYTES) -> dict[str, Any]:
    """A message that is a map with text as its keys, as requests and metadata are."""
    value = unpack(data, most)
    if not isinstance(value, dict):
        raise WireError("the message is not a map", "send one observation as a map")
    if not all(isinstance(key, str) for key in value):
        raise WireError("a key of the message is not text", "name everything by text")
    return value


class _Hooks:
    """Called for every map and list of a message; counts them."""

    def __init__(self) -> None:
        self._seen = 0

    def _count(self) -> None:
        self._seen += 1
        if self._seen > MAX_NESTED:
            raise WireError("the message has too many maps and lists", f"at most {MAX_NESTED}")

    def list(self, values: list) -> list:
        self._count()
        return values

    def map(self, values: dict) -> Any:
        self._count()
        if _field(values, "__ndarray__") is True:
            fields = (_field(values, name) for name in ("data", "dtype", "shape"))
            return make_array(*fields)
        if _field(values, "__npgeneric__") is True:
            return _make_scalar(_field(values, "data"), _field(values, "dtype"))
        return values


def _field(values: Mapping, name: str) -> Any:
    """A field whose key is bytes, as openpi sends it, or text, as clients in other languages
    do."""
    return values.get(name.encode(), values.get(name))


def make_dtype(name: Any) -> np.dtype:
    if isinstance(name, bytes):
        name = name.decode("ascii", "replace")
    if not isinstance(name, str) or name not in DTYPES:
        raise WireError(f"dtype {name!r:.20} is not read here", "send numbers of at most 8 bytes")
    return np.dtype(name)


def make_array(data: Any, dtype: Any, shape: Any) -> np.ndarray:
    """An array on the bytes of `data`, which its dtype and shape must fit exactly."""
    kind = make_dtype(dtype)
    if not isinstance(data, (bytes, bytearray)) or not isinstance(shape, (list, tuple)):
        raise WireError("an array has no data or no shape", "send both")
    if len(shape) > MAX_DIMS or not all(type(n) is int and 0 <= n < 1 << 31 for n in shape):
        raise WireError(f"an array has shape {shape!r:.60}", f"at most {MAX_DIMS} sizes")
    if (size := kind.itemsize * math.prod(shape)) != len(data):
        raise WireError(
            f"an array of shape {list(shape)} and dtype {kind.str} takes {size} bytes, "
            f"{len(data)} came",
            "send all of it",
        )
    return np.frombuffer(data, kind).reshape(shape)


def _make_scalar(value: Any, dtype: Any) -> np.generic:
    kind = make_dtype(dtype)
    if not isinstance(value, (bool, int, float)):
        raise WireError("a NumPy scalar is no number", "send a number")
    if kind.kind in "ui":
        limits = np.iinfo(kind)
        if not isinstance(value, int) or not limits.min <= value <= limits.max:
            raise WireError(f"a scalar does not fit dtype {kind.str}", "send it as another")
    return kind.type(value)
