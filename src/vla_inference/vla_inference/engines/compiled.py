"""Folders of compiled parts: their record (`engine.json`) and the checks that they fit a model.

A folder holds `engine.json` (the record) and the files it names. It is written under another name
first, so that it is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from vla_inference.checkpoints.safetensors_io import DTYPES, canonical, inventory, iterate_tensors
from vla_inference.errors import CheckpointError, VlaError
from vla_inference.policies.openvla.config import ModelConfig
from vla_inference.system.files import Staged, writable

RECORD = "engine.json"
FORMAT = 1
SAMPLE = 4096  # bytes of a tensor's beginning and end that tell it from another
LANGUAGE = ("language_model.model.layers.", "language_model.model.norm.")
VISION = ("vision_backbone.", "projector.")
AGAIN = "compile it again by `vla compile`"


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


def language_digest(tensors: Tensors, config: ModelConfig) -> str:
    return tensors.digest(LANGUAGE, dataclasses.asdict(config.llm))


def vision_digest(tensors: Tensors, config: ModelConfig) -> str:
    encoders = [dataclasses.asdict(t) for t in config.encoders]
    return tensors.digest(VISION, [encoders, config.projector, config.head.num_images])


# -- the folder -------------------------------------------------------------------------------


@contextlib.contextmanager
def new_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill, which gets its name once it is complete."""
    folder = Path(folder)
    check_free(folder, overwrite)
    with Staged(folder) as staged:
        staged.mkdir()
        yield staged


def check_free(folder: Path, overwrite: bool) -> None:
    writable(folder, "new folder")
    if not folder.exists():
        return
    if not overwrite:
        raise VlaError(f"{folder} already exists", "choose another or give --overwrite")
    if not (folder / RECORD).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise VlaError(
            f"{folder} is not a compiled folder", "it is not overwritten: choose another"
        )


def write_record(folder: Path, record: Mapping[str, Any], files: Iterable[str]) -> dict[str, Any]:
    """Writes engine.json: `record` and the lengths of `files`, to detect truncated ones."""
    sizes = {name: (folder / name).stat().st_size for name in files}
    content = {"format": FORMAT, **record, "files": sizes}
    (folder / RECORD).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return content


def read_record(folder: str | os.PathLike, engine: str) -> dict[str, Any]:
    """The record of a folder made for `engine`, with its files checked by length."""
    folder = Path(folder)
    path = folder / RECORD
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {RECORD}", f"give a folder made by `vla compile --engine {engine}`"
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        files, made = record["files"], (record["format"], record["engine"])
        names = [str(n) for n in files]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r})", AGAIN) from None
    if made != (FORMAT, engine):
        raise CheckpointError(
            f"{folder} is for engine {made[1]!r} (format {made[0]}), not {engine!r} "
            f"(format {FORMAT})",
            AGAIN,
        )
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError(f"{path} names the file {name!r:.80}", AGAIN)
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} lacks {name}", "copy the whole folder again")
        size = (folder / name).stat().st_size
        if size != files[name]:
            raise CheckpointError(
                f"{folder / name} has {size} bytes instead of {files[name]}", "copy it again"
            )
    return record


def require(folder: Path, record: Mapping[str, Any], **wanted: Any) -> None:
    """Refuses a folder whose record does not match this machine and model."""
    for key, here in wanted.items():
        made = record.get(key)
        if made != here:
            raise CheckpointError(
                f"{folder} was made for {key} {_short(made)}, here it is {_short(here)}", AGAIN
            )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if len(text) == 64 and " " not in text else text


# -- this machine -----------------------------------------------------------------------------


def host_triple() -> str:
    return f"{platform.machine()}-linux-gnu"


def chip(device: str | torch.device) -> str:
    """The `--target` name of `device`: "cuda:sm_87", "llvm"."""
    device = torch.device(device)
    if device.type != "cuda":
        return "llvm"
    major, minor = torch.cuda.get_device_capability(device)
    return f"cuda:sm_{major}{minor}"
