"""Lists the tensors of safetensors files and reads them one at a time.

Tensors are read into memory of their own, not mapped: a file that changes later cannot reach into
a running policy.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from vla_inference.checkpoints.foreign_formats import check_files, check_tensors
from vla_inference.errors import CheckpointError

INDEX = "model.safetensors.index.json"

# The names native Prismatic gives to parts of the same model.
NATIVE = (
    (re.compile(r"^llm\."), "language_model."),
    (re.compile(r"^projector\.(?:projector\.)?0\."), "projector.fc1."),
    (re.compile(r"^projector\.(?:projector\.)?2\."), "projector.fc2."),
    (re.compile(r"^projector\.(?:projector\.)?4\."), "projector.fc3."),
    (re.compile(r"^vision_backbone\.dino_featurizer\."), "vision_backbone.featurizer."),
    (re.compile(r"^vision_backbone\.siglip_featurizer\."), "vision_backbone.fused_featurizer."),
    (re.compile(r"\.(ls[12])\.gamma$"), r".\1.scale_factor"),
)
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
}
MAX_HEADER = 100_000_000
SAMPLE = 4096  # bytes of a tensor's beginning and end that tell it from another


def read_json(path: Path) -> dict:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing", "the checkpoint folder is incomplete")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON ({error})", "copy it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} has no JSON object", "copy it again")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, checked for completeness by index or numbering."""
    index = folder / INDEX
    if index.is_file():
        names = sorted(set(_weight_map(index).values()))
        missing = [n for n in names if not (folder / n).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {', '.join(missing)}, which its index names", "fetch them again"
            )
        return [folder / n for n in names]
    files = sorted(folder.glob("*.safetensors"))
    own = (str(p.relative_to(folder)) for p in (folder / "checkpoints").glob("*.pt"))
    if not files:
        check_files([*own, *(p.name for p in folder.iterdir() if p.is_file())], folder)
    numbered = [m for f in files if (m := re.search(r"-(\d+)-of-(\d+)\.safetensors$", f.name))]
    if numbered:
        counts = {int(m[2]) for m in numbered}
        if len(counts) > 1 or len(numbered) != len(files) or len(files) != max(counts):
            raise CheckpointError(
                f"{folder} contains {', '.join(f.name for f in files)}, which are not the "
                "shards of one checkpoint",
                "fetch all of them from one place",
            )
    return files


def _weight_map(index: Path) -> dict[str, str]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index} has no weight_map", "copy it again")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index} names the file {name!r:.80}", "copy it again")
    return names


def tensor_headers(path: Path) -> dict[str, dict]:
    """Name -> {"dtype", "shape", "data_offsets"} of a safetensors file, from its header alone.

    Offsets count from the file's beginning. A file of another length than its header says is
    refused.
    """
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > MAX_HEADER:
                raise ValueError(f"a header of {size} bytes")
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        begin = 8 + size
        for entry in header.values():
            entry["data_offsets"] = [begin + int(o) for o in entry["data_offsets"]]
            if not all(isinstance(n, int) and n >= 0 for n in entry["shape"]):
                raise ValueError(f"a shape of {entry['shape']}")
        end = max((e["data_offsets"][1] for e in header.values()), default=begin)
        if path.stat().st_size != end:
            raise ValueError(f"{path.stat().st_size} bytes instead of {end}")
        for key, entry in header.items():
            dtype = DTYPES.get(entry["dtype"])
            begin, end = entry["data_offsets"]
            if dtype and end - begin != math.prod(entry["shape"]) * dtype.itemsize:
                raise ValueError(f"{key} has {end - begin} bytes for shape {entry['shape']}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error})", "it may be truncated: copy it again"
        ) from error
    return header


def canonical(key: str) -> str:
    """A tensor's name in the released layout, from any supported layout."""
    for pattern, name in NATIVE:
        key = pattern.sub(name, key)
    return key


def inventory(folder: Path) -> list[tuple[Path, dict[str, dict]]]:
    """Each weight file with its headers, agreeing with the index if there is one."""
    files = [(path, tensor_headers(path)) for path in weight_files(folder)]
    check_tensors((key for _, header in files for key in header), folder)
    index = folder / INDEX
    names = _weight_map(index) if index.is_file() else {}
    seen: dict[str, Path] = {}
    for path, header in files:
        for key in header:
            if key in seen:
                raise CheckpointError(
                    f"{folder}: {key} lies in {seen[key].name} and in {path.name}",
                    "shards of two checkpoints are mixed: fetch all of them from one place",
                )
            seen[key] = path
            if names and names.get(key) != path.name:
                raise CheckpointError(
                    f"{folder}: {key} lies in {path.name}, {INDEX} says "
                    f"{names.get(key, 'nothing of it')}",
                    "shards of two checkpoints are mixed: fetch all of them from one place",
                )
    for key in names:
        if key not in seen:
            raise CheckpointError(
                f"{folder}: {key} is not in {names[key]}, where {INDEX} says it is",
                "shards of two checkpoints are mixed: fetch all of them from one place",
            )
    return files


def iterate_tensors(
    path: Path, header: Mapping[str, dict], scratch: torch.Tensor | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in `header`, one at a time, in file order.

    scratch: bytes to read each of them into, one over the other, where they will be copied
        anyway; None gives each its own memory.
    """
    with path.open("rb", buffering=0) as file:
        for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = entry["data_offsets"]
            raw = torch.empty(end - begin, dtype=torch.uint8) if scratch is None else scratch
            raw = raw[: end - begin]
            view, done = raw.numpy().data, 0
            file.seek(begin)
            while done < len(view):  # one read gives at most 2 GB
                got = file.readinto(view[done:])
                if not got:
                    raise CheckpointError(
                        f"{path} ends within {key}", "it may be truncated: copy it again"
                    )
                done += got
            yield key, raw.view(DTYPES[entry["dtype"]]).view(entry["shape"])


class Tensors(Mapping):
    """The tensors of a checkpoint folder by name, each read on access."""

    def __init__(self, folder: Path):
        self._where = {
            canonical(key): (path, key, entry)
            for path, header in inventory(Path(folder))
            for key, entry in header.items()
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        path, key, entry = self._where[name]
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(f"{path}: {name} has dtype {entry['dtype']}", "convert it")
        return next(iterate_tensors(path, {key: entry}))[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def shape(self, name: str) -> list[int]:
        return self._where[name][2]["shape"]

    def empty(self, name: str) -> torch.Tensor:
        """A tensor of that shape and dtype on "meta"."""
        entry = self._where[name][2]
        return torch.empty(entry["shape"], dtype=DTYPES.get(entry["dtype"]), device="meta")

    def digest(self, prefixes: tuple[str, ...], config: Any) -> str:
        """Hash of names, shapes, dtypes and a sample of each tensor under `prefixes`, and of
        `config`.

        A sample, because a whole 7B checkpoint takes minutes to read on small boards; any
        training changes the beginning of every tensor that it changes at all.
        """
        found = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        for name in sorted(n for n in self if n.startswith(prefixes)):
            path, _, entry = self._where[name]
            begin, end = entry["data_offsets"]
            found.update(f"{name} {entry['dtype']} {entry['shape']}".encode())
            with path.open("rb") as file:
                for at in (begin, max(begin, end - SAMPLE)):
                    file.seek(at)
                    found.update(file.read(min(SAMPLE, end - begin)))
        return found.hexdigest()
