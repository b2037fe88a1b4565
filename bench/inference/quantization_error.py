#!/usr/bin/env python3
"""Error of normalised actions by quantisation format.

    python bench/inference/quantization_error.py [--size openvla-oft-7b --device cuda]
        [--observations 32]

Weights are random, of the published shape. The L1 head's actions are compared, because tokens of
random weights are a coin's toss. An error is the RMS of the difference over the RMS by which the
plain model's answers vary among observations, which of random weights is little.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import torch
from common import add_output, keep

from vla_inference.checkpoints.random_weights import SIZES
from vla_inference.cli.benchmark.speed import random_policy
from vla_inference.quantization import get_format
from vla_inference.quantization.rounding import quantize_model
from vla_inference.types import Observation

FORMATS = ["int8", "int4-channel", "int4-g128", "int4-g64", "int4-g32"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--head", default="l1")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    parser.add_argument("--methods", nargs="+", default=["rtn", "hqq"])
    parser.add_argument("--observations", type=int, default=16)
    add_output(parser)
    args = parser.parse_args()

    def answers(format: str, method: str) -> np.ndarray:
        policy = random_policy(args.size, args.head, args.device, args.dtype)
        head, size = policy.config.head, policy.config.encoders[0].image_size
        if format:
            quantize_model(policy.model, get_format(format), method)
        found = []
        for seed in range(args.observations):
            rng = np.random.default_rng(seed)
            images = {
                f"c{i}": rng.integers(0, 256, (size, size, 3), np.uint8)
                for i in range(head.num_images)
            }
            seen = Observation(images, "pick it up", rng.uniform(-1, 1, head.proprio_dim))
            found.append(policy.predict_action(seen, action_space="normalized").actions)
        return np.stack(found).astype(np.float64)

    plain = answers("", "")
    usual = np.sqrt(np.mean((plain - plain.mean(0)) ** 2))
    report: dict = {"size": args.size, "observations": args.observations, "errors": {}}
    for method in args.methods:
        for format in args.formats:
            off = np.sqrt(np.mean((answers(format, method) - plain) ** 2)) / usual
            report["errors"][f"{format} {method}"] = float(off)
            print(f"{format:<14} {method:<4} {off:.5f}", flush=True)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    for method in args.methods:
        channel, group = (report["errors"].get(f"{f} {method}") for f in FORMATS[1:3])
        if channel and group:
            print(f"per-channel int4 over groups of 128, {method}: {channel / group:.2f} times")
            report[f"channel_over_g128_{method}"] = channel / group
    keep(report, args.output, show=False)


if __name__ == "__main__":
    main()
