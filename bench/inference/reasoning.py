#!/usr/bin/env python3
"""Text of a model that reasons: tokens a second, and how long answers with and without take.

    python bench/inference/reasoning.py [--size ecot-openvla-7b] [--quantization int4]

Weights are random, of the published shape; what they write has no end, so the text is cut after
--tokens. "kept" is an answer on a text that is there already.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from common import add_output, keep

from vla_inference.checkpoints.random_weights import STATISTICS, random_config, random_model
from vla_inference.cli.benchmark.speed import DTYPES
from vla_inference.engines import make_engine
from vla_inference.quantization import get_format
from vla_inference.quantization.rounding import quantize_model


def synchronise(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(device: str, repeats: int, work) -> float:
    """Median seconds of a few calls, after two that warm up."""
    times = []
    for _ in range(2 + repeats):
        begun = synchronise(device)
        work()
        times.append(synchronise(device) - begun)
    return median(times[2:])


@torch.inference_mode()
def measure(args: argparse.Namespace) -> dict:
    config = {**random_config(args.size, "tokens"), "norm_stats": STATISTICS}
    config["reasoning_tokens"] = max(args.tokens, config.get("reasoning_tokens", 0))
    config["stop_token_id"] = 0  # as good as never said
    model = random_model(config, args.device, DTYPES[args.dtype])
    if args.quantization:
        quantize_model(model, get_format(args.quantization))
    engine = make_engine(args.engine, model)
    c = model.config
    size, prompt = c.encoders[0].image_size, torch.arange(3, 63, device=args.device)[None]
    image = torch.zeros(1, c.head.num_images, size, size, 3, dtype=torch.uint8)
    context = engine.observe(prompt, image).clone()
    more = torch.arange(3, 3 + args.tokens, device=args.device)[None]
    kept = torch.cat([context, engine.embed_tokens(more)], 1)

    def write(count: int) -> int:
        return len(list(engine.generate_text(context, count)))

    assert write(args.tokens) == args.tokens, "the text ended: choose another seed"
    one = timed(args.device, args.repeats, lambda: write(1))
    text = timed(args.device, args.repeats, lambda: write(args.tokens))
    action = timed(args.device, args.repeats, lambda: engine.generate_tokens(kept))
    image_s = timed(args.device, args.repeats, lambda: engine.observe(prompt, image))
    return {
        "size": args.size,
        "engine": engine.name,
        "quantization": args.quantization or args.dtype,
        "tokens": args.tokens,
        "tokens_per_s": round((args.tokens - 1) / (text - one), 1),
        "text_ms": round(1e3 * text, 2),
        "answer_ms": round(1e3 * (image_s + text + action), 2),
        "kept_answer_ms": round(1e3 * (image_s + action), 2),
    }


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="ecot-openvla-7b")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if cuda else "float32")
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--quantization", default="int4", help="int4, int8, ...; '' for none")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=10)
    add_output(parser)
    args = parser.parse_args()
    keep(measure(args), args.output)


if __name__ == "__main__":
    main()
