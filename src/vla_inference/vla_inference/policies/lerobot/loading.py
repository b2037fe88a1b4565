"""Load options and descriptions of LeRobot's families."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from vla_inference.checkpoints.openvla_compat import checkpoint_name
from vla_inference.checkpoints.safetensors_io import tensor_headers
from vla_inference.engines import usual_engine
from vla_inference.errors import VlaError
from vla_inference.policies.base import Description, LoadOptions
from vla_inference.policies.lerobot.base import DTYPES
from vla_inference.policies.lerobot.checkpoint import (
    WEIGHTS,
    LeRobotCheckpoint,
    load_weights,
    tensor_shapes,
)
from vla_inference.quantization.formats import read_quantization

M = TypeVar("M", bound=nn.Module)


def placed(
    options: LoadOptions,
    family: str,
    engines: tuple[str, ...] = ("plain",),
    quantisable: bool = False,
) -> LoadOptions:
    """The options with device and dtype filled in; refuses those that the family has not."""
    more = [*(["engine"] if engines[1:] else []), *(["quantization"] if quantisable else [])]
    options.allow(family, "device", "dtype", *more)
    if options.engine and options.engine not in engines:
        raise VlaError(
            f"models of family {family} have no engine {options.engine!r}",
            f"known: {', '.join(engines)}",
        )
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.device(device)
    except RuntimeError:
        raise VlaError(f"unknown device {device!r}", "use cpu, cuda or cuda:N") from None
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise VlaError(f"device {device!r} was requested, but there is no CUDA", "use cpu")
    _, dtype = read_quantization(options.quantization, options.dtype or None)
    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
    if dtype not in DTYPES:
        raise VlaError(f"unknown dtype {dtype!r}", f"known: {', '.join(DTYPES)}")
    return replace(options, device=device, dtype=dtype)


def placed_flow(options: LoadOptions, family: str) -> LoadOptions:
    """`placed` for a flow-matching family, with the engine filled in: on CUDA the fast one if it
    can run, else `plain`."""
    options = placed(options, family, ("plain", "torch"), quantisable=True)
    if options.engine == "torch" and not options.device.startswith("cuda"):
        raise VlaError(
            f"models of family {family} have engine 'torch' on CUDA alone, the device is "
            f"{options.device!r}",
            "use engine plain, or leave it out",
        )
    usual = usual_engine(options.device) if options.device.startswith("cuda") else "plain"
    return replace(options, engine=options.engine or usual)


def build(
    make: Callable[[], M],
    checkpoint: LeRobotCheckpoint,
    our_name: Callable[[str], str | None],
    options: LoadOptions,
) -> M:
    """The network that `make` gives, with the checkpoint's weights; see `load_weights`.

    options: as `placed` returns them.
    """
    with torch.device("meta"):
        model = make()
    model = load_weights(model, checkpoint.folder, our_name, options.device, DTYPES[options.dtype])
    return model.eval().requires_grad_(False)


def describe_checkpoint(
    checkpoint: LeRobotCheckpoint, family: str, more: Sequence[tuple[str, str]]
) -> Description:
    """From the configuration and the header of the weights."""
    path = checkpoint.folder / WEIGHTS
    shapes = tensor_shapes(checkpoint.folder)
    parameters = sum(map(math.prod, shapes.values()))
    values = {
        "name": checkpoint_name(checkpoint.folder),
        "family": family,
        "folder": checkpoint.folder.resolve(),
        "size_mb": round(path.stat().st_size / 1e6, 1),
        "dtypes": sorted({e["dtype"] for e in tensor_headers(path).values()}),
        "parameters": parameters,
        "cameras": list(checkpoint.cameras),
        "state": checkpoint.state_dim,
        "actions": list(checkpoint.spec.names),
        "normalisation": {k: n.mode for k, n in checkpoint.normalisers.items()},
    }
    lines = [
        ("weights", f"{parameters / 1e6:.1f} M parameters, {values['size_mb']} MB"),
        ("cameras", ", ".join(checkpoint.cameras)),
        ("state", f"{checkpoint.state_dim} numbers"),
        *more,
        *(
            ("actions" if i == 0 else "", str(part))
            for i, part in enumerate(checkpoint.spec.parts)
        ),
    ]
    return Description(values, lines)
