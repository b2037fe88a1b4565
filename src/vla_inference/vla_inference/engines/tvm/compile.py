"""`vla compile --engine tvm`: compiles a checkpoint's Llama decoder for TVM's runtime.

engine.json      model, target, versions, parameters
decoder-*.so     the library; decoder-*.tar, objects still to be linked, for a host of another
                 kind where no linker for it is installed
kernels-*.fatbin for a GPU: machine code of the library's kernels
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
from torch import Tensor, nn

from vla_inference.checkpoints.load import load_config
from vla_inference.checkpoints.openvla_compat import checkpoint_name
from vla_inference.checkpoints.safetensors_io import Tensors
from vla_inference.engines.compiled import (
    check_free,
    digest_of,
    host_triple,
    llama_sizes,
    new_folder,
    write_record,
)
from vla_inference.engines.tvm.kernels import write_kernels
from vla_inference.errors import CheckpointError, VlaError
from vla_inference.openvla.config import LlamaConfig
from vla_inference.quantization.formats import FORMATS, Format, get_format
from vla_inference.quantization.rounding import quantize_linear

INSTALL = "pip install -r requirements/tvm.txt"
TARGET = re.compile(r"llvm|cuda:sm_\d{2,3}")
SYMMETRIC_ZERO = 8  # the nibble, in our symmetric formats
PLAIN = {"fp32": "float32", "fp16": "float16", "q0f32": "float32", "q0f16": "float16"}


def import_tvm():
    """Imports TVM with its compiler, or raises one clear error."""
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


def weights_of(quantization: str, target: str, llm: LlamaConfig):
    """The weight layout of a quantisation on a target.

    quantization: "float32", "float16", or an int4 format of `vla quantize`.
    """
    from vla_inference.engines.tvm.model import Weights

    cpu = target == "llvm"
    plain = PLAIN.get(quantization, quantization)
    if plain in PLAIN.values():
        return Weights(plain, transposed=cpu)
    format = get_format(quantization)
    if format.kind != "int4" or not format.group:
        raise VlaError(
            f"engine tvm has no {format.name}",
            "use float32, float16, or int4 with groups: "
            + ", ".join(f.name for f in FORMATS.values() if f.kind == "int4" and f.group),
        )
    for width in (llm.hidden_size, llm.intermediate_size):
        format.check(0, width, "the language model")
    zero = SYMMETRIC_ZERO if format.symmetric else None
    return Weights("float32" if cpu else "float16", format.group, zero, transposed=cpu)


def compile_library(
    llm: LlamaConfig,
    quantization: str,
    target: str,
    folder: Path,
    *,
    host: str | None = None,
    decoding: str = "autoregressive",
) -> dict[str, Any]:
    """Compiles the library, which needs no weights, and describes it for engine.json.

    host: triple such as aarch64-linux-gnu; None for this machine's.
    decoding: "autoregressive" or "parallel", which need different functions.
    """
    tvm = import_tvm()
    from vla_inference.engines.tvm.build import add_cache, finish, lower, make_target
    from vla_inference.engines.tvm.model import Decoder

    host = host or host_triple()
    weights = weights_of(quantization, check_target(target), llm)
    if target != "llvm" and shutil.which("nvcc") is None:
        raise VlaError("there is no nvcc on PATH", "install CUDA's toolkit (no driver is needed)")
    foreign = host != host_triple()
    linker = shutil.which(f"{host}-g++") if foreign else shutil.which("g++")
    library = folder / ("decoder.so" if linker else "decoder.tar")
    chosen = make_target(target, host if foreign else None)
    model = Decoder(llm, weights)
    mod, parameters = lower(model, model.spec(decoding), chosen)
    if decoding != "parallel":
        mod = add_cache(mod, llm, weights.dtype, chosen)
    kernels = finish(mod, chosen, library, linker)
    # A process takes a second library of one name for the first: let the name tell.
    content = hashlib.sha256(library.read_bytes()).hexdigest()[:8]
    library = library.rename(folder / f"decoder-{content}{library.suffix}")
    return {
        "engine": "tvm",
        "target": target,
        "host": host,
        "tvm": tvm.__version__,
        "quantization": dataclasses.asdict(weights),
        "decoding": decoding,
        "llm": llama_sizes(llm),
        "library": library.name,
        "kernels": write_kernels(folder, kernels),
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
    """Compiles a checkpoint's language model into `output`; returns its record.

    progress: called with the layers written so far and in all.
    """
    import_tvm()
    from vla_inference.engines.tvm.model import Weights

    check_free(output, overwrite)
    config = load_config(checkpoint)
    tensors = Tensors(checkpoint)
    with new_folder(output, overwrite) as folder:
        decoding = config.head.decoding
        record = compile_library(
            config.llm, quantization, target, folder, host=host, decoding=decoding
        )
        record["model"] = checkpoint_name(checkpoint)
        record["digest"] = digest_of("tvm", checkpoint, config)
        weights = Weights(**record["quantization"])
        format = get_format(quantization) if weights.group else None
        shapes = {p["name"]: (tuple(p["shape"]), p["dtype"]) for p in record["parameters"]}
        (folder / "parameters").mkdir()
        groups = _by_layer(shapes)
        for i, names in enumerate(groups):
            made = dict(
                item for n in names for item in make(n, shapes[n], tensors, format, weights)
            )
            _check(made, shapes)
            save_file(made, folder / f"parameters/{i:03d}.safetensors")
            if progress:
                progress(i + 1, len(groups))
        return write_record(folder, record)


def _check(made: Mapping[str, Tensor], shapes: Mapping[str, tuple]) -> None:
    for name, tensor in made.items():
        wanted = shapes.get(name)
        if wanted is None or tuple(tensor.shape) != wanted[0]:
            raise VlaError(
                f"the checkpoint's {name} is {list(tensor.shape)}, the library expects "
                f"{list(wanted[0]) if wanted else 'none'}",
                "compile for the checkpoint's own int4 format",
            )


# -- parameters -------------------------------------------------------------------------------


def _by_layer(names: Mapping[str, Any]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        if not name.endswith((".q_scale", ".q_zero")):  # come with their q_weight
            groups.setdefault(".".join(name.split(".")[:3]), []).append(name)
    return list(groups.values())


def make(
    name: str,
    expected: tuple[tuple[int, ...], str],
    tensors: Mapping[str, Tensor],
    format: Format | None,
    weights,
) -> Iterator[tuple[str, Tensor]]:
    """A parameter of the library from the checkpoint's tensors, with its scales if any."""
    plain = name.replace(".q_weight", ".weight")
    names = [f"language_model.{n}" for n in sources(plain)]
    codes = [n.removesuffix("weight") + "codes" for n in names]
    if all(n in tensors for n in codes):  # a checkpoint of `vla quantize`
        yield from _as_stored(name, codes, expected, tensors)
        return
    missing = [n for n in names if n not in tensors]
    if missing:
        raise CheckpointError(f"the checkpoint lacks {missing[0]}", "copy it again")
    tensor = torch.cat([tensors[n].float() for n in names])
    if format is not None and plain != name:
        yield from quantised(name, tensor, format).items()
        return
    if tensor.ndim == 2 and weights.transposed:
        tensor = tensor.T
    if tuple(tensor.shape) != expected[0]:
        raise VlaError(f"{name} is {tuple(tensor.shape)}, the library expects {expected[0]}")
    yield name, tensor.to(getattr(torch, expected[1])).contiguous()


def _as_stored(
    name: str, codes: list[str], expected: tuple, tensors: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Codes that the checkpoint already contains, matrices stacked."""

    def joined(kind: str) -> Tensor:
        return torch.cat([tensors[n.removesuffix("codes") + kind] for n in codes])

    packed, scales = joined("codes"), joined("scales")
    if not name.endswith(".q_weight") or tuple(packed.shape) != expected[0]:
        raise VlaError(
            f"the checkpoint contains {codes[0]} {packed.dtype} {list(packed.shape)}, which is "
            "not what this library multiplies by",
            "compile for the checkpoint's own int4 format, or from the unquantised one",
        )
    yield name, packed.view(torch.uint32)
    yield name.replace(".q_weight", ".q_scale"), scales
    if all(n.removesuffix("codes") + "zeros" in tensors for n in codes):
        yield name.replace(".q_weight", ".q_zero"), joined("zeros")


def sources(name: str) -> list[str]:
    """The checkpoint's tensors that a parameter is made from, stacked."""
    for whole, parts in (("qkv_proj", "qkv"), ("gate_up_proj", ("gate", "up"))):
        if whole in name:
            return [name.replace(whole, f"{p}_proj") for p in parts]
    return [name]


def quantised(name: str, weight: Tensor, format: Format) -> dict[str, Tensor]:
    """The parameter `name` (*.q_weight) and its scales, from a weight [N, K]."""
    layer = nn.Linear(1, 1, bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    made = quantize_linear(layer, format, name=name)
    found = {name: made.codes.view(torch.uint32)}
    found[name.replace(".q_weight", ".q_scale")] = made.scales
    if made.zeros is not None:
        found[name.replace(".q_weight", ".q_zero")] = made.zeros
    return found
