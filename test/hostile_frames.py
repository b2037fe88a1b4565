"""Hostile messages that a model server must survive."""

from __future__ import annotations

import msgpack
import numpy as np

from vla_inference.serving.openpi.wire import pack


def array(dtype="<f4", shape=(1,), data=b"\0\0\0\0"):
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": list(shape)}


HOSTILE = {
    "object": array("|O", data=b"\x41" * 8),
    "record": array("i4,f8", data=b"\0" * 12),
    "void": array("|V8", data=b"\0" * 8),
    "complex": array("<c8", data=b"\0" * 8),
    "date": array("<M8[s]", data=b"\0" * 8),
    "text": array("<U1"),
    "long double": array("<f16", data=b"\0" * 16),
    "long name": array("f" * 9),
    "no name": array(7),
    "a list as a name": array(["f4"]),
    "more promised": array(shape=(1000, 1000)),
    "more sent": array(data=b"\0" * 8),
    "negative": array(shape=(-1,)),
    "flags as sizes": array(shape=(True,)),
    "many sizes": array(shape=(1,) * 7),
    "too much": array(shape=(2**31,)),
    "overflow": array(shape=(2**30, 2**30, 2**4)),
    "no shape": {b"__ndarray__": True, b"data": b"", b"dtype": "<f4"},
    "text as data": array(data="abcd"),
    "scalar of text": {b"__npgeneric__": True, b"data": "x", b"dtype": "<f4"},
    "scalar too large": {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"},
    "many keys": {str(i): 0 for i in range(1025)},
    "long list": [0] * 5000,
    "many lists": [[]] * 2000,
    "long text": "x" * 70_000,
    "number as a key": {1: 2},
    "extension": msgpack.ExtType(5, b"\0" * 8),
    "timestamp": msgpack.Timestamp(1),
}
FRAMES = {
    **{name: msgpack.packb({"x": value}) for name, value in HOSTILE.items()},
    "map header": b"\xdf\xff\xff\xff\xff",
    "bytes header": b"\xc6\xff\xff\xff\xff",
    "deep": b"\x81\xa1a" * 3000 + b"\xc0",
    "deep lists": b"\x91" * 100_000,
    "no map": msgpack.packb([1, 2]),
    "an array alone": pack(np.zeros(3)),
    "bytes as a key": msgpack.packb({b"x": 1}),
    "twice": msgpack.packb({}) * 2,
    "nothing": b"",
    "garbage": b"\xc1\xc1",
    "broken text": b"\x81\xa1\xff\x01",
}
