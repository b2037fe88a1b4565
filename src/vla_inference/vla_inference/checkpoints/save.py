"""Writes checkpoint folders (safetensors and JSON); each file appears whole or not at all."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from vla_inference.checkpoints.safetensors_io import DTYPES, INDEX
from vla_inference.system.files import whole_file, write_whole

OUR_SHARDS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


def save_checkpoint(
    folder: str | os.PathLike,
    config: dict,
    tensors: Mapping[str, torch.Tensor],
    tokenizer=None,
    statistics: Mapping[str, Any] | None = None,
    *,
    stream: Iterable[tuple[str, torch.Tensor]] | None = None,
    shard_bytes: int = 1 << 62,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a self-contained folder; each file appears whole or not at all.

    stream: the tensors once more, as name and values in the same order, where they are made one
        at a time; `tensors` then only says their shapes and dtypes and may be on "meta".
    shard_bytes: weights of more bytes come in several files with an index.
    progress: called with the bytes written so far and in all.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if stream is None:
        stream = ((k, v.detach()) for k, v in tensors.items())
    shards = _shards(tensors, shard_bytes)
    total = sum(_size(t) for t in tensors.values())
    values, done = iter(stream), 0
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards, start=1):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        with whole_file(folder / name) as file:
            file.write(_header({k: tensors[k] for k in names}))
            for key in names:
                given, tensor = next(values)
                if given != key or _size(tensor) != _size(tensors[key]):
                    raise ValueError(f"{given} came where {key} was announced")
                _write_values(file, tensor)
                done += _size(tensor)
                if progress:
                    progress(done, total)
        weight_map |= dict.fromkeys(names, name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / INDEX, index)
    for path in folder.iterdir():  # of an earlier checkpoint in the same place
        stale = path.name == INDEX and len(shards) == 1
        if stale or (OUR_SHARDS.fullmatch(path.name) and path.name not in weight_map.values()):
            path.unlink()
    if tokenizer is not None:
        write_whole(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    if statistics is not None:
        _write_json(folder / "dataset_statistics.json", statistics)
    _write_json(folder / "config.json", config)
    return folder


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write one safetensors file; it appears whole or not at all. Raises OSError."""
    with whole_file(path) as file:
        file.write(_header(tensors, metadata))
        for tensor in tensors.values():
            _write_values(file, tensor)


def _write_values(file: IO[bytes], tensor: torch.Tensor) -> None:
    if tensor.numel():
        flat = tensor.detach().to("cpu").contiguous().flatten()
        file.write(flat.view(torch.uint8).numpy().data)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=2))


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.dtype.itemsize


def _shards(tensors: Mapping[str, torch.Tensor], limit: int) -> list[list[str]]:
    """Names by file, in order; a new file starts before the limit is exceeded."""
    shards: list[list[str]] = [[]]
    filled = 0
    for key, tensor in tensors.items():
        if shards[-1] and filled + _size(tensor) > limit:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += _size(tensor)
    return shards


def _header(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The header of a safetensors file: sizes and offsets, padded to 8 bytes."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for key, t in tensors.items():
        end = offset + _size(t)
        entries[key] = {
            "dtype": names[t.dtype],
            "shape": list(t.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
