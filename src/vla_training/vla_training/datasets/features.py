"""features.json of a TFDS folder: what each flattened feature of an episode is."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_inference.errors import DataError

DTYPES = {
    n: np.dtype(n)
    for n in ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8",
              "uint16", "uint32", "uint64", "bool")
}  # fmt: skip


@dataclass(frozen=True)
class Feature:
    """One leaf. kind: "image", "text" or "tensor"; shape is that of one step."""

    kind: str
    dtype: np.dtype | None
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def read_features(path: Path) -> tuple[dict[str, Feature], list[str]]:
    """Flattened name ("steps/observation/image") -> Feature, and names of a kind not read here."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})", "copy the data set again") from error
    found: dict[str, Feature] = {}
    others: list[str] = []
    try:
        _walk(tree, "", found, others)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is not laid out as TFDS has it ({error!r})") from error
    if not any(name.startswith("steps/") for name in found):
        raise DataError(f"{path} has no 'steps'", "it describes no RLDS data set of episodes")
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
    if "image" in node:
        shape = _shape(node["image"])
        return Feature("image", np.dtype(node["image"].get("dtype", "uint8")), shape)
    if "text" in node:
        return Feature("text", None, ())
    tensor = node.get("tensor")
    if tensor is None or tensor.get("encoding", "none") not in ("none", ""):
        return None
    shape = _shape(tensor)
    if tensor["dtype"] in ("string", "object") and not shape:
        return Feature("text", None, ())
    if tensor["dtype"] not in DTYPES or min(shape, default=1) < 0:
        return None
    return Feature("tensor", DTYPES[tensor["dtype"]], shape)


def _shape(node: dict) -> tuple[int, ...]:
    return tuple(int(d) for d in node.get("shape", {}).get("dimensions", ()))
