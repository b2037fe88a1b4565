"""Folders of compiled parts: their record (`engine.json`) and the checks that they fit a model.

A folder holds `engine.json` (the record) and the files it names. It is written under another name
first, so that it is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from vla_inference.checkpoints.safetensors_io import Tensors
from vla_inference.errors import CheckpointError, VlaError
from vla_inference.openvla.config import LlamaConfig, ModelConfig
from vla_inference.system.files import Staged, replaceable

RECORD = "engine.json"
FORMAT = 1
LANGUAGE = ("language_model.model.layers.", "language_model.model.norm.")
VISION = ("vision_backbone.", "projector.")
# Beginnings of the names of the tensors that a compiled part replaces, by engine.
REPLACED = {"tvm": LANGUAGE, "mlc": LANGUAGE, "onnx": VISION, "tensorrt": VISION}
AGAIN = "compile it again by `vla compile`"


def digest_of(engine: str, checkpoint: str | os.PathLike, config: ModelConfig) -> str:
    """Hash of the checkpoint's tensors that a part compiled for `engine` replaces."""
    if REPLACED[engine] == LANGUAGE:
        sizes: Any = llama_sizes(config.llm)
    else:
        encoders = [dataclasses.asdict(t) for t in config.encoders]
        sizes = [encoders, config.projector, config.head.num_images]
    return Tensors(Path(checkpoint)).digest(REPLACED[engine], sizes)


def llama_sizes(llm: LlamaConfig) -> dict[str, Any]:
    """The sizes of a Llama's decoder; refuses Qwen2.5's, which nothing is compiled for."""
    sizes = dataclasses.asdict(llm)
    if any([sizes.pop("qkv_bias"), sizes.pop("tie_word_embeddings")]):
        raise VlaError(
            "the decoder is Qwen2.5's, which TVM and MLC are not given here",
            "use engine torch or plain",
        )
    return sizes


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
    replaceable(folder, overwrite, RECORD, "compiled folder")


def write_record(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Writes engine.json: `record` and the lengths of the folder's files, to detect truncated
    ones."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    sizes = {str(p.relative_to(folder)): p.stat().st_size for p in files}
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


def fitting_record(
    folder: str | os.PathLike,
    engine: str,
    config: ModelConfig,
    checkpoint: str | os.PathLike | None,
    **wanted: Any,
) -> dict[str, Any]:
    """The record of a folder that fits this machine and the checkpoint's weights, if given."""
    record = read_record(folder, engine)
    require(folder, record, **wanted)
    if checkpoint is not None:
        require(folder, record, digest=digest_of(engine, checkpoint, config))
    return record


def require(folder: str | os.PathLike, record: Mapping[str, Any], **wanted: Any) -> None:
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
