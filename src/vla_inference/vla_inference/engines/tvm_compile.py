"""`vla compile --engine tvm`: a checkpoint's Llama as a folder that TVM's runtime runs.

engine.json      model, target, versions, parameters
decoder-*.so     the library; decoder-*.tar, objects still to be linked, for a host of another
                 kind where no linker for it is installed
parameters/      one safetensors file a layer
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vla_inference.checkpoint import load_config
from vla_inference.engines.compiled import (
    Tensors,
    check_free,
    host_triple,
    language_digest,
    new_folder,
    write_record,
)
from vla_inference.errors import VlaError
from vla_inference.model.config import LlamaConfig
from vla_inference.published import checkpoint_name

INSTALL = "pip install -r requirements/tvm.txt"
TARGET = re.compile(r"llvm|cuda:sm_\d{2,3}")
LEVELS = 7  # q4f16_1's nibbles stand for -7 .. 7
QUANTIZATIONS = {
    "float32": ("float32", 0), "float16": ("float16", 0), "int4": ("", 32),
    # the names that mlc_llm has for the same
    "q0f32": ("float32", 0), "q0f16": ("float16", 0), "q4f16_1": ("float16", 32),
    "q4f32_1": ("float32", 32),
}  # fmt: skip


def import_tvm():
    """TVM with its compiler, or one clear error."""
    try:
        import tvm
    except ImportError as error:
        raise VlaError(f"TVM is not installed ({error})", INSTALL) from None
    if tvm.base._RUNTIME_ONLY:
        raise VlaError("this TVM is its runtime alone", f"install its compiler: {INSTALL}")
    return tvm


def check_target(name: str) -> str:
    if not TARGET.fullmatch(name):
        raise VlaError(
            f"unknown target {name!r}",
            "use llvm or cuda:sm_NN: sm_87 (Jetson Orin), sm_89, sm_90, sm_110 (Jetson Thor)",
        )
    return name


def weights_of(quantization: str, target: str):
    """The layout that a quantisation's name stands for on a target."""
    from vla_inference.engines.tvm_model import Weights

    if quantization not in QUANTIZATIONS:
        raise VlaError(
            f"unknown quantization {quantization!r}", f"known: {', '.join(QUANTIZATIONS)}"
        )
    dtype, group = QUANTIZATIONS[quantization]
    cpu = target == "llvm"
    return Weights(dtype or ("float32" if cpu else "float16"), group, LEVELS, transposed=cpu)


def compile_library(
    llm: LlamaConfig, quantization: str, target: str, folder: Path, host: str | None = None
) -> dict[str, Any]:
    """Compile the library alone, which needs no weights, and say what it is for engine.json.

    host: triple such as aarch64-linux-gnu; None for this machine's.
    """
    tvm = import_tvm()
    from vla_inference.engines.tvm_build import build, make_target
    from vla_inference.engines.tvm_model import Decoder

    host = host or host_triple()
    weights = weights_of(quantization, check_target(target))
    if weights.group and (
        llm.hidden_size % weights.group or llm.intermediate_size % weights.group
    ):
        raise VlaError(
            f"widths {llm.hidden_size} and {llm.intermediate_size} are no multiples of the "
            f"{weights.group} weights that share a scale",
            "compile without quantization",
        )
    if target != "llvm" and shutil.which("nvcc") is None:
        raise VlaError("there is no nvcc on PATH", "install CUDA's toolkit (no driver is needed)")
    foreign = host != host_triple()
    linker = shutil.which(f"{host}-g++") if foreign else shutil.which("g++")
    library = folder / ("decoder.so" if linker else "decoder.tar")
    parameters = build(
        Decoder(llm, weights),
        llm,
        weights.dtype,
        make_target(target, host if foreign else None),
        library,
        linker,
    )
    # A process takes a second library of one name for the first: let the name tell.
    content = hashlib.sha256(library.read_bytes()).hexdigest()[:8]
    library = library.rename(folder / f"decoder-{content}{library.suffix}")
    return {
        "engine": "tvm",
        "target": target,
        "host": host,
        "tvm": tvm.__version__,
        "quantization": dataclasses.asdict(weights),
        "llm": dataclasses.asdict(llm),
        "library": library.name,
        "parameters": [{"name": n, "shape": s, "dtype": d} for n, (s, d) in parameters.items()],
    }


def compile_checkpoint(
    checkpoint: Path,
    output: Path,
    *,
    target: str,
    quantization: str = "int4",
    host: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Compile a checkpoint folder's language model into `output`; returns its record.

    progress: called with the layers written so far and in all.
    """
    from vla_inference.engines.tvm_model import Weights

    check_free(output, overwrite)
    config = load_config(checkpoint)
    tensors = Tensors(checkpoint)
    with new_folder(output, overwrite) as folder:
        record = compile_library(config.llm, quantization, target, folder, host)
        record["model"] = checkpoint_name(checkpoint)
        record["digest"] = language_digest(tensors, config)
        weights = Weights(**record["quantization"])
        shapes = {p["name"]: (tuple(p["shape"]), p["dtype"]) for p in record["parameters"]}
        files = [record["library"]]
        (folder / "parameters").mkdir()
        groups = _by_layer(shapes)
        for i, names in enumerate(groups):
            made = dict(item for n in names for item in make(n, shapes[n], tensors, weights))
            name = f"parameters/{i:03d}.safetensors"
            save_file(made, folder / name)
            files.append(name)
            if progress:
                progress(i + 1, len(groups))
        write_record(folder, record, files)
    return record


# -- parameters -------------------------------------------------------------------------------


def _by_layer(names: Mapping[str, Any]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        if not name.endswith(".q_scale"):  # comes with its q_weight
            groups.setdefault(".".join(name.split(".")[:3]), []).append(name)
    return list(groups.values())


def make(
    name: str, expected: tuple[tuple[int, ...], str], tensors: Mapping[str, Tensor], weights
) -> Iterator[tuple[str, Tensor]]:
    """A parameter of the library from the checkpoint's tensors; with its scales if it has any."""
    plain = name.replace(".q_weight", ".weight")
    tensor = torch.cat([tensors[f"language_model.{n}"].float() for n in _sources(plain)])
    if plain != name:
        packed, scale = quantise(tensor, weights.group)
        yield name, packed
        yield name.replace(".q_weight", ".q_scale"), scale
        return
    if tensor.ndim == 2 and weights.transposed:
        tensor = tensor.T
    if tuple(tensor.shape) != expected[0]:
        raise VlaError(f"{name} is {tuple(tensor.shape)}, the library wants {expected[0]}")
    yield name, tensor.to(getattr(torch, expected[1])).contiguous()


def _sources(name: str) -> list[str]:
    """The checkpoint's tensors that a parameter holds, one above the other."""
    for whole, parts in (("qkv_proj", "qkv"), ("gate_up_proj", ("gate", "up"))):
        if whole in name:
            return [name.replace(whole, f"{p}_proj") for p in parts]
    return [name]


def quantise(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """[N, K] -> uint32 [N, K / 8] of nibbles, lowest first, and float16 scales [N, K / group].

    mlc_llm's q4f16_1: a group's largest magnitude becomes 7, and w = (nibble - 7) * scale.
    """
    n, k = weight.shape
    grouped = weight.float().view(n, k // group, group)
    scale = (grouped.abs().amax(-1) / LEVELS).half()
    safe = torch.where(scale > 0, scale, 1).float()[..., None]
    nibbles = (grouped / safe).round().clamp(-LEVELS, LEVELS).add(LEVELS).to(torch.int64)
    shifts = torch.arange(0, 32, 4, device=weight.device)
    packed = (nibbles.view(n, k // 8, 8) << shifts).sum(-1)
    packed = torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)
    return packed.view(torch.uint32), scale


def dequantise(packed: Tensor, scale: Tensor) -> Tensor:
    """What the library multiplies by: float32 [N, K]."""
    shifts = torch.arange(0, 32, 4, device=packed.device)
    nibbles = (packed.view(torch.int32)[..., None] >> shifts) & 15
    values = nibbles.flatten(1) - LEVELS
    return values.float() * scale.float().repeat_interleave(values.shape[1] // scale.shape[1], 1)
