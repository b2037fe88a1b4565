#!/usr/bin/env python3
"""From an observation in host memory to an action in host memory: every path in one run.

    python bench/speed.py [--size openvla-7b] [--paths reference plain torch torch:int8 ...]

Weights are random, of the published shape, the same in every path. The reference is the code path
of the original: transformers' Llama and its `generate`, bf16, eager vision. A path is
ENGINE[:QUANTISATION]. The floor is the time that the arithmetic of a prefill and the bytes of six
passes over the weights take at the rates which this run measured for a copy and a matrix product.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src" / "vla_inference"))

from vla_inference.policy import Policy
from vla_inference.quantization import get_format
from vla_inference.quantization.rounding import quantize_model
from vla_inference.random_checkpoint import SIZES, USUAL_HEAD, random_policy
from vla_inference.types import Observation

PATHS = ["reference", "plain", "torch", "torch:int8", "torch:fp8", "torch:int4"]
OFT_PATHS = ["plain", "torch", "torch:fp8"]


def ceilings(device: str) -> dict[str, float]:
    """What this device does best: bytes/s of a copy (read plus written), FLOP/s by type."""
    if device == "cpu":
        return {}
    a = torch.empty(4 * 2**30, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    found = {"copy": 2 * a.numel() / timed(lambda: b.copy_(a))}
    m = 8192
    x, y = (torch.randn(m, m, device=device, dtype=torch.bfloat16) for _ in range(2))
    found["bf16"] = 2 * m**3 / timed(lambda: x @ y)
    if torch.cuda.get_device_capability() >= (8, 9):
        x8, y8 = x.to(torch.float8_e4m3fn), y.to(torch.float8_e4m3fn).t().contiguous().t()
        one = torch.ones((), device=device)
        found["fp8"] = (
            2 * m**3 / timed(lambda: torch._scaled_mm(x8, y8, one, one, out_dtype=torch.bfloat16))
        )
    xi = torch.randint(-9, 9, (m, m), device=device, dtype=torch.int8)
    found["int8"] = 2 * m**3 / timed(lambda: torch._int_mm(xi, xi.t()))
    return found


def timed(work, repeats: int = 10) -> float:
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return float(np.median(times))


def work_of(policy: Policy, positions: int) -> dict[str, float]:
    """Arithmetic of one pass over `positions`, and the numbers of weights it reads."""
    model = policy.model
    layers = sum(
        m.weight.numel() if hasattr(m, "weight") else m.in_features * m.out_features
        for m in model.language_model.model.layers.modules()
        if hasattr(m, "in_features")
    )
    patches = policy.config.towers[0].num_patches * policy.config.head.num_images
    vision = sum(
        p.numel() for n, p in model.named_parameters() if n.startswith(("vision", "projector"))
    )
    return {
        "llama_weights": layers, "vision_weights": vision,
        "llama_flops": 2.0 * layers * positions, "vision_flops": 2.0 * vision * patches,
    }  # fmt: skip


def floor_ms(policy: Policy, positions: int, quantisation: str, rates: dict[str, float]) -> float:
    """Prefill arithmetic (vision included) plus the bytes of the decode passes."""
    w = work_of(policy, positions)
    kind, bits = "bf16", 16.0
    if quantisation:
        form = get_format(quantisation)
        kind = {"int8": "int8", "fp8": "fp8"}.get(form.activations, "fp8")
        bits = form.bits + (32 / form.group if form.group and not form.symmetric else 0)
    rate = max(rates[kind], rates["bf16"])
    seconds = w["llama_flops"] / rate + w["vision_flops"] / rates["bf16"]
    if policy.config.head.decoding == "autoregressive":
        passes = policy.config.head.action_dim - 1
        seconds += passes * w["llama_weights"] * bits / 8 / (rates["copy"])
    return 1e3 * seconds


class Reference:
    """The original's way: transformers' `generate` fed by embeddings, vision eager, bf16."""

    def __init__(self, policy: Policy):
        from transformers import LlamaConfig, LlamaForCausalLM

        c = policy.config.llm
        config = LlamaConfig(
            hidden_size=c.hidden_size, intermediate_size=c.intermediate_size,
            num_hidden_layers=c.num_hidden_layers, num_attention_heads=c.num_attention_heads,
            num_key_value_heads=c.num_key_value_heads, vocab_size=c.vocab_size,
            rms_norm_eps=c.rms_norm_eps, attn_implementation="sdpa", pad_token_id=0,
        )  # fmt: skip
        with torch.device("meta"):
            self.llama = LlamaForCausalLM(config)
        state = policy.model.language_model.state_dict()
        self.llama.load_state_dict(state, assign=True)
        rotary = self.llama.model.rotary_emb
        self.llama.model.rotary_emb = type(rotary)(config=config).to(policy.device)
        self.llama.eval()
        self.policy = policy

    @torch.inference_mode()
    def __call__(self, observation: Observation) -> np.ndarray:
        p = self.policy
        pixels = torch.from_numpy(p.preprocess(list(observation.images.values())))[None]
        context = p.model.context(p._ids(observation.instruction), pixels.to(p.device, p.dtype))
        out = self.llama.generate(
            inputs_embeds=context, max_new_tokens=7, min_new_tokens=7, do_sample=False,
            attention_mask=torch.ones(context.shape[:2], dtype=torch.long, device=p.device),
        )  # fmt: skip
        return out[0, -7:].cpu().numpy()


def observation(seed: int, images: int, state: int) -> Observation:
    rng = np.random.default_rng(seed)
    pictures = {}
    for i in range(images):
        small = rng.integers(0, 256, (8, 8, 3), np.uint8)
        pictures[f"camera_{i}"] = np.ascontiguousarray(small.repeat(28, 0).repeat(28, 1))
    text = "put the red block on the green block"
    return Observation(pictures, text, np.zeros(state, np.float32))


def measure(run, several: list[Observation], repeats: int) -> tuple[list[float], list]:
    answers = []
    for o in several[:10]:
        run(o)
    times = []
    for i in range(repeats):
        begin = time.perf_counter()
        answer = run(several[i % len(several)])
        times.append(1e3 * (time.perf_counter() - begin))
        answers.append(answer)
    return times, answers


def stages(answers: list) -> dict[str, float]:
    timings = [a.timing for a in answers if hasattr(a, "timing")]
    if not timings:
        return {}
    return {k: round(float(np.median([t[k] for t in timings])), 3) for k in timings[0]}


def profile(run, observation: Observation, rows: int) -> list[str]:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CUDA]) as p:
        for _ in range(3):
            run(observation)
        torch.cuda.synchronize()
    found = sorted(p.key_averages(), key=lambda e: -e.self_device_time_total)[:rows]
    return [
        f"{e.self_device_time_total / 3e3:8.3f} ms {e.count // 3:5d} x {e.key[:90]}" for e in found
    ]


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="openvla-7b" if cuda else "tiny", choices=SIZES)
    parser.add_argument("--head", help="by default the size's usual")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if cuda else "float32")
    parser.add_argument("--paths", nargs="+")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--method", default="rtn", help="rounding: rtn or hqq")
    parser.add_argument("--profile", type=int, default=0, help="rows of kernels to print")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rates = ceilings(args.device)
    head = args.head or USUAL_HEAD.get(args.size, "tokens")
    report: dict = {
        "size": args.size, "head": head, "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "ceilings": {k: f"{v / 1e12:.3g} T" for k, v in rates.items()}, "paths": {},
    }  # fmt: skip
    print(json.dumps(report), flush=True)
    base = None
    tokens: dict[str, np.ndarray] = {}
    for path in args.paths or (OFT_PATHS if "oft" in args.size else PATHS):
        engine, _, quantisation = path.partition(":")
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        policy = random_policy(args.size, head, args.device, args.dtype)
        begin = time.perf_counter()
        if quantisation:
            quantize_model(policy.model, get_format(quantisation), args.method)
        policy = Policy(
            policy.model, policy.prompt.tokenizer, policy.device, policy.dtype, policy.name,
            engine if engine != "reference" else "plain",
        )  # fmt: skip
        prepared = time.perf_counter() - begin
        # As long as a usual prompt; the random checkpoint's tokenizer has one token per byte.
        ids = torch.arange(4, 28, device=policy.device)[None]
        policy._prompts["put the red block on the green block"] = ids
        c = policy.config.head
        several = [observation(s, c.num_images, c.proprio_dim) for s in range(16)]
        run = (
            Reference(policy)
            if engine == "reference"
            else (lambda o, policy=policy: policy.predict_action(o, action_space="random"))
        )
        begin = time.perf_counter()
        run(several[0])
        first = time.perf_counter() - begin
        if cuda:
            gc.collect()
            torch.cuda.reset_peak_memory_stats()
        times, answers = measure(run, several, args.repeats)
        ids = policy._ids(several[0].instruction).shape[1]
        positions = policy.config.towers[0].num_patches * c.num_images + ids
        if c.decoding == "parallel":
            positions += c.num_slots + 1 + bool(c.proprio_dim)
        row = {
            "median_ms": round(float(np.median(times)), 3),
            "p95_ms": round(float(np.percentile(times, 95)), 3),
            "p99_over_median": round(float(np.percentile(times, 99) / np.median(times)), 3),
            "stages_ms": stages(answers),
            "prepare_s": round(prepared, 2), "first_s": round(first, 2), "positions": positions,
        }  # fmt: skip
        if cuda:
            row["peak_gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
            row["floor_ms"] = round(floor_ms(policy, positions, quantisation, rates), 2)
            row["of_floor"] = round(row["median_ms"] / row["floor_ms"], 3)
        found = np.stack([a if isinstance(a, np.ndarray) else np.asarray(
            a.actions if a.tokens is None else a.tokens[0]) for a in answers[:16]])  # fmt: skip
        tokens[path] = found
        other = tokens.get("plain")
        if other is not None and path != "plain" and other.shape == found.shape:
            if found.dtype.kind == "i":
                row["tokens_equal_plain"] = float((found == other).mean().round(4))
            row["mean_abs_difference"] = float(np.abs(found.astype(float) - other).mean().round(5))
        base = base or row["median_ms"]
        row["times_first"] = round(base / row["median_ms"], 2)
        report["paths"][path] = row
        print(path, json.dumps(row), flush=True)
        if args.profile and cuda:
            print("\n".join(profile(run, several[0], args.profile)), flush=True)
        del policy, run, answers
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
