"""Loading a checkpoint: all that an `OpenVLAPolicy` is made of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vla_inference.checkpoints.hub import resolve
from vla_inference.checkpoints.load import load_config, load_model, load_tokenizer
from vla_inference.checkpoints.openvla_compat import checkpoint_name
from vla_inference.engines import Engine, left_out, make_engine, usual_engine
from vla_inference.errors import CheckpointError, VlaError
from vla_inference.policies.openvla.config import ModelConfig
from vla_inference.policies.openvla.model import VLA
from vla_inference.quantization.formats import Format, read_quantization
from vla_inference.quantization.swap import WHERE, make_dense

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Request(NamedTuple):
    """What is asked for, checked as far as that goes without the weights."""

    folder: Path
    device: str
    dtype: str
    engine: str
    format: Format | None  # that the language model's weights are rounded to
    leave_out: tuple[str, ...]
    config: ModelConfig


def check_request(
    path_or_id: str | os.PathLike,
    device: str | None,
    dtype: str | None,
    revision: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    engine: str = "",
    vision: str = "",
    quantization: str | None = None,
    draft: bool = False,
) -> Request:
    """What `load_parts` would refuse before it reads any weights; VlaError says what and why."""
    leave_out = left_out(engine, vision)
    format, dtype = read_quantization(quantization or "", dtype)
    if format is not None and any(WHERE.startswith(p.rstrip(".")) for p in leave_out):
        raise VlaError(
            f"engine {engine!r} brings the language model's weights with it",
            "leave the quantisation out, or compile for it",
        )
    folder = resolve(path_or_id, revision)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.device(device)
    except RuntimeError:
        raise VlaError(f"unknown device {device!r}", "use cpu, cuda or cuda:N") from None
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise VlaError(f"device {device!r} was asked for, but there is no CUDA", "use cpu")
    engine = engine or usual_engine(device, draft)
    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
    if dtype not in DTYPES:
        raise VlaError(f"unknown dtype {dtype!r}", f"known: {', '.join(DTYPES)}")
    config = load_config(folder, overrides)
    check_statistics(config, folder)
    if quantization and format is None and config.quantization:
        raise CheckpointError(
            f"{folder} is quantised to {config.quantization}, {quantization} was asked",
            "leave the quantisation out, or give the checkpoint that it was made from",
        )
    return Request(folder, device, dtype, engine, format, leave_out, config)


def load_parts(
    path_or_id: str | os.PathLike,
    device: str | None,
    dtype: str | None,
    revision: str | None,
    overrides: Mapping[str, Any] | None,
    engine: str,
    vision: str,
    quantization: str | None,
    draft: bool,
) -> tuple[VLA, Any, str, torch.dtype, str, Engine]:
    """Model, tokenizer, device, dtype, name and engine; see `OpenVLAPolicy.from_pretrained`."""
    folder, device, dtype, engine, format, leave_out, config = check_request(
        path_or_id, device, dtype, revision, overrides, engine, vision, quantization, draft
    )
    tokenizer = load_tokenizer(folder)
    words, rows = tokenizer.get_vocab_size(), config.llm.vocab_size
    if words > rows:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} has {words} tokens, the model {rows} embeddings",
            "the two must come from one training run",
        )
    model = load_model(folder, device, DTYPES[dtype], config, leave_out, format)
    if engine == "plain" and device == "cpu" and model.config.quantization:
        make_dense(model, DTYPES[dtype])
    run_by = make_engine(engine, model, vision=vision, checkpoint=folder, draft=draft)
    name = checkpoint_name(folder)
    if format is not None and not config.quantization:
        name += f":{format.name}"  # results tell it from the checkpoint as it is
    return model, tokenizer, device, DTYPES[dtype], name, run_by


def check_statistics(config: ModelConfig, folder: Path) -> None:
    """Refuse statistics of another length than the model's actions, naming file and field."""
    file = "dataset_statistics.json"
    where = folder / (file if (folder / file).is_file() else "config.json")
    for name, space in config.norm_stats.items():
        if not isinstance(space, Mapping):
            raise CheckpointError(f"{where}: {name!r} is {space!r:.60}", "it must be an object")
        entry = space.get("action", space)
        for key in (*config.head.bounds.split("_"), "mask"):
            values = entry.get(key) if isinstance(entry, Mapping) else None
            if isinstance(values, list) and len(values) != config.head.action_dim:
                raise CheckpointError(
                    f"{where}: {name!r} has {len(values)} numbers in {key}, the model's actions "
                    f"have {config.head.action_dim}",
                    "the statistics and the weights must come from one training run",
                )
