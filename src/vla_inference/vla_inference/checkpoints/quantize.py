"""Quantises a checkpoint's decoder and writes it layer by layer."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_inference.checkpoints.load import load_config, load_tokenizer, raw_config
from vla_inference.checkpoints.openvla_compat import (
    component_files,
    load_component,
)
from vla_inference.checkpoints.safetensors_io import Tensors, read_json
from vla_inference.checkpoints.save import save_checkpoint
from vla_inference.errors import CheckpointError, VlaError
from vla_inference.quantization.formats import Format
from vla_inference.quantization.linear import QuantLinear
from vla_inference.quantization.rounding import quantize_linear
from vla_inference.quantization.swap import WHERE
from vla_inference.system.files import Staged, replaceable

METHODS = ("hqq", "rtn", "gptq")
SHARD_BYTES = 5_000_000_000
BESIDE = ("preprocessor_config.json",)
# A layer's tensors, named as in `Layer`, to its rounded linear layers.
ByLayer = Callable[[dict[str, Tensor]], dict[str, QuantLinear]]


def quantize_checkpoint(
    folder: Path,
    output: Path,
    format: Format,
    method: str = "hqq",
    *,
    device: str = "cpu",
    by_layer: ByLayer | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Writes a complete quantised checkpoint; returns its "quantization".

    One layer is in memory at a time. `output` appears complete or not at all.

    by_layer: rounds a whole layer (GPTQ: `calibration.LayerByLayer`); without, each weight is
        rounded by `method` on `device`.
    progress: called with the bytes written so far and in all.
    """
    if method not in METHODS:
        raise VlaError(f"unknown rounding method {method!r}", f"known: {', '.join(METHODS)}")
    if (method == "gptq") != (by_layer is not None):
        raise VlaError("method gptq needs data, the others take none", "give --calibration")
    check_free(folder, output, overwrite)
    config = load_config(folder)
    if config.quantization:
        raise CheckpointError(
            f"{folder} is quantised to {config.quantization} already",
            "give the checkpoint that it was made from",
        )
    raw = raw_config(folder)
    if format.kind != "int4" and method == "hqq":
        method = "rtn"  # 8 bits have no zero to move
    about = {"format": format.name, "method": method, "modules": [WHERE]}
    tensors = Tensors(folder)
    names = _rounded(tensors, format)
    layers = [f"{WHERE}.{i}." for i in range(config.llm.num_hidden_layers)]
    others = [n for n in tensors if not n.startswith(tuple(layers))]
    parts = {p: load_component(f) for p, f in component_files(folder).items()}
    empty: dict[str, Tensor] = {n: tensors.empty(n) for n in others}
    for part, state in parts.items():
        empty |= {f"{part}.{k}": torch.empty_like(v, device="meta") for k, v in state.items()}
    for layer in layers:
        for name in (n for n in tensors if n.startswith(layer)):
            empty |= names.get(name) or {name: tensors.empty(name)}

    def stream() -> Iterator[tuple[str, Tensor]]:
        for name in others:
            yield name, tensors[name]
        for part, state in parts.items():
            yield from ((f"{part}.{k}", v) for k, v in state.items())
        for layer in layers:
            mine = [n for n in tensors if n.startswith(layer)]
            done = {}
            if by_layer is not None:
                found = by_layer({n.removeprefix(layer): tensors[n] for n in mine})
                done = {f"{layer}{n}.weight": m for n, m in found.items()}
            for name in mine:
                if name not in names:
                    yield name, tensors[name]
                    continue
                made = done.get(name) or _round(tensors[name], format, method, name, device)
                for key in names[name]:
                    yield key, getattr(made, key.rpartition(".")[2])

    statistics = folder / "dataset_statistics.json"
    with Staged(output) as staged:
        save_checkpoint(
            staged,
            {**raw, "quantization": about},
            empty,
            load_tokenizer(folder),
            read_json(statistics) if statistics.is_file() else None,
            stream=stream(),
            shard_bytes=SHARD_BYTES,
            progress=progress,
        )
        for name in BESIDE:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, staged / name)
    return about


def check_free(folder: Path, output: Path, overwrite: bool) -> None:
    if output.resolve() == folder.resolve():
        raise VlaError(f"{output} is the checkpoint itself", "name another folder")
    replaceable(output, overwrite, "config.json", "checkpoint folder")


def _rounded(tensors: Tensors, format: Format) -> dict[str, dict[str, Tensor]]:
    """For each weight to round, the tensors that replace it, on "meta"; checked."""
    found = {}
    for name in tensors:
        if name.startswith(f"{WHERE}.") and name.endswith("_proj.weight"):
            n, k = tensors.shape(name)
            format.check(n, k, name)
            made = QuantLinear(format, n, k, device="meta").state_dict()
            found[name] = {f"{name.removesuffix('weight')}{key}": t for key, t in made.items()}
    return found


def _round(weight: Tensor, format: Format, method: str, name: str, device: str) -> QuantLinear:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight = nn.Parameter(weight.to(device), requires_grad=False)
    return quantize_linear(layer, format, method, name)
