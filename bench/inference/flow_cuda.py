#!/usr/bin/env python3
"""The CUDA engine of SmolVLA, pi0 and pi0.5 at the published shapes: errors, times and memory.

    python bench/inference/flow_cuda.py [--tune] [--models smolvla pi05] [--rivals plain compiled]

From prepared images and token ids to actions in the network's units: what LeRobot calls
`sample_actions`. Weights are random and drawn on the device. --tune looks for the fastest launch
settings of this chip first and keeps them (`tools/tune_kernels.py --kinds flow`), beside the
output as well.

First the gates, which end the run with status 1 where they fail: small models in float32 against
float64; then the published shape in bfloat16, where the engine may be off from the same
weights in float32 by `SHARE` times as much as the plain path is. Then times: rivals answer
the same inputs in turn. `compiled` is our plain path by torch.compile with its own CUDA graphs,
`lerobot` LeRobot's own pi0 or pi0.5, eagerly, where it can be imported. Memory is that of a
process of its own that has the engine alone; `compiled` answers in one as well, as its CUDA graphs
crash beside the engine's.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import torch
from common import ROOT, add_output, keep
from pi import DTYPES, clock, lerobot_answer, lerobot_model, random_inputs, random_network, tiny
from torch import Tensor

from vla_inference.policies.lerobot.flow import FlowSizes, Inputs, sample
from vla_inference.policies.pi05.config import published
from vla_inference.policies.pi05.model import Pi
from vla_inference.policies.smolvla.config import ExpertDims, SmolVLAConfig, TextDims
from vla_inference.policies.smolvla.model import SmolVLA
from vla_inference.quantization import get_format
from vla_inference.quantization.rounding import quantize_model

MODELS = ("smolvla", "pi0", "pi05")
RIVALS = ("plain", "compiled", "lerobot")
WARM_UP = 3
EXACT = 1e-4  # of float32: sums in another order, through all steps
SHARE = 1.5  # of the plain path's own error in bfloat16
ROUNDED = 0.1  # error of a quantised language model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cuda = torch.cuda.is_available()
    parser.add_argument("--models", nargs="+", default=["smolvla", "pi05"], choices=MODELS)
    parser.add_argument("--size", default="published" if cuda else "tiny", choices=SIZES)
    parser.add_argument("--cameras", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--quantize", nargs="*", default=["int8", "fp8"], help="formats to try")
    parser.add_argument("--rivals", nargs="*", default=["plain", "compiled"], choices=RIVALS)
    parser.add_argument("--compiled", nargs="*", default=["smolvla"], help="models to compile")
    parser.add_argument("--words", type=int, default=0, help="token ids; 0: 24, of pi0.5 60")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tune", action="store_true", help="launch settings of this chip first")
    parser.add_argument(
        "--peak", nargs="*", default=["smolvla"], help="models whose memory counts"
    )
    parser.add_argument("--memory", metavar="MODEL:FORMAT", help="only this engine's memory")
    parser.add_argument("--alone", metavar="MODEL", help="only this model's compiled plain path")
    parser.add_argument("--device", default="cuda" if cuda else "cpu", help=argparse.SUPPRESS)
    add_output(parser)
    args = parser.parse_args()
    if args.memory:
        print(json.dumps(memory(args)))
        return
    if args.alone:
        print(json.dumps(compiled_alone(args.alone, args)))
        return
    if args.tune:
        command = [sys.executable, str(ROOT / "tools" / "tune_kernels.py"), "--kinds", "flow"]
        command += ["--workers", str(len(os.sched_getaffinity(0)))]
        if args.output:
            command += ["--output", str(args.output.with_name("tuned.json"))]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src" / "vla_inference")}
        subprocess.run(command, check=True, env=environment)
    report = measure(args)
    keep(report, args.output)
    sys.exit(0 if report["gates_passed"] else 1)


@torch.no_grad()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    report: dict[str, Any] = {"size": args.size, "dtype": args.dtype, "float32_error": {}}
    for name in MODELS:
        report["float32_error"][name] = small_errors(name, args)
    right = [error["engine"] < EXACT for error in report["float32_error"].values()]
    progress("small models in float32", report["float32_error"])
    for name in args.models:
        report[name], passed = measure_model(name, args)
        right.append(passed)
        empty()
    return report | {"gates_passed": all(right)}


def measure_model(name: str, args: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    config, dtype = SIZES[args.size](name), DTYPES[args.dtype]
    model = network(name, config, args, dtype)
    exact = copy.deepcopy(model).float()  # before the engine joins weights
    words, most = words_of(name, config, args), max(args.cameras)
    quantised = {}
    for form in args.quantize:
        other = copy.deepcopy(model)
        quantize_model(other, get_format(form), where="language.layers")
        quantised[form] = engine_of(other, most, args.device, dtype, get_format(form).activations)
    engine = engine_of(model, most, args.device, dtype)
    rivals: dict[str, Answer] = {"engine": engine}
    if "plain" in args.rivals:
        rivals["plain"] = partial(plain, model, dtype)
    known = name != "smolvla" and args.size == "published"
    if "lerobot" in args.rivals and known and importlib.util.find_spec("lerobot"):
        theirs = lerobot_model(name, model, args.device, dtype)
        rivals["lerobot"] = lambda i, n: lerobot_answer(theirs, i, n)["actions"]
    rivals |= quantised
    found: dict[str, Any] = {
        "words": words,
        "parameters": sum(p.numel() for p in model.parameters()),
        "cameras": {},
        "work": work(config, words),
    }
    right = True
    for cameras in args.cameras:
        inputs, noise = random_inputs(config, cameras, words, args.device, dtype, args.seed)
        wanted = plain(exact, torch.float32, floated(inputs), noise)
        own = off(plain(model, dtype, inputs, noise), wanted)
        rows = compare(rivals, inputs, noise, args)
        for rival, row in rows.items():
            if (actions := row.pop("actions", None)) is not None:
                row["error"] = off(actions, wanted)
            if rival == "engine":
                right &= row["error"] < max(SHARE * own, EXACT)
            if rival in quantised:
                right &= row["error"] < ROUNDED
        found["cameras"][str(cameras)] = {**rows, "plain_error": own}
        progress(f"{name}, {cameras} cameras", rows)
    del rivals, engine, quantised, model, exact
    empty()
    if "compiled" in args.rivals and name in args.compiled:
        for cameras, row in elsewhere("--alone", name, args.cameras, args).items():
            found["cameras"][cameras]["compiled"] = row
            progress(f"{name}, {cameras} cameras, compiled", row)
    if args.device.startswith("cuda") and name in args.peak:
        found["peak_gpu_gb"] = {
            form or args.dtype: peak(name, form, args) for form in ["", *args.quantize]
        }
        progress(f"{name}, memory", found["peak_gpu_gb"])
    return found, right


def compare(
    rivals: dict[str, Answer], inputs: Inputs, noise: Tensor, args: argparse.Namespace
) -> dict[str, Any]:
    """Each rival's last answer and times, answering in turn."""
    times: dict[str, list[float]] = {name: [] for name in rivals}
    found: dict[str, Any] = {}
    for i in range(WARM_UP + args.repeats):
        for name, rival in rivals.items():
            if name in found and "failed" in found[name]:
                continue
            begin = clock(noise)
            try:
                actions = rival(inputs, noise)
            except Exception as error:
                if name == "engine" or name in args.quantize:
                    raise
                found[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
                progress(f"{name} failed", found[name]["failed"])
                continue
            spent = clock(noise) - begin
            if i >= WARM_UP:
                times[name].append(spent)
            found[name] = {"actions": actions.float().clone()}
    for name, spent in times.items():
        if spent:
            found[name]["median_ms"] = round(float(np.median(spent)), 3)
            found[name]["p95_ms"] = round(float(np.percentile(spent, 95)), 3)
        if name in ("engine", *args.quantize):
            found[name] |= stages(rivals[name], inputs, noise, args.repeats)
    return found


def stages(engine: Any, inputs: Inputs, noise: Tensor, repeats: int) -> dict[str, float]:
    """Medians of an engine's two graphs, in turn."""
    rows = []
    for _ in range(repeats):
        begin = clock(noise)
        solve = engine.engine.begin(inputs)
        middle = clock(noise)
        solve(noise, None, None)
        rows.append((middle - begin, clock(noise) - middle))
    read, steps = np.median(rows, 0)
    return {"read_ms": round(float(read), 3), "steps_ms": round(float(steps), 3)}


def work(config: Any, words: int) -> dict[str, Any]:
    """The least there is to do: operations [1e9], bytes of weights in 16 bits [1e6]."""
    vision, text, expert = config.vision, config.text, config.expert
    patches = (vision.image // vision.patch) ** 2
    tokens = patches // getattr(config, "shuffle", 1) ** 2
    heads, kv = text.heads * text.head, text.kv_heads * text.head

    def block(width: int, mlp: int) -> int:
        return width * (2 * heads + 2 * kv) + 3 * width * mlp

    seen = vision.layers * (4 * vision.width**2 + 2 * vision.width * vision.mlp)
    pairs = vision.layers * 4 * patches**2 * vision.width
    told, moved = (
        text.layers * block(text.width, text.mlp),
        expert.layers * block(expert.width, expert.mlp),
    )
    found: dict[str, Any] = {
        "vision_gflop_per_image": round((2 * seen * patches + pairs) / 1e9, 1),
        "prefix_gflop_per_token": round(2 * told / 1e9, 3),
        "prefix_tokens_per_image": tokens,
        "prefix_tokens_besides": words + 1,
        "step_gflop": round(2 * moved * config.chunk / 1e9, 2),
        "steps": config.steps,
        "weights_mb_16bit": {
            "vision": round(2 * seen / 1e6),
            "prefix": round(2 * told / 1e6),
            "step": round(2 * moved / 1e6),
        },
    }
    return found


# -- who answers --------------------------------------------------------------------------------

Answer = Callable[[Inputs, Tensor], Tensor]


class Engine:
    """The CUDA engine, as a rival."""

    def __init__(self, engine: Any):
        self.engine = engine

    def __call__(self, inputs: Inputs, noise: Tensor) -> Tensor:
        return self.engine.begin(inputs)(noise, None, None)


def engine_of(model: Any, images: int, device: str, dtype: torch.dtype, by: str = "") -> Engine:
    from vla_inference.policies.lerobot.cuda.engine import FlowEngine, room
    from vla_inference.policies.pi05.cuda import CudaPi
    from vla_inference.policies.smolvla.cuda import CudaSmolVLA

    c = model.config
    sizes = FlowSizes(c.chunk, c.steps, c.state_dim or 1, c.action_dim, c.image_size, c.words)
    most = room(images, sizes, torch.device(device), dtype)
    kind: Any = CudaSmolVLA if isinstance(model, SmolVLA) else CudaPi
    replay = None if device.startswith("cuda") else (lambda key, work: work())
    made = kind(model, images, most.words.shape[1], by or "dense")
    return Engine(FlowEngine(model, made, most, replay))


@torch.inference_mode()
def plain(model: Any, dtype: torch.dtype, inputs: Inputs, noise: Tensor) -> Tensor:
    past, steps = read(model, *inputs), model.config.steps
    return sample(lambda x, t: model.velocity(x.to(dtype), t, *past).float(), noise, steps)


def read(model: Any, images: Tensor, words: Tensor, mask: Tensor, state: Tensor) -> tuple:
    """What `velocity` takes of an observation."""
    if isinstance(model, SmolVLA):
        prefix = model.prefix(*model.embed(images, words, mask, state))
        return prefix, model.cross_keys(prefix)
    return (model.read_state(state, model.prefix(*model.embed(images, words, mask))),)


def compiled(model: Any, dtype: torch.dtype) -> Answer:
    """The plain path by torch.compile, whose CUDA graphs hold the prefix and one step each."""
    options: dict[str, Any] = {"mode": "reduce-overhead", "dynamic": False}
    begin = torch.compile(lambda *inputs: read(model, *inputs), **options)
    move = torch.compile(lambda x, t, *p: model.velocity(x.to(dtype), t, *p).float(), **options)

    def answer(inputs: Inputs, noise: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        past = begin(*inputs)
        # Two steps' results must not lie in one buffer
        return sample(lambda x, t: move(x, t, *past).clone(), noise, model.config.steps)

    return answer


def network(name: str, config: Any, args: argparse.Namespace, dtype: torch.dtype) -> Any:
    smol = name == "smolvla"
    make = (lambda: SmolVLA(config)) if smol else (lambda: Pi(config))
    return random_network(make, args.device, dtype, args.seed, "" if smol else "vision.")


# -- gates and memory ---------------------------------------------------------------------------


def words_of(name: str, config: Any, args: argparse.Namespace) -> int:
    """Of a prompt."""
    return min(args.words or (60 if name == "pi05" else 24), config.words)


def small_errors(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Of the engine and of the plain path in float32, of a small model: against float64."""
    model = network(name, small(name), args, torch.float32)
    exact = copy.deepcopy(model).double()  # before the engine joins weights
    engine = engine_of(model, 2, args.device, torch.float32)
    found = {"engine": 0.0, "plain": 0.0}
    for cameras, words in ((2, 13), (1, 5)):
        seed = args.seed + words
        given = random_inputs(model.config, cameras, words, args.device, torch.float32, seed)
        inputs, noise = given
        wanted = plain(exact, torch.float64, floated(inputs, torch.float64), noise.double())
        for rival, answer in (
            ("engine", engine(*given)),
            ("plain", plain(model, torch.float32, *given)),
        ):
            found[rival] = max(found[rival], off(answer, wanted))
    return found


def memory(args: argparse.Namespace) -> dict[str, float]:
    """Peak memory in GB while one engine is made, and while it answers."""
    name, _, form = args.memory.partition(":")
    config, dtype = SIZES[args.size](name), DTYPES[args.dtype]
    most = max(args.cameras)
    with torch.no_grad():
        model, by = network(name, config, args, dtype), ""
        if form:
            quantize_model(model, get_format(form), where="language.layers")
            by = get_format(form).activations
        engine = engine_of(model, most, args.device, dtype, by)
        words = words_of(name, config, args)
        given = random_inputs(config, most, words, args.device, dtype, args.seed)
        empty()
        made = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
        for _ in range(5):
            engine(*given)
        torch.cuda.synchronize()
    answering = torch.cuda.max_memory_allocated() / 1e9
    return {"making": round(made, 3), "answering": round(answering, 3)}


def peak(name: str, form: str, args: argparse.Namespace) -> dict[str, float]:
    cameras = [2] if name == "smolvla" else args.cameras
    return elsewhere("--memory", f"{name}:{form}", cameras, args)


@torch.no_grad()
def compiled_alone(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Of each number of cameras: times and error of `compiled`."""
    config, dtype = SIZES[args.size](name), DTYPES[args.dtype]
    model = network(name, config, args, dtype)
    exact = copy.deepcopy(model).float()
    words, found = words_of(name, config, args), {}
    for cameras in args.cameras:
        inputs, noise = random_inputs(config, cameras, words, args.device, dtype, args.seed)
        wanted = plain(exact, torch.float32, floated(inputs), noise)
        torch.compiler.reset()  # sizes are fixed
        (row,) = compare({"compiled": compiled(model, dtype)}, inputs, noise, args).values()
        if (actions := row.pop("actions", None)) is not None:
            row["error"] = off(actions, wanted)
        found[str(cameras)] = row
    return found


def elsewhere(what: str, name: str, cameras: list[int], args: argparse.Namespace) -> dict:
    """What this script finds in a process of its own; where that crashes, "failed" says why."""
    command = [sys.executable, __file__, what, name, "--size", args.size, "--dtype", args.dtype]
    command += ["--cameras", *map(str, cameras), "--seed", str(args.seed)]
    command += ["--repeats", str(args.repeats), "--words", str(args.words)]
    done = subprocess.run([*command, "--device", args.device], capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    why = (done.stderr.splitlines() or [f"exit status {done.returncode}"])[-1][:300]
    failed = {"failed": why}
    return {str(c): failed for c in cameras} if what == "--alone" else failed


def off(found: Tensor, wanted: Tensor) -> float:
    """Relative error."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def floated(inputs: Inputs, dtype: torch.dtype = torch.float32) -> Inputs:
    images, words, mask, state = inputs
    return Inputs(images.to(dtype), words, mask, state.to(dtype))


def empty() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def progress(what: str, found: Any) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}: {found}", file=sys.stderr, flush=True)


# -- sizes --------------------------------------------------------------------------------------


def small(name: str) -> Any:
    if name != "smolvla":
        return replace(tiny(name), chunk=10, steps=4)
    from vla_inference.policies.lerobot.network.siglip import VisionDims

    vision, text = VisionDims(32, 2, 2, 64, 64, 16), TextDims(64, 2, 6, 2, 16, 96, 512)
    return SmolVLAConfig(
        vision, text, ExpertDims(48, 2, 64), 2, words=16, chunk=10, image_size=(64, 64)
    )


def full(name: str) -> Any:
    return SmolVLAConfig() if name == "smolvla" else published(name)


SIZES = {"published": full, "tiny": small}

if __name__ == "__main__":
    main()
