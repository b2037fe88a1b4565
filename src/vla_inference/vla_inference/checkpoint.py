"""Checkpoint folders: safetensors + JSON, nothing that runs.

A folder holds config.json, tokenizer.json, *.safetensors (one, or shards with an index) and, when
fine-tuned, dataset_statistics.json, which takes the place of config.json's norm_stats. Beside
them preprocessor_config.json (its normalisation constants are the ones that count), OpenVLA-OFT's
heads and `vla.json` are read; see `published`.

Tensors are read one after the other into memory of their own, not mapped: the peak is the model
plus one tensor, and a file that changes later cannot reach into a running policy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from vla_inference.errors import CheckpointError
from vla_inference.model import VLA, ModelConfig
from vla_inference.published import (
    OVERRIDES,
    checkpoint_name,
    complete,
    component_files,
    load_component,
    override,
)

INDEX = "model.safetensors.index.json"

# Parts the released checkpoints carry that no answer depends on: each tower's last block, its
# final norm and SigLIP's pooling head.
UNUSED = re.compile(r"^vision_backbone\.\w+\.(norm\.|attn_pool\.)|rotary_emb\.inv_freq$")

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
}
OUR_SHARDS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
MAX_HEADER = 100_000_000


def read_json(path: Path) -> dict:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing", "the checkpoint folder is incomplete")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON ({error})", "copy it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object", "copy it again")
    return content


def load_config(folder: Path, overrides: Mapping[str, Any] | None = None) -> ModelConfig:
    """What a folder says about its model; `overrides` are keys of config.json that win."""
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is a LoRA adapter, not a model", "merge it into its base model first"
        )
    path = folder / "config.json"
    raw = read_json(path)
    beside = folder / OVERRIDES
    if beside.is_file():
        raw = override(raw, read_json(beside), str(beside))
    raw = override(raw, overrides or {}, "overrides")
    statistics = folder / "dataset_statistics.json"
    if statistics.is_file():
        raw = {**raw, "norm_stats": read_json(statistics)}
    if isinstance(raw.get("action_head") or {}, Mapping):
        raw = complete(folder, raw, checkpoint_name(folder))
    config = ModelConfig.from_json(raw, str(path))
    pictures = folder / "preprocessor_config.json"
    return _with_constants(config, pictures) if pictures.is_file() else config


def _with_constants(config: ModelConfig, path: Path) -> ModelConfig:
    """Each tower's mean and standard deviation as the file beside the weights has them.

    The released ones are rounded to bfloat16; `means` and `stds` in the same file are not, and
    are not what the model was trained with.
    """
    given = read_json(path).get("tvf_normalize_params")
    if given is None:
        return config
    try:
        pairs = [(tuple(map(float, g["mean"])), tuple(map(float, g["std"]))) for g in given]
        good = all(len(m) == len(s) == 3 and min(s) > 0 for m, s in pairs)
        if not good or len(pairs) != len(config.towers):
            raise ValueError(f"{len(pairs)} entries for {len(config.towers)} towers")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: tvf_normalize_params is not one mean and std of 3 numbers per tower "
            f"({error})",
            "copy it again",
        ) from error
    towers = tuple(
        dataclasses.replace(t, mean=m, std=s)
        for t, (m, s) in zip(config.towers, pairs, strict=True)
    )
    return dataclasses.replace(config, towers=towers)


# -- which tensors lie where ------------------------------------------------------------------


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, complete by its index or by their own numbering."""
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
    if not files:
        raise CheckpointError(f"{folder} holds no *.safetensors file", "give a checkpoint folder")
    numbered = [m for f in files if (m := re.search(r"-(\d+)-of-(\d+)\.safetensors$", f.name))]
    if numbered:
        counts = {int(m[2]) for m in numbered}
        if len(counts) > 1 or len(numbered) != len(files) or len(files) != max(counts):
            raise CheckpointError(
                f"{folder} holds {', '.join(f.name for f in files)}, which are not the shards of "
                "one checkpoint",
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
            f"{path} cannot be read ({error})", "it may be cut short: copy it again"
        ) from error
    return header


def canonical(key: str) -> str:
    """A tensor's name in the released layout, whichever layout it comes in."""
    for pattern, name in NATIVE:
        key = pattern.sub(name, key)
    return key


def inventory(folder: Path) -> list[tuple[Path, dict[str, dict]]]:
    """Each weight file with its headers, agreeing with the index if there is one."""
    files = [(path, tensor_headers(path)) for path in weight_files(folder)]
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
    """The tensors that `header` lists, in the order they lie in the file, one at a time.

    scratch: bytes to read each of them into, one over the other, where they will be copied
        anyway; None gives each its own memory.
    """
    with path.open("rb", buffering=0) as file:
        for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = entry["data_offsets"]
            raw = torch.empty(end - begin, dtype=torch.uint8) if scratch is None else scratch
            raw = raw[: end - begin]
            view, done = memoryview(raw.numpy()), 0
            file.seek(begin)
            while done < len(view):  # one read gives at most 2 GB
                got = file.readinto(view[done:])
                if not got:
                    raise CheckpointError(
                        f"{path} ends within {key}", "it may be cut short: copy it again"
                    )
                done += got
            yield key, raw.view(DTYPES[entry["dtype"]]).view(entry["shape"])


def _scratch(
    headers: Iterable[Mapping[str, dict]], device: torch.device, dtype: torch.dtype
) -> torch.Tensor | None:
    """Room for the largest tensor, if any has to change its place or its dtype.

    Allocating for each of them would leave the heap full of holes, some 20 % of the model.
    """
    entries = [e for header in headers for e in header.values()]
    if device.type == "cpu" and all(DTYPES[e["dtype"]] == dtype for e in entries):
        return None
    largest = max((e["data_offsets"][1] - e["data_offsets"][0] for e in entries), default=0)
    return torch.empty(largest, dtype=torch.uint8, pin_memory=device.type == "cuda")


# -- loading ----------------------------------------------------------------------------------


def load_model(
    folder: str | os.PathLike,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    config: ModelConfig | None = None,
    leave_out: tuple[str, ...] = (),
) -> VLA:
    """Build the model a folder describes and fill it, one tensor at a time.

    Missing, unexpected and misshapen tensors are named before anything is read; nothing is
    filled in silently.

    leave_out: beginnings of the names of tensors that stay on "meta", because compiled parts
        (`engines.left_out`) take their places.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint folder {folder}", "check the path")
    config = config or load_config(folder)
    with torch.device("meta"):
        model = VLA(config)
    wanted = {k: list(p.shape) for k, p in model.state_dict().items()}
    skipped = {f"vision_backbone.{t.key}.blocks.{t.layers}." for t in config.towers}
    problems: list[str] = []

    def claim(key: str, shape: list[int], path: Path) -> bool:
        if UNUSED.search(key) or any(key.startswith(s) for s in skipped):
            return False
        expected = wanted.pop(key, None)
        if key.startswith(leave_out):
            return False
        if expected is None:
            problems.append(f"{key} is not part of the model ({path.name})")
        elif expected != shape:
            problems.append(f"{key} is {shape}, the config says {expected}")
        return True

    plan = []
    for path, header in inventory(folder):
        chosen = {k: e for k, e in header.items() if claim(canonical(k), e["shape"], path)}
        odd = [k for k, e in chosen.items() if e["dtype"] not in DTYPES]
        problems += [f"{k} has dtype {chosen[k]['dtype']} ({path.name})" for k in odd]
        plan.append((path, chosen))
    components = {part: (p, load_component(p)) for part, p in component_files(folder).items()}
    for part, (path, state) in components.items():
        for key, tensor in state.items():
            claim(f"{part}.{key}", list(tensor.shape), path)
    problems += [f"{key} is missing" for key in wanted]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"{folder} does not fit its config.json: {'; '.join(problems[:5])}{more}",
            "the weights and the config must come from one training run",
        )
    scratch = _scratch([header for _, header in plan], torch.device(device), dtype)
    for path, header in plan:
        for key, tensor in iterate_tensors(path, header, scratch):
            place(model, canonical(key), tensor.to(device, dtype, copy=scratch is not None))
    for part, (_, state) in components.items():
        for key, tensor in state.items():
            # Copied even where nothing changes: what is mapped must not outlive its file.
            place(model, f"{part}.{key}", tensor.to(device, dtype, copy=True))
    return model.eval().requires_grad_(False)


def place(model: nn.Module, key: str, tensor: torch.Tensor) -> None:
    module, _, name = key.rpartition(".")
    setattr(model.get_submodule(module), name, nn.Parameter(tensor, requires_grad=False))


def load_tokenizer(folder: Path):
    """The folder's tokenizer.json, by the `tokenizers` library."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing", "copy it from the base model's folder")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path} is not a tokenizer ({error})", "copy it again") from error


def save_checkpoint(
    folder: str | os.PathLike,
    config: dict,
    tensors: Mapping[str, torch.Tensor],
    tokenizer=None,
    statistics: dict | None = None,
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
    values, done, weight_map = iter(stream), 0, {}
    for i, names in enumerate(shards, start=1):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        with _whole(folder / name) as file:
            file.write(_header({k: tensors[k] for k in names}))
            for key in names:
                given, tensor = next(values)
                if given != key or _size(tensor) != _size(tensors[key]):
                    raise ValueError(f"{given} came where {key} was announced")
                if tensor.numel():
                    flat = tensor.to("cpu").contiguous().flatten()
                    file.write(memoryview(flat.view(torch.uint8).numpy()))
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
        with _whole(folder / "tokenizer.json") as file:
            file.write(tokenizer.to_str(pretty=True).encode())
    if statistics is not None:
        _write_json(folder / "dataset_statistics.json", statistics)
    _write_json(folder / "config.json", config)
    return folder


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes its name only once it is complete."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_json(path: Path, content: dict) -> None:
    with _whole(path) as file:
        file.write(json.dumps(content, indent=2).encode())


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.dtype.itemsize


def _shards(tensors: Mapping[str, torch.Tensor], limit: int) -> list[list[str]]:
    """Names by file, in their order; a file is full before it grows over the limit."""
    shards: list[list[str]] = [[]]
    filled = 0
    for key, tensor in tensors.items():
        if shards[-1] and filled + _size(tensor) > limit:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += _size(tensor)
    return shards


def _header(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """What a safetensors file begins with: lengths and places, padded to 8 bytes."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for key, t in tensors.items():
        end = offset + _size(t)
        entries[key] = {
            "dtype": names[t.dtype], "shape": list(t.shape), "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
