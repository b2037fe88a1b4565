#!/usr/bin/env python3
"""pi0 or pi0.5 of the published shape: time of an answer by stage, against LeRobot's own.

    python bench/inference/pi.py [--family pi05] [--cameras 2 3] [--dtype bfloat16]

From prepared images and token ids to actions in the network's units: what LeRobot calls
`sample_actions`. Weights are random and drawn on the device. Where lerobot can be imported, its
model gets the same weights, answers the same inputs in turn, eagerly, and its answer is compared.
Needs torch and numpy; no ROS.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import torch
from common import add_output, keep
from torch import Tensor

from vla_inference.policies.lerobot.flow import Inputs, sample
from vla_inference.policies.lerobot.network.siglip import VisionDims
from vla_inference.policies.pi05.config import GemmaDims, PiConfig, published
from vla_inference.policies.pi05.model import Pi
from vla_inference.policies.pi05.weights import naming

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WARM_UP = 3


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="pi05", choices=["pi0", "pi05"])
    parser.add_argument("--size", default="published" if cuda else "tiny", choices=SIZES)
    parser.add_argument("--cameras", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--words", type=int, default=60, help="token ids of a prompt")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if cuda else "float32", choices=DTYPES)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    add_output(parser)
    args = parser.parse_args()
    keep(measure(args), args.output)


@torch.inference_mode()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    config, device, dtype = SIZES[args.size](args.family), args.device, DTYPES[args.dtype]
    model = random_model(config, device, dtype, args.seed)
    rivals: dict[str, Callable[[Inputs, Tensor], dict[str, Any]]] = {
        "plain": lambda inputs, noise: answer(model, inputs, noise, dtype)
    }
    if args.size == "published" and importlib.util.find_spec("lerobot"):
        theirs = lerobot_model(args.family, model, device, dtype)
        rivals["lerobot"] = lambda inputs, noise: lerobot_answer(theirs, inputs, noise)
    report: dict[str, Any] = {
        "family": args.family,
        "size": args.size,
        "dtype": args.dtype,
        "words": args.words,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_gb": round(sum(p.nbytes for p in model.parameters()) / 1e9, 2),
        "cameras": {},
    }
    for cameras in args.cameras:
        inputs, noise = random_inputs(config, cameras, args.words, device, dtype, args.seed)
        report["cameras"][str(cameras)] = compare(rivals, inputs, noise, args.repeats)
    if device.startswith("cuda"):
        report["peak_gpu_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
    return report


def compare(rivals: dict, inputs: Inputs, noise: Tensor, repeats: int) -> dict[str, Any]:
    """Medians of each rival, which answer in turn, and errors against the first."""
    rows: dict[str, list[dict]] = {name: [] for name in rivals}
    for _ in range(WARM_UP + repeats):
        for name, rival in rivals.items():
            rows[name].append(rival(inputs, noise))
    found: dict[str, Any] = {}
    for name, answers in rows.items():
        timed = answers[WARM_UP:]
        stages = [key for key in timed[0] if key.endswith("_ms")]
        found[name] = {s: round(float(np.median([t[s] for t in timed])), 3) for s in stages}
        found[name]["p95_ms"] = round(float(np.percentile([t["total_ms"] for t in timed], 95)), 3)
        ours, theirs = (rows[n][-1]["actions"].float() for n in (next(iter(rows)), name))
        found[name]["error"] = float((ours - theirs).norm() / theirs.norm())
    return found


def answer(model: Pi, inputs: Inputs, noise: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    images, words, mask, state = inputs
    begin = clock(noise)
    prefix = model.prefix(*model.embed(images, words, mask))
    prefix = model.read_state(state, prefix)
    middle = clock(noise)

    def velocity(x: Tensor, at: Tensor) -> Tensor:
        return model.velocity(x.to(dtype), at, prefix).float()

    actions = sample(velocity, noise, model.config.steps)
    end = clock(noise)
    return {
        "actions": actions,
        "prefix_ms": middle - begin,
        "steps_ms": end - middle,
        "total_ms": end - begin,
    }


def clock(where: Tensor) -> float:
    """Milliseconds, when the device has done what it was given."""
    if where.is_cuda:
        torch.cuda.synchronize(where.device)
    return 1e3 * time.perf_counter()


# -- LeRobot ----------------------------------------------------------------------------------


def lerobot_model(family: str, ours: Pi, device: str, dtype: torch.dtype) -> Any:
    """LeRobot's network with our weights."""
    if family == "pi0":
        from lerobot.policies.pi0.configuration_pi0 import PI0Config as Config
        from lerobot.policies.pi0.modeling_pi0 import PI0Pytorch as Network
    else:
        from lerobot.policies.pi05.configuration_pi05 import PI05Config as Config
        from lerobot.policies.pi05.modeling_pi05 import PI05Pytorch as Network
    with torch.device(device):
        model = Network(Config(device=device, dtype=str(dtype).removeprefix("torch."))).eval()
    there, known = model.state_dict(), ours.state_dict()
    our_name = naming(there)
    for name, target in there.items():
        if (found := our_name(name)) is not None:
            target.copy_(known[found])
    return model


def lerobot_answer(model: Any, inputs: Inputs, noise: Tensor) -> dict[str, Any]:
    images, words, mask, state = inputs
    several = list(images.float().unbind(1))
    masks = [torch.ones(len(words), dtype=torch.bool, device=words.device) for _ in several]
    more = [state.float()] if hasattr(model, "state_proj") else []
    begin = clock(noise)
    actions = model.sample_actions(several, masks, words, mask, *more, noise=noise)
    return {"actions": actions, "total_ms": clock(noise) - begin}


# -- random weights and inputs ----------------------------------------------------------------


def tiny(family: str) -> PiConfig:
    text, expert = GemmaDims(64, 2, 128, head=16), GemmaDims(32, 2, 64, head=16)
    vision = VisionDims(32, 2, 2, 64, 28, 14)
    if family == "pi0":
        return PiConfig(vision, text, expert, 512, state_dim=32, words=48)
    return PiConfig(vision, text, GemmaDims(32, 2, 64, head=16, condition=32), 512)


SIZES = {"published": published, "tiny": tiny}


def random_model(config: PiConfig, device: str, dtype: torch.dtype, seed: int) -> Pi:
    model = random_network(lambda: Pi(config), device, dtype, seed, norms="vision.")
    assert isinstance(model, Pi)
    return model


def random_network(
    make: Callable[[], torch.nn.Module],
    device: str,
    dtype: torch.dtype,
    seed: int,
    norms: str = "",
) -> torch.nn.Module:
    """Random weights, drawn on the device. norms: beginning of the names of those whose weights
    are about 1, others' are about 0."""
    with torch.device("meta"):
        model = make().to(dtype)
    model = model.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 400
            parameter.normal_(0, fan**-0.5, generator=generator)
            if parameter.ndim == 1 and name.startswith(norms) and "norm" in name:
                parameter.add_(name.endswith("weight"))
    return model.eval().requires_grad_(False)


def random_inputs(
    config: Any, cameras: int, words: int, device: str, dtype: torch.dtype, seed: int
) -> tuple[Inputs, Tensor]:
    """Of one observation. config: `PiConfig` or `SmolVLAConfig`."""
    generator = torch.Generator(device).manual_seed(seed)
    draw = {"generator": generator, "device": device}
    vocabulary = config.vocabulary if hasattr(config, "vocabulary") else config.text.vocabulary
    inputs = Inputs(
        torch.rand(1, cameras, 3, *config.image_size, **draw).to(dtype) * 2 - 1,
        torch.randint(3, vocabulary, (1, words), **draw),
        torch.ones(1, words, dtype=torch.bool, device=device),
        torch.randn(1, config.state_dim or 1, **draw).to(dtype),
    )
    return inputs, torch.randn(1, config.chunk, config.action_dim, **draw)


if __name__ == "__main__":
    main()
