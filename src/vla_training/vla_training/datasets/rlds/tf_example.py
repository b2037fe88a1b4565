"""tf.train.Example without TensorFlow or protobuf.

Example {1: Features {1: map<string, Feature>}}; Feature {1: BytesList | 2: FloatList |
3: Int64List}, each {1: repeated value}. Numbers are read and written as whole arrays.
Source: tensorflow/tensorflow tensorflow/core/example/{example,feature}.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class ExampleError(ValueError):
    """Bytes that are not a tf.train.Example."""


# -- reading ----------------------------------------------------------------------------------


def parse_example(data: bytes) -> dict[str, list[bytes] | np.ndarray]:
    """Values by name: list of bytes, float32 [N] or int64 [N]; an empty feature is an empty
    list."""
    found: dict[str, list[bytes] | np.ndarray] = {}
    for number, features in _fields(data, 0, len(data)):
        if number != 1:
            continue
        for inner, entry in _fields(data, *features):
            if inner == 1:
                name, span = _entry(data, entry)
                found[name] = _feature(data, *span)
    return found


def _entry(data: bytes, entry: tuple[int, int]) -> tuple[str, tuple[int, int]]:
    """Key and span of the value of one map entry."""
    name, span = "", (0, 0)
    for number, value in _fields(data, *entry):
        if number == 1:
            try:
                name = data[slice(*value)].decode()
            except UnicodeDecodeError as error:
                raise ExampleError(f"a feature's name is not UTF-8 ({error})") from None
        elif number == 2:
            span = value
    return name, span


def _feature(data: bytes, start: int, end: int) -> list[bytes] | np.ndarray:
    values: list[bytes] | np.ndarray = []
    for number, (a, b) in _fields(data, start, end):
        if number == 1:
            values = [data[i:j] for n, (i, j) in _fields(data, a, b) if n == 1]
        elif number == 2:
            values = _join([_floats(data, i, j) for n, (i, j) in _numbers(data, a, b)], np.float32)
        elif number == 3:
            values = _join([_integers(data, i, j) for n, (i, j) in _numbers(data, a, b)], np.int64)
    return values


def _join(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _floats(data: bytes, start: int, end: int) -> np.ndarray:
    if (end - start) % 4:
        raise ExampleError(f"{end - start} bytes of floats at {start}")
    return np.frombuffer(data, "<f4", (end - start) // 4, start)


def _integers(data: bytes, start: int, end: int) -> np.ndarray:
    """Decodes varints, all at once: 7 bits per byte, lowest first; the high bit means
    "continues"."""
    raw = np.frombuffer(data, np.uint8, end - start, start)
    last = raw < 0x80
    if last.all():
        return raw.astype(np.int64)
    if not last[-1]:
        raise ExampleError(f"an integer does not end before {end}")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10:
        raise ExampleError(f"an integer of {lengths.max()} bytes after {start}")
    place = np.arange(len(raw)) - np.repeat(starts, lengths)
    bits = (raw & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.bitwise_or.reduceat(bits, starts).view(np.int64)


def _numbers(data: bytes, start: int, end: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Spans of field 1, be it packed or one number at a time."""
    return ((n, span) for n, span in _fields(data, start, end) if n == 1)


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """(field number, span of its value) of a message in data[at:end]."""
    while at < end:
        # Most keys take one byte and most lengths one or two: no call for these.
        key, at = (data[at], at + 1) if data[at] < 0x80 else _varint(data, at, end)
        kind = key & 7
        if kind == BYTES:
            if at < end and data[at] < 0x80:
                size, at = data[at], at + 1
            elif at + 1 < end and data[at + 1] < 0x80:
                size, at = data[at] & 0x7F | data[at + 1] << 7, at + 2
            else:
                size, at = _varint(data, at, end)
        elif kind == VARINT:
            size = _varint(data, at, end)[1] - at
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise ExampleError(f"wire type {kind} at byte {at}")
        if at + size > end:
            raise ExampleError(f"a field at byte {at} goes {at + size - end} bytes too far")
        yield key >> 3, (at, at + size)
        at += size


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ExampleError(f"a length or key does not end before byte {at}")


# -- writing ----------------------------------------------------------------------------------


def build_example(features: Mapping[str, Sequence[bytes] | np.ndarray]) -> bytes:
    """The bytes of a tf.train.Example. Floats become float32, integers and booleans int64.

    Names are written in order, so that equal features give equal bytes.
    """
    entries: list[bytes] = []
    for name in sorted(features):
        values = features[name]
        if isinstance(values, np.ndarray):
            flat = values.reshape(-1)
            if flat.dtype.kind == "f":
                kind, packed = 2, flat.astype("<f4").tobytes()
            elif flat.dtype.kind in "iub":
                kind, packed = 3, _encode_integers(flat.astype(np.int64))
            else:
                raise ExampleError(f"feature {name!r} has dtype {flat.dtype}")
            inner = _field(1, [packed]) if packed else []
        else:
            kind, inner = 1, [part for v in values for part in (_head(1, len(v)), v)]
        entries += _field(1, [*_field(1, [name.encode()]), *_field(2, _field(kind, inner))])
    return b"".join(_field(1, entries))


def _field(number: int, parts: list[bytes]) -> list[bytes]:
    """A field whose value is all the parts, copied once when everything is joined."""
    return [_head(number, sum(map(len, parts))), *parts]


def _head(number: int, size: int) -> bytes:
    return bytes([number << 3 | BYTES]) + _encode_varint(size)


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _encode_integers(values: np.ndarray) -> bytes:
    unsigned = values.view(np.uint64)
    if not len(unsigned) or unsigned.max() < 0x80:
        return unsigned.astype(np.uint8).tobytes()
    digits = unsigned[:, None] >> (7 * np.arange(10, dtype=np.uint64))  # [N, 10]
    present = digits > 0
    present[:, 0] = True
    more = np.concatenate([present[:, 1:], np.zeros((len(values), 1), bool)], axis=1)
    digits = (digits & np.uint64(0x7F)).astype(np.uint8) | (more * np.uint8(0x80))
    return digits[present].tobytes()
