"""Loads the parts of an `OpenVLAPolicy` from a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vla_inference.checkpoints.hub import resolve
from vla_inference.checkpoints.load import load_config, load_model, load_tokenizer
from vla_inference.checkpoints.openvla_compat import checkpoint_name
from vla_inference.engines import Engine, left_out, make_engine, usual_engine
from vla_inference.errors import CheckpointError, VlaError
from vla_inference.openvla.config import ModelConfig
from vla_inference.openvla.model import VLA
from vla_inference.policies.base import LoadOptions, Needs
from vla_inference.quantization.formats import Format, read_quantization
from vla_inference.quantization.swap import WHERE, make_dense

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
WRITE = ("plain", "torch")  # engines that can write text


class LoadPlan(NamedTuple):
    """A load request, checked as far as possible without the weights."""

    folder: Path
    options: LoadOptions  # device, dtype and engine are named
    format: Format | None  # that the language model's weights are rounded to
    leave_out: tuple[str, ...]
    config: ModelConfig


def check_request(
    path_or_id: str | os.PathLike,
    options: LoadOptions,
    revision: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> LoadPlan:
    """Refuses whatever `load_parts` would refuse before it reads weights."""
    engine, quantization = options.engine, options.quantization
    leave_out = left_out(engine, options.vision)
    format, dtype = read_quantization(quantization, options.dtype or None)
    if format is not None and any(WHERE.startswith(p.rstrip(".")) for p in leave_out):
        raise VlaError(
            f"engine {engine!r} brings the language model's weights with it",
            "leave the quantisation out, or compile for it",
        )
    folder = resolve(path_or_id, revision)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.device(device)
    except RuntimeError:
        raise VlaError(f"unknown device {device!r}", "use cpu, cuda or cuda:N") from None
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise VlaError(f"device {device!r} was requested, but there is no CUDA", "use cpu")
    engine = engine or usual_engine(device, options.draft)
    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
    if dtype not in DTYPES:
        raise VlaError(f"unknown dtype {dtype!r}", f"known: {', '.join(DTYPES)}")
    config = load_config(folder, overrides)
    check_statistics(config, folder)
    check_reasoning(config, options, engine)
    if quantization and format is None and config.quantization:
        raise CheckpointError(
            f"{folder} is quantised to {config.quantization}, {quantization} was requested",
            "leave the quantisation out, or give the checkpoint that it was made from",
        )
    options = replace(options, device=device, dtype=dtype, engine=engine)
    return LoadPlan(folder, options, format, leave_out, config)


class Parts(NamedTuple):
    """The constructor arguments of an `OpenVLAPolicy`."""

    model: VLA
    tokenizer: Any
    device: str
    dtype: torch.dtype
    name: str
    engine: Engine


def load_parts(plan: LoadPlan) -> Parts:
    """Reads the weights and makes the engine."""
    folder, options, format, leave_out, config = plan
    device, dtype = options.device, DTYPES[options.dtype]
    tokenizer = load_tokenizer(folder)
    words, rows = tokenizer.get_vocab_size(), config.llm.vocab_size
    if words > rows:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} has {words} tokens, the model {rows} embeddings",
            "the two must come from one training run",
        )
    model = load_model(folder, device, dtype, config, leave_out, format)
    if options.engine == "plain" and device == "cpu" and model.config.quantization:
        make_dense(model, dtype)
    engine = make_engine(
        options.engine, model, vision=options.vision, checkpoint=folder, draft=options.draft
    )
    name = checkpoint_name(folder)
    if format is not None and not config.quantization:
        name += f":{format.name}"  # results tell it from the checkpoint as it is
    return Parts(model, tokenizer, device, dtype, name, engine)


def check_reasoning(config: ModelConfig, options: LoadOptions, engine: str) -> None:
    """Refuses engines that write no text, and options of models that reason for others."""
    if config.reasoning_tokens and engine.partition(":")[0] not in WRITE:
        raise VlaError(
            f"engine {engine!r} runs no model that reasons", f"use {' or '.join(WRITE)}"
        )
    for name in ("reasoning_every", "reasoning_seconds"):
        if getattr(options, name) and not config.reasoning_tokens:
            raise VlaError(f"{name} was given, and the model does not reason", "leave it out")


def check_statistics(config: ModelConfig, folder: Path) -> None:
    """Refuses statistics whose length does not match the model's actions, naming file and
    field."""
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


def needs(config: ModelConfig) -> Needs:
    """The model's inputs; its files state the number of images, not the cameras."""
    size = config.encoders[0].image_size
    head = config.head
    return Needs(
        head.num_images,
        head.proprio_dim,
        (size, size),
        history=head.history,
        interval=head.history_interval or 0.0,
    )
