"""Parses features.json of a TFDS folder: type and shape of each flattened feature."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_inference.errors import DataError

DTYPES = {
    n: np.dtype(n)
    for n in (
        "float16",
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "bool",
    )
}


@dataclass(frozen=True)
class Feature:
    """One leaf. kind: "image", "text" or "tensor"; shape: of one step.

    encoding: "bytes" or "zlib" where each step of a tensor is stored as one text of bytes.
    """

    kind: str
    dtype: np.dtype | None
    shape: tuple[int, ...]
    encoding: str = ""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def is_image(self) -> bool:
        """Whether it is a camera image: an encoded image, or uint8 [H, W, 3]."""
        image = self.dtype == np.uint8 and len(self.shape) == 3 and self.shape[-1] == 3
        return self.kind == "image" or (self.kind == "tensor" and image)

    def decode(self, stored: list[bytes]) -> np.ndarray:
        """An encoded tensor's steps [T, *shape]; raises ValueError if they are invalid."""
        assert self.dtype is not None  # a text has no encoding
        size, rows = self.size * self.dtype.itemsize, []
        for data in stored:
            if self.encoding == "zlib":
                data = _unpack(data, size)
            if len(data) != size:
                raise ValueError(f"{len(data)} bytes, {size} are expected")
            rows.append(np.frombuffer(data, self.dtype).reshape(self.shape))
        return np.stack(rows) if rows else np.empty((0, *self.shape), self.dtype)


def _unpack(data: bytes, size: int) -> bytes:
    """Decompresses zlib data of a known size, never more."""
    try:
        return zlib.decompressobj().decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error


def read_features(path: Path) -> tuple[dict[str, Feature], list[str]]:
    """Feature by flattened name ("steps/observation/image"), and names of unsupported ones."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})", "copy the dataset again") from error
    found: dict[str, Feature] = {}
    others: list[str] = []
    try:
        _walk(tree, "", found, others)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is not laid out as TFDS has it ({error!r})") from error
    if not any(name.startswith("steps/") for name in found):
        raise DataError(f"{path} has no 'steps'", "it describes no RLDS dataset of episodes")
    return found, others


def _walk(node: dict, name: str, found: dict[str, Feature], others: list[str]) -> None:
    if "featuresDict" in node:
        for key, inner in node["featuresDict"]["features"].items():
            _walk(inner, f"{name}/{key}" if name else key, found, others)
    elif "sequence" in node and name == "steps":
        _walk(node["sequence"]["feature"], name, found, others)
    elif feature := _leaf(node):
        found[name] = feature
    else:
        others.append(name)


def _leaf(node: dict) -> Feature | None:
    """A feature; None if it is unsupported, as depth images are (16 bits, floats)."""
    if "image" in node:
        dtype = np.dtype(node["image"].get("dtype", "uint8"))
        return Feature("image", dtype, _shape(node["image"])) if dtype == np.uint8 else None
    if "text" in node:
        return Feature("text", None, ())
    tensor = node.get("tensor")
    if tensor is None:
        return None
    shape, encoding = _shape(tensor), tensor.get("encoding", "none")
    if tensor["dtype"] in ("string", "object") and math.prod(shape) == 1:
        return Feature("text", None, ())
    if tensor["dtype"] not in DTYPES or min(shape, default=1) < 0:
        return None
    if encoding not in ("none", "", "bytes", "zlib"):
        return None
    encoding = encoding if encoding in ("bytes", "zlib") else ""
    return Feature("tensor", DTYPES[tensor["dtype"]], shape, encoding)


def _shape(node: dict) -> tuple[int, ...]:
    return tuple(int(d) for d in node.get("shape", {}).get("dimensions", ()))
