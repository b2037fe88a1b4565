"""Latency from an observation to an action, both in host memory, for every path in one run.

A path is ENGINE[:QUANTISATION], and the inputs are the same for all. The reference is the code
path of the original: transformers' Llama and its `generate`, eager vision; `transformers-static`
is what a careful user makes of it. The floor is the time
that the arithmetic of a prefill and the bytes of the decode passes' weights take at the rates that
this run measured for a copy and a matrix product.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla_inference.checkpoints.hub import resolve
from vla_inference.checkpoints.load import load_config
from vla_inference.checkpoints.random_weights import (
    DTYPES,
    SIZES,
    STATISTICS,
    USUAL_HEAD,
    byte_tokenizer,
    find,
    random_config,
    random_model,
)
from vla_inference.cli.benchmark.ceilings import ceilings, floor_ms
from vla_inference.cli.benchmark.config import BenchConfig
from vla_inference.cli.benchmark.reference import RIVALS
from vla_inference.engines import ENGINES, LANGUAGES
from vla_inference.errors import VlaError
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.quantization import get_format
from vla_inference.quantization.rounding import quantize_model
from vla_inference.quantization.swap import make_dense
from vla_inference.types import Observation

PATHS = (
    "reference",
    "transformers-static",
    "plain",
    "torch",
    "torch:int8",
    "torch:fp8",
    "torch:int4",
)
OFT_PATHS = ("plain", "torch", "torch:fp8")
CPU_PATHS = ("plain", "torch", "torch:int8")
PROMPT, QWEN_PROMPT = 24, 46  # tokens of a usual prompt
SENTENCE = "put the red block on the green block"


def complete(config: BenchConfig) -> BenchConfig:
    """Fills the default device, dtype, size, head and paths into a config."""
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = config.dtype or ("float32" if device == "cpu" else "bfloat16")
    size = config.size or ("" if config.model else "small" if device == "cpu" else "openvla-7b")
    usual = load_config(resolve(config.model)).head.type if config.model else USUAL_HEAD.get(size)
    usual_paths = CPU_PATHS if device == "cpu" else OFT_PATHS if "oft" in size else PATHS
    return replace(
        config,
        device=device,
        dtype=dtype,
        size=size,
        head=config.head or usual or "tokens",
        paths=config.paths or usual_paths,
    )


def run(config: BenchConfig, tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measures every path and returns the report; `tell` receives each line as it is ready."""
    if config.size and config.size not in SIZES:
        raise VlaError(f"unknown size {config.size!r}", f"known: {', '.join(SIZES)}")
    config.check()
    config = complete(config)
    cuda = config.device.startswith("cuda")
    if config.profile and not cuda:
        raise VlaError(f"{config.device} has no kernels to list", "leave out --profile")
    rates = ceilings(config.device)
    report: dict[str, Any] = {
        "size": config.size or Path(config.model).name,
        "head": config.head,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "pause_s": config.pause,
        "ceilings": {k: f"{v / 1e12:.3g} T" for k, v in rates.items()},
        "paths": {},
    }
    tell(f"{report['size']} on {report['device']}, torch {torch.__version__}")
    answers: dict[str, np.ndarray] = {}
    for path in config.paths:
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
        row, found = _measured(config, path, rates, tell)
        answers[path] = found
        plain = answers.get("plain")
        if plain is not None and path != "plain" and plain.shape == found.shape:
            if found.dtype.kind == "i":
                row["tokens_equal_plain"] = float((found == plain).mean().round(4))
            apart = np.abs(found.astype(float) - plain).mean()
            row["mean_abs_difference"] = float(apart.round(5))
        first = next(iter(report["paths"].values()), row)
        row["times_first"] = round(first["median_ms"] / row["median_ms"], 2)
        report["paths"][path] = row
        tell(f"{path}: {row['median_ms']:.1f} ms median, {row['p95_ms']:.1f} ms p95")
    rows = report["paths"]
    rivals = [rows[path]["median_ms"] for path in rows if path in RIVALS]
    for row in rows.values() if rivals else ():
        row["times_best_rival"] = round(min(rivals) / row["median_ms"], 2)
    return report


def _measured(
    config: BenchConfig, path: str, rates: dict, tell
) -> tuple[dict[str, Any], np.ndarray]:
    cuda = config.device.startswith("cuda")
    begin = time.perf_counter()
    policy, quantisation = _policy(config, path)
    prepared = time.perf_counter() - begin
    c = policy.config.head
    several = [observation(s, c.num_images, c.proprio_dim) for s in range(16)]
    space = next(iter(policy.config.norm_stats), "normalized")

    def predict(o: Observation):
        return policy.predict_action(o, action_space=space)

    work = RIVALS[path](policy) if path in RIVALS else predict
    begin = time.perf_counter()
    work(several[0])
    first = time.perf_counter() - begin
    if cuda:
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
    slow = path in ("plain", *RIVALS)
    repeats = min(config.repeats, 50) if slow else config.repeats
    times, answers = measure(work, several, repeats, config.pause)
    positions = policy.config.num_patches * c.num_images + policy._ids(SENTENCE).shape[1]
    if c.decoding == "parallel":
        positions += c.num_slots + 1 + bool(c.proprio_dim)
    row: dict[str, Any] = {
        "median_ms": round(float(np.median(times)), 3),
        "p95_ms": round(float(np.percentile(times, 95)), 3),
        "p99_over_median": round(float(np.percentile(times, 99) / np.median(times)), 3),
        "stages_ms": stages(answers),
        "prepare_s": round(prepared, 2),
        "first_s": round(first, 2),
        "positions": positions,
    }
    if cuda:
        row["peak_gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        row["floor_ms"] = round(floor_ms(policy, positions, quantisation, rates), 2)
        row["of_floor"] = round(row["median_ms"] / row["floor_ms"], 3)
        if config.profile:
            tell("\n".join(profile(work, several[0], config.profile)))
    return row, np.stack([_values(a) for a in answers[: len(several)]])


def _policy(config: BenchConfig, path: str) -> tuple[OpenVLAPolicy, str]:
    kind, _, quantisation = path.partition(":")
    known = (*RIVALS, *ENGINES)
    if kind not in known:
        raise VlaError(f"there is no path {kind!r}", f"known: {', '.join(known)}")
    engine = kind
    if kind in LANGUAGES:  # what follows is a folder
        engine, quantisation = path, ""
    engine = "plain" if engine in RIVALS else engine
    if config.model:
        policy = OpenVLAPolicy.from_pretrained(
            config.model,
            device=config.device,
            dtype=config.dtype,
            engine=engine,
            vision=config.vision,
            quantization=quantisation or None,
        )
        return policy, quantisation
    if kind in LANGUAGES or config.vision:
        raise VlaError("compiled parts belong to a checkpoint", "give --model")
    drawn = random_policy(config.size, config.head, config.device, config.dtype)
    if quantisation:
        quantize_model(drawn.model, get_format(quantisation), config.method)
        if engine == "plain" and config.device == "cpu":
            make_dense(drawn.model, drawn.dtype)
    tokenizer = drawn.prompt.tokenizer
    policy = OpenVLAPolicy(drawn.model, tokenizer, drawn.device, drawn.dtype, drawn.name, engine)
    # As long as a usual prompt; the random checkpoint's tokenizer has one token per byte.
    words = QWEN_PROMPT if policy.config.llm.qkv_bias else PROMPT
    policy._prompts[SENTENCE] = torch.arange(4, 4 + words, device=policy.device)[None]
    return policy, quantisation


def random_policy(
    size: str | Mapping[str, Any] = "tiny",
    head: str | Mapping[str, Any] | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
) -> OpenVLAPolicy:
    """A policy around a random model that is not on disk; options as for `random_config`."""
    raw = {**random_config(size, head), "norm_stats": STATISTICS}
    kind = find(DTYPES, dtype, "dtype")
    model = random_model(raw, device, kind, seed)
    return OpenVLAPolicy(model, byte_tokenizer(), device, kind, f"random-{model.config.name}")


def _values(answer) -> np.ndarray:
    if isinstance(answer, np.ndarray):
        return answer
    return np.asarray(answer.actions if answer.tokens is None else answer.tokens[0])


def table(report: dict[str, Any]) -> list[list[str]]:
    """The report's paths as rows of words, the heading first."""
    heading = ["path", "median ms", "p95 ms", "stages ms", "GB", "times first", "times rival"]
    rows = [[*heading, "of the floor"]]
    for path, row in report["paths"].items():
        parts = [f"{k} {v:.1f}" for k, v in row["stages_ms"].items() if k != "total"]
        rows.append(
            [
                path,
                f"{row['median_ms']:.1f}",
                f"{row['p95_ms']:.1f}",
                ", ".join(parts),
                f"{row['peak_gpu_gb']:.1f}" if "peak_gpu_gb" in row else "",
                f"{row['times_first']:.2f}",
                f"{row['times_best_rival']:.2f}" if "times_best_rival" in row else "",
                f"{row['of_floor']:.2f} x {row['floor_ms']:.1f} ms" if "of_floor" in row else "",
            ]
        )
    used = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    return [[row[i] for i in used] for row in rows]


def lines(rows: Iterable[Sequence[str]]) -> list[str]:
    """Aligns rows in columns."""
    rows = list(rows)
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]


def observation(seed: int, images: int, state: int) -> Observation:
    rng = np.random.default_rng(seed)
    arrays = {}
    for i in range(images):
        small = rng.integers(0, 256, (8, 8, 3), np.uint8)
        arrays[f"camera_{i}"] = np.ascontiguousarray(small.repeat(28, 0).repeat(28, 1))
    return Observation(arrays, SENTENCE, np.zeros(state, np.float32))


def measure(
    run, several: list[Observation], repeats: int, pause: float = 0.0
) -> tuple[list[float], list]:
    answers = []
    for o in several[:10]:
        run(o)
    times = []
    for i in range(repeats):
        begin = time.perf_counter()
        answer = run(several[i % len(several)])
        times.append(1e3 * (time.perf_counter() - begin))
        answers.append(answer)
        if pause:
            time.sleep(pause)
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
