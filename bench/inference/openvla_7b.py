#!/usr/bin/env python3
"""The full-size model in bfloat16: tokens against float32, memory, latency by stage.

    python bench/inference/openvla_7b.py [--size openvla-7b] [--device cuda] [--folder FOLDER]

Weights are random, of the published shape and drawn on the device; with --folder they are written
there once (about 15 GB) and loaded as a checkpoint, which measures that as well. Both precisions
run the same weights, those that bfloat16 holds. Needs torch, numpy, tokenizers and Pillow; no ROS.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import torch
from common import add_output, keep

from vla_inference.checkpoints.random_weights import SIZES, write_random_checkpoint
from vla_inference.cli.benchmark.speed import random_policy
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.types import Observation

GAP = 0.05  # logits closer than this may swap places under rounding
ACTS, COLOURS = ("lift", "push", "turn", "open", "close"), ("red", "green", "blue", "black")
THINGS = ("block", "drawer", "pot lid", "spoon", "towel", "button")


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="openvla-7b" if cuda else "tiny", choices=SIZES)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--observations", type=int, default=200 if cuda else 20)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="write the checkpoint here and load it")
    add_output(parser)
    args = parser.parse_args()

    report: dict = {
        "size": args.size,
        "device": device_name(args.device),
        "torch": torch.__version__,
    }
    policy = load(args, report)
    several = observations(args.observations, args.seed)
    policy.predict_action(several[0])
    report |= latency(policy, several, args.repeats)
    low = tokens(policy, several, "bfloat16")
    # The same weights in float32: what is compared is the arithmetic.
    policy.model.float()
    policy.dtype = torch.float32
    high = tokens(policy, several, "float32")
    report["tokens"] = agreement(low, high)
    keep(report, args.output)


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"


def peak_gb(device: str) -> float | None:
    """Most that was in use on the GPU since the last question."""
    if not device.startswith("cuda"):
        return None
    peak = torch.cuda.max_memory_allocated(device) / 1e9
    torch.cuda.reset_peak_memory_stats(device)
    return round(peak, 2)


def host_gb(field: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e9


def load(args: argparse.Namespace, report: dict) -> OpenVLAPolicy:
    if args.folder is None:
        begin = time.perf_counter()
        policy = random_policy(args.size, "tokens", args.device, "bfloat16", args.seed)
        report["make_s"] = round(time.perf_counter() - begin, 2)
    else:
        if not (args.folder / "config.json").exists():
            write_random_checkpoint(args.folder, args.size, "tokens", args.seed, dtype="bfloat16")
        before = host_gb("VmRSS")
        if before is not None:  # the peak counts from here
            Path("/proc/self/clear_refs").write_text("5")
        begin = time.perf_counter()
        policy = OpenVLAPolicy.from_pretrained(args.folder, device=args.device, dtype="bfloat16")
        report["load_s"] = round(time.perf_counter() - begin, 2)
        size = sum(p.stat().st_size for p in args.folder.glob("*.safetensors")) / 1e9
        report["checkpoint_gb"] = round(size, 2)
        if before is not None:
            report["load_host_peak_over_checkpoint"] = round((host_gb("VmHWM") - before) / size, 3)
    report["parameters"] = sum(p.numel() for p in policy.model.parameters())
    report["load_peak_gpu_gb"] = peak_gb(args.device)
    return policy


def observations(count: int, seed: int) -> list[Observation]:
    """Blurred noise with sentences of several lengths."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        cells = int(rng.integers(2, 32))
        small = rng.integers(0, 256, (cells, cells, 3), np.uint8)
        image = small.repeat(-(-256 // cells), 0).repeat(-(-256 // cells), 1)[:256, :256]
        text = f"{rng.choice(ACTS)} the {rng.choice(COLOURS)} {rng.choice(THINGS)}"
        made.append(Observation({"image": np.ascontiguousarray(image)}, text))
    return made


def latency(policy: OpenVLAPolicy, several: list[Observation], repeats: int) -> dict:
    """Median milliseconds by stage, one observation at a time, and the memory it took."""
    for observation in several[:3]:
        policy.predict_action(observation)
    peak_gb(str(policy.device))
    timings = [policy.predict_action(several[i % len(several)]).timing for i in range(repeats)]
    return {
        "latency_ms": {
            stage: round(float(np.median([t[stage] for t in timings])), 3) for stage in timings[0]
        },
        "latency_p95_ms": round(float(np.percentile([t["total"] for t in timings], 95)), 3),
        "predict_peak_gpu_gb": peak_gb(str(policy.device)),
    }


@torch.inference_mode()
def tokens(
    policy: OpenVLAPolicy, several: list[Observation], label: str
) -> list[tuple[list, list]]:
    """For each observation its tokens and, step by step, how far the runner-up was behind."""
    found = []
    for i, observation in enumerate(several):
        pixels = torch.from_numpy(policy.preprocess(list(observation.images.values())))[None]
        ids = policy._ids(observation.instruction)
        context = policy.model.context(ids, pixels.to(policy.device, policy.dtype))
        steps = list(policy.model.generate(context))
        logits = torch.cat([policy.model.action_logits(h) for _, h in steps])
        best = logits.float().topk(2).values
        ids = [int(token) for token, _ in steps]
        found.append((ids, (best[:, 0] - best[:, 1]).tolist()))
        if sys.stderr.isatty():
            print(f"\r{label}: {i + 1} of {len(several)}", end="", file=sys.stderr, flush=True)
    return found


def agreement(low: list, high: list) -> dict:
    """Whole answers that are equal, among all and among those whose float32 gap was clear."""
    equal = [a == b for (a, _), (b, _) in zip(low, high, strict=True)]
    smallest = np.array([min(gaps) for _, gaps in high])
    clear = smallest > GAP
    others = []
    for i in np.flatnonzero(~np.array(equal)):
        (a, _), (b, gaps) = low[i], high[i]
        step = next(k for k in range(len(a)) if a[k] != b[k])
        others.append(
            {
                "observation": int(i),
                "first_differing_step": step,
                "gap_there": round(gaps[step], 5),
                "smallest_gap": round(float(smallest[i]), 5),
                "bfloat16": a,
                "float32": b,
            }
        )
    return {
        "observations": len(equal),
        "all_equal": int(np.sum(equal)),
        "gap_threshold": GAP,
        "clear": int(clear.sum()),
        "clear_and_equal": int(np.sum(np.array(equal) & clear)),
        "smallest_gap_quantiles": {
            str(q): round(float(np.quantile(smallest, q)), 5) for q in (0.0, 0.1, 0.5, 0.9)
        },
        "different": others,
    }


if __name__ == "__main__":
    main()
