#!/usr/bin/env python3
"""The TVM engine at full size: compile on any machine, then check and time it on the GPU.

    python bench/inference/tvm_engine.py compile FOLDER [--target cuda:sm_90] [--quantization int4]
    python bench/inference/tvm_engine.py run FOLDER [--observations 200] [--profile]

`compile` needs TVM's compiler and nvcc but no GPU; `run` needs torch and TVM's runtime. Weights
are random: codes, scales and zeros drawn on the device. Tokens are held against the plain model
in float32 on the very weights that the codes stand for; times beside the plain one in float16 and
our torch engine on weights of the same format.
Contexts are random embeddings as long as an image and a sentence.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import torch
from common import add_output, keep
from torch import Tensor

from vla_inference.checkpoints.load import place
from vla_inference.checkpoints.random_weights import SIZES, random_config, random_model
from vla_inference.engines import make_engine
from vla_inference.engines.base import Engine
from vla_inference.engines.compiled import chip, new_folder, read_record, write_record
from vla_inference.engines.tvm.compile import compile_library, sources
from vla_inference.openvla.config import ModelConfig
from vla_inference.openvla.model import VLA
from vla_inference.quantization import get_format
from vla_inference.quantization.linear import unpack
from vla_inference.quantization.rounding import quantize_model

LENGTHS = (270, 300)  # of a context: an image's 256 patches and a sentence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("compile", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="openvla-7b", choices=SIZES)
    parser.add_argument("--target", default="cuda:sm_90")
    parser.add_argument("--host", help="triple of the machine it is for, where not this one")
    parser.add_argument("--quantization", default="int4")
    parser.add_argument("--observations", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", action="store_true", help="time by kernel, over one answer")
    add_output(parser)
    args = parser.parse_args()
    config = ModelConfig.from_json(random_config(args.size, "tokens"))
    report = make_library(args, config) if args.what == "compile" else run(args, config)
    keep(report, args.output)


def make_library(args: argparse.Namespace, config: ModelConfig) -> dict:
    begin = time.perf_counter()
    with new_folder(args.folder, overwrite=True) as folder:
        record = compile_library(
            config.llm, args.quantization, args.target, folder, host=args.host
        )
        record = write_record(folder, {**record, "model": "random", "digest": ""})
    seconds = round(time.perf_counter() - begin, 1)
    size = sum(record["files"].values())
    keys = ("target", "host", "tvm", "quantization", "library", "kernels")
    return {**{k: record[k] for k in keys}, "seconds": seconds, "library_mb": round(size / 1e6, 2)}


# -- weights ----------------------------------------------------------------------------------


def draw(entry: dict, zero: int | None, generator: torch.Generator, device) -> Tensor:
    """A parameter of the library; matrices of about unit gain."""
    name, shape, dtype = entry["name"], entry["shape"], getattr(torch, entry["dtype"])
    last = name.rpartition(".")[2]
    if last == "q_weight":
        bits = torch.randint(-(2**31), 2**31, shape, generator=generator, device=device)
        return bits.to(torch.int32).view(torch.uint32)
    x = torch.rand(shape, generator=generator, device=device)
    if last == "q_zero":
        return (7 + x).to(dtype)
    if last == "q_scale":  # codes spread by 4.6 around their zero
        inputs = 11008 if "down_proj" in name else 4096
        return ((0.5 + x) / (4.6 * inputs**0.5)).to(dtype)
    if len(shape) == 1:
        return (0.9 + 0.2 * x).to(dtype)
    return ((x - 0.5) * (12 / max(shape)) ** 0.5).to(dtype)


def meant(name: str, parameters: dict[str, Tensor], quantization: dict) -> Tensor:
    """What the library multiplies by: float32 [N, K], or a norm's [K]."""
    if not name.endswith(".q_weight"):
        weight = parameters[name].float()
        return weight.T if weight.ndim == 2 and quantization["transposed"] else weight
    codes = unpack(parameters[name].view(torch.int32)).float()
    scale = parameters[name.replace("q_weight", "q_scale")].float()
    zeros = parameters.get(name.replace("q_weight", "q_zero"))
    zero = quantization["zero"] if zeros is None else zeros.float()[..., None]
    grouped = codes.view(len(codes), scale.shape[1], -1) - zero
    return (grouped * scale[..., None]).flatten(1)


def reference(config: ModelConfig, record: dict, parameters: dict[str, Tensor], device) -> VLA:
    """The plain model in float32 on these weights; its vision encoders stay on "meta"."""
    with torch.device("meta"):
        model = VLA(config)
    rows = model.language_model.state_dict()
    for entry in record["parameters"]:
        name = entry["name"]
        if name.endswith((".q_scale", ".q_zero")):
            continue
        weight = meant(name, parameters, record["quantization"])
        names = sources(name.replace(".q_weight", ".weight"))
        parts = weight.split([rows[n].shape[0] for n in names])
        for part, tensor in zip(names, parts, strict=True):
            place(model, f"language_model.{part}", tensor.clone())
    generator = torch.Generator(device).manual_seed(7)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        x = torch.randn(rows[name].shape, generator=generator, device=device)
        scale = 1.0 if "embed" in name else config.llm.hidden_size**-0.5
        place(model, f"language_model.{name}", x * scale)
    return model.eval()


# -- the run ----------------------------------------------------------------------------------


@torch.inference_mode()
def run(args: argparse.Namespace, config: ModelConfig) -> dict:
    from vla_inference.engines.tvm.engine import TvmLanguage

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    record = read_record(args.folder, "tvm")
    generator = torch.Generator(device).manual_seed(args.seed)
    zero = record["quantization"]["zero"]
    parameters = {e["name"]: draw(e, zero, generator, device) for e in record["parameters"]}
    language = TvmLanguage(args.folder, device, config, parameters=parameters)
    model = reference(config, record, parameters, device)
    engine = Engine(model, language=language)
    size = sum(p.numel() * p.itemsize for p in parameters.values())
    report = {
        "chip": chip(device),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "tvm": record["tvm"],
        "quantization": record["quantization"],
        "weights_gb": round(size / 1e9, 3),
    }
    several = contexts(args.observations, config.llm.hidden_size, args.seed, device)
    context = several[0]

    def measure(name: str, found) -> None:
        report[name] = found
        print(json.dumps({name: found}), file=sys.stderr, flush=True)  # should the rest fail

    measure("tvm_ms", timed(engine, context, args.repeats))
    if args.profile:
        measure("kernels", kernels(engine, context))
    measure("tokens", agreement(engine, model, several))
    if device.type == "cuda":
        model.language_model.half()
        measure("plain_float16_ms", timed(model, context.half(), args.repeats))
        del engine, language, model, parameters
        context, group = context.bfloat16(), record["quantization"]["group"]
        measure("torch_engine_ms", torch_engine(config, group, context, args.repeats))
    return report


def torch_engine(config: ModelConfig, group: int | None, context: Tensor, repeats: int) -> dict:
    """All tokens by our own engine, on random weights of the same format, bfloat16 beside."""
    torch.cuda.empty_cache()
    model = random_model(config, context.device, torch.bfloat16)
    if group:
        quantize_model(model, get_format(f"int4-g{group}"), "rtn")
    engine = make_engine("torch", model)
    return {"positions": context.shape[1], "answer": timed_answer(engine, context, repeats)}


def contexts(count: int, width: int, seed: int, device) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    generator = torch.Generator(device).manual_seed(seed + 1)
    lengths = rng.integers(*LENGTHS, count).tolist()
    return [torch.randn(1, n, width, generator=generator, device=device) for n in lengths]


def agreement(engine: Engine, model: VLA, several: list[Tensor]) -> dict:
    """Tokens of the engine and of the plain model, each going on by the plain model's tokens."""
    equal, answers, error, others = 0, 0, 0.0, []
    for i, context in enumerate(several):
        hidden, cache = engine.prefill(context)
        plain, past = model.prefill(context)
        whole = True
        for step in range(model.config.head.action_dim):
            ours, theirs = engine.action_logits(hidden), model.action_logits(plain)
            error = max(error, float((ours - theirs).norm() / theirs.norm()))
            token = model.argmax(theirs)
            same = bool((engine.argmax(ours) == token).all())
            equal += same
            if not same:
                whole = False
                best = theirs.topk(2).values[0]
                gap = round(float(best[0] - best[1]), 5)
                others.append({"observation": i, "step": step, "gap": gap})
            embedding = model.embed_tokens(token.clamp(min=0)[:, None])
            if step + 1 < model.config.head.action_dim:
                hidden, cache = engine.decode(embedding, cache)
                plain, past = model.decode(embedding, past)
        answers += whole
    steps = len(several) * model.config.head.action_dim
    return {
        "observations": len(several),
        "equal_tokens": f"{equal} of {steps}",
        "equal_answers": f"{answers} of {len(several)}",
        "share": round(equal / steps, 5),
        "largest_relative_logit_error": float(f"{error:.3g}"),
        "different": others,
    }


def clock(action, repeats: int) -> float:
    """Median milliseconds."""

    def once() -> float:
        begin = time.perf_counter()
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - begin)

    for _ in range(3):
        once()
    return round(float(np.median([once() for _ in range(repeats)])), 3)


def timed_answer(engine, context: Tensor, repeats: int) -> float:
    return clock(lambda: list(engine.generate(context)), repeats)


def timed(engine, context: Tensor, repeats: int) -> dict:
    """Median milliseconds of a prefill, of a decode step and of all tokens."""
    cached: list = []

    def prefill() -> None:
        cached[:] = [engine.prefill(context)[1]]

    step = context[:, :1].contiguous()
    return {
        "positions": context.shape[1],
        "prefill": clock(prefill, repeats),
        "decode": clock(lambda: engine.decode(step, cached[0]), repeats),
        "answer": timed_answer(engine, context, repeats),
    }


def kernels(engine: Engine, context: Tensor, most: int = 15) -> list[dict]:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        list(engine.generate(context))
        torch.cuda.synchronize()
    rows = sorted(seen.key_averages(), key=lambda e: -e.self_device_time_total)[:most]
    return [
        {"kernel": e.key[:60], "calls": e.count, "ms": round(e.self_device_time_total / 1e3, 3)}
        for e in rows
    ]


if __name__ == "__main__":
    main()
