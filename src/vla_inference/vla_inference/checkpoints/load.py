"""Reads checkpoint folders: safetensors and JSON, no code.

A folder holds config.json, tokenizer.json, *.safetensors (one, or shards with an index) and, when
fine-tuned, dataset_statistics.json, which takes the place of config.json's norm_stats. Beside
them preprocessor_config.json (its normalisation constants are the ones that count), OpenVLA-OFT's
heads and `vla.json` are read; see `published`.

Tensors are read one after the other into memory of their own, not mapped: the peak is the model
plus one tensor, and a file that changes later cannot reach into a running policy.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vla_inference.checkpoints.foreign_formats import check_config, check_not_adapter
from vla_inference.checkpoints.openvla_compat import (
    OVERRIDES,
    check_trained_on,
    checkpoint_name,
    complete,
    component_files,
    load_component,
    override,
)
from vla_inference.checkpoints.prismatic.run_config import is_run, released_config, unrounded
from vla_inference.checkpoints.prismatic.weights import read_run
from vla_inference.checkpoints.safetensors_io import (
    DTYPES,
    canonical,
    inventory,
    iterate_tensors,
    read_json,
)
from vla_inference.errors import CheckpointError
from vla_inference.openvla.config import ModelConfig
from vla_inference.openvla.model import VLA
from vla_inference.quantization.formats import Format
from vla_inference.quantization.linear import QuantLinear
from vla_inference.quantization.rounding import quantize_linear
from vla_inference.quantization.swap import put, quantisable, swap_all

# Parts the released checkpoints carry that no answer depends on: each vision encoder's last block,
# its final norm and SigLIP's pooling head.
UNUSED = re.compile(r"^vision_backbone\.\w+\.(norm\.|attn_pool\.)|rotary_emb\.inv_freq$")
CODES = (torch.int8, torch.int32, torch.float8_e4m3fn)  # of quantised weights alone


def load_config(folder: Path, overrides: Mapping[str, Any] | None = None) -> ModelConfig:
    """The config of a folder; `overrides` replace keys of config.json."""
    check_not_adapter(folder)
    path = folder / "config.json"
    raw = read_json(path)
    check_config(raw, folder)
    kind = raw.get("model_type", "openvla")
    if kind != "openvla":
        raise CheckpointError(
            f"{folder} is a model of type {kind!r}, this is for OpenVLA's alone",
            "other families run by vla info, infer, eval, validate, rollout and the node",
        )
    statistics, name = folder / "dataset_statistics.json", checkpoint_name(folder)
    beside = folder / OVERRIDES
    given = read_json(beside) if beside.is_file() else {}
    run = is_run(raw)
    if run:
        raw = released_config(folder, raw, {**given, **(overrides or {})})
    if statistics.is_file():
        raw = {**raw, "norm_stats": read_json(statistics)}
    raw = override(raw, given, str(beside))
    raw = override(raw, overrides or {}, "overrides")
    if not statistics.is_file():
        check_trained_on(name, raw, folder)
    if isinstance(raw.get("action_head") or {}, Mapping):
        raw = complete(folder, raw, name)
    config = ModelConfig.from_json(raw, str(path))
    if run:
        return unrounded(config)
    images = folder / "preprocessor_config.json"
    return _with_constants(config, images) if images.is_file() else config


def raw_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json, completed from the files beside it as `load_config` does."""
    raw, beside = read_json(folder / "config.json"), folder / OVERRIDES
    given = read_json(beside) if beside.is_file() else {}
    if is_run(raw):
        raw = released_config(folder, raw, given)
    raw = override(raw, given, str(beside))
    return complete(folder, raw, checkpoint_name(folder))


def _with_constants(config: ModelConfig, path: Path) -> ModelConfig:
    """The config with each vision encoder's mean and std from preprocessor_config.json.

    The released ones are rounded to bfloat16; `means` and `stds` in the same file are not, and
    are not what the model was trained with.
    """
    given = read_json(path).get("tvf_normalize_params")
    if given is None:
        return config
    try:
        pairs = [(tuple(map(float, g["mean"])), tuple(map(float, g["std"]))) for g in given]
        good = all(len(m) == len(s) == 3 and min(s) > 0 for m, s in pairs)
        if not good or len(pairs) != len(config.encoders):
            raise ValueError(f"{len(pairs)} entries for {len(config.encoders)} vision encoders")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: tvf_normalize_params is not one mean and std of 3 numbers per encoder "
            f"({error})",
            "copy it again",
        ) from error
    encoders = tuple(
        dataclasses.replace(t, mean=m, std=s)
        for t, (m, s) in zip(config.encoders, pairs, strict=True)
    )
    return dataclasses.replace(config, encoders=encoders)


def no_answer_needs(config: ModelConfig) -> Callable[[str], bool]:
    """Whether a tensor of the released checkpoints, by name, has no effect on answers."""
    last = tuple(f"vision_backbone.{t.key}.blocks.{t.layers}." for t in config.encoders)
    return lambda name: name.startswith(last) or UNUSED.search(name) is not None


def _scratch(
    headers: Iterable[Mapping[str, dict]], device: torch.device, dtype: torch.dtype
) -> torch.Tensor | None:
    """A buffer for the largest tensor that must be moved or converted.

    Allocating for each of them would leave the heap full of holes, some 20 % of the model.
    """
    entries = [e for header in headers for e in header.values()]
    if device.type == "cpu" and all(DTYPES[e["dtype"]] == dtype for e in entries):
        return None
    largest = max((e["data_offsets"][1] - e["data_offsets"][0] for e in entries), default=0)
    return torch.empty(largest, dtype=torch.uint8, pin_memory=device.type == "cuda")


def load_model(
    folder: str | os.PathLike,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    config: ModelConfig | None = None,
    leave_out: tuple[str, ...] = (),
    quantise: Format | None = None,
) -> VLA:
    """Builds the model of a folder and fills it one tensor at a time.

    Missing, unexpected and misshapen tensors are named before anything is read; nothing is
    filled in silently.

    leave_out: beginnings of the names of tensors that stay on "meta", because compiled parts
        (`engines.left_out`) take their places.
    quantise: format to bring the decoder's weights into as they come, by HQQ; None leaves them as
        they are stored.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint folder {folder}", "check the path")
    config = config or load_config(folder)
    with torch.device("meta"):
        model = VLA(config)
        if config.quantization:
            swap_all(model, config.quantization)
    if quantise is not None and config.quantization and config.quantization != quantise.name:
        raise CheckpointError(
            f"{folder} is quantised to {config.quantization} already, {quantise.name} was "
            "requested",
            "leave the quantisation out, or give the checkpoint that it was made from",
        )
    rounding = Rounding(model, None if config.quantization else quantise)
    wanted = {k: list(p.shape) for k, p in model.state_dict().items()}
    kinds = {k: p.dtype for k, p in model.state_dict().items() if _coded(model, k)}
    unused = no_answer_needs(config)
    problems: list[str] = []

    def claim(key: str, shape: list[int], path: Path) -> bool:
        if unused(key):
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
    run = (folder / "config.json").is_file() and is_run(read_json(folder / "config.json"))
    for path, header in [] if run else inventory(folder):
        chosen = {k: e for k, e in header.items() if claim(canonical(k), e["shape"], path)}
        for key, entry in chosen.items():
            there, kind = DTYPES.get(entry["dtype"]), kinds.get(canonical(key))
            if there is None or (there in CODES and kind is None) or kind not in (None, there):
                problems.append(f"{key} has dtype {entry['dtype']} ({path.name})")
        plan.append((path, chosen))
    mapped = read_run(folder, config) if run else component_tensors(folder)
    mapped = {k: t for k, t in mapped.items() if claim(k, list(t.shape), folder)}
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
            kind = kinds.get(canonical(key)) or kept(canonical(key), dtype)
            rounding.place(canonical(key), tensor.to(device, kind, copy=scratch is not None))
    for key, tensor in mapped.items():
        # Copied even where nothing changes: what is mapped must not outlive its file.
        rounding.place(key, tensor.to(device, kept(key, dtype), copy=True))
    if quantise is not None:
        model.config = dataclasses.replace(config, quantization=quantise.name)
    return model.eval().requires_grad_(False)


def kept(key: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a tensor in a model of that dtype: chunks are read from codes in float32."""
    return torch.float32 if key.startswith("action_codec.") else dtype


def component_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of the parts that are files of their own, by their names in the model."""
    files = component_files(folder).items()
    return {f"{part}.{k}": t for part, p in files for k, t in load_component(p).items()}


def _coded(model: VLA, key: str) -> bool:
    """Whether a tensor keeps its own dtype regardless of the model's."""
    path, _, name = key.rpartition(".")
    return name != "bias" and isinstance(model.get_submodule(path), QuantLinear)


class Rounding:
    """Places tensors in a model and quantises weights as soon as they are complete."""

    def __init__(self, model: VLA, format: Format | None):
        self.model, self.format = model, format
        self.waiting: dict[str, nn.Linear] = {}
        if format is not None:
            self.waiting = dict(quantisable(model))
            for name, layer in self.waiting.items():  # before anything is read
                n, k = layer.weight.shape
                format.check(n, k, f"{name}.weight")

    def place(self, key: str, tensor: torch.Tensor) -> None:
        place(self.model, key, tensor)
        layer = self.waiting.pop(key.removesuffix(".weight"), None)
        if layer is not None and self.format is not None:
            name = key.removesuffix(".weight")
            put(self.model, name, quantize_linear(layer, self.format, name=key))


def place(model: nn.Module, key: str, tensor: torch.Tensor) -> None:
    path, _, name = key.rpartition(".")
    module = model.get_submodule(path)
    if name in module._buffers:  # codes and scales
        setattr(module, name, tensor)
    else:
        setattr(module, name, nn.Parameter(tensor, requires_grad=False))


def load_tokenizer(folder: Path):
    """The folder's tokenizer.json, by the `tokenizers` library."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing", "copy it from the base model's folder")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path} is not a tokenizer ({error})", "copy it again") from error
    # A file saved while they were on keeps them on; transformers, too, asks for them call by call.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
