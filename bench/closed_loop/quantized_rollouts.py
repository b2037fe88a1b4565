#!/usr/bin/env python3
"""Closed-loop success with quantised weights, on the same episodes, without ROS.

    python bench/closed_loop/quantized_rollouts.py --task Stack_D2 --episodes 200 --seed 7
    python bench/closed_loop/quantized_rollouts.py --pool REPORT REPORT

Weights are rounded as `vla quantize` writes them, arithmetic is float32. Differences are paired by
episode: Agresti & Min's interval (2005) for the difference of dependent proportions.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import add_output, keep

from vla_inference.checkpoints.load import load_config, load_tokenizer
from vla_inference.checkpoints.quantize import quantize_checkpoint
from vla_inference.checkpoints.safetensors_io import Tensors, read_json
from vla_inference.checkpoints.save import save_checkpoint
from vla_inference.quantization import get_format
from vla_sim_bridge.evaluation.confidence_intervals import wilson_interval
from vla_sim_bridge.evaluation.rollout import rollout

MODEL = Path(__file__).resolve().parents[2] / "models" / "stack-small"


def paired_difference(won: int, lost: int, episodes: int) -> dict[str, float]:
    """What `won` more and `lost` episodes mean as shares: the difference and its 95 %."""
    n, more, less = episodes + 2, won + 0.5, lost + 0.5
    middle = (more - less) / n
    spread = 1.959964 * math.sqrt(more + less - (more - less) ** 2 / n) / n
    return {
        "difference": (won - lost) / episodes,
        "low": middle - spread,
        "high": middle + spread,
    }


def pool(reports: list[dict]) -> dict[str, dict]:
    """Formats that all of the reports have, over their episodes together."""
    common = set.intersection(*(set(r["formats"]) for r in reports))
    episodes, found = sum(r["episodes"] for r in reports), {}
    for name in (n for n in reports[0]["formats"] if n in common):
        rows = [r["formats"][name] for r in reports]
        found[name] = {"successes": sum(r["successes"] for r in rows), "episodes": episodes}
        if name != "fp32":
            others = sum(r["other_outcomes"] for r in rows)
            gain = found[name]["successes"] - found["fp32"]["successes"]
            found[name]["minus_fp32"] = paired_difference(
                (others + gain) // 2, (others - gain) // 2, episodes
            )
    return found


def rounded_to_bf16(folder: Path, output: Path) -> None:
    tensors = Tensors(folder)
    save_checkpoint(
        output,
        read_json(folder / "config.json"),
        {name: tensors[name].bfloat16() for name in tensors},
        load_tokenizer(folder),
        dict(load_config(folder).norm_stats),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--formats", nargs="+", default=["bf16", "int8", "int4-g32"])
    parser.add_argument("--method", default="hqq", help="of int4: hqq or rtn")
    parser.add_argument("--task", default="Stack_D2")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--horizon", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    add_output(parser)
    parser.add_argument("--pool", type=Path, nargs="+", help="reports of earlier runs: as one")
    args = parser.parse_args()
    if args.pool:
        for name, row in pool([json.loads(p.read_text()) for p in args.pool]).items():
            print(name, json.dumps(row))
        return
    report: dict = {
        "model": args.model.name,
        "task": args.task,
        "seed": args.seed,
        "episodes": args.episodes,
        "formats": {},
    }
    base: list[bool] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in ["fp32", *args.formats]:
            folder = args.model if name == "fp32" else Path(scratch) / name
            if name == "bf16":
                rounded_to_bf16(args.model, folder)
            elif name != "fp32":
                quantize_checkpoint(args.model, folder, get_format(name), args.method)
            results = rollout(
                str(folder),
                args.task,
                args.episodes,
                args.seed,
                horizon=args.horizon,
                workers=args.workers,
                device=args.device,
            )
            won = [r.success for r in results]
            base = base or won
            low, high = wilson_interval(sum(won), len(won))
            row = {"successes": sum(won), "rate": sum(won) / len(won), "wilson95": [low, high]}
            if name != "fp32":
                pairs = list(zip(base, won, strict=True))
                more, less = (sum(x < y for x, y in pairs), sum(x > y for x, y in pairs))
                row["minus_fp32"] = paired_difference(more, less, len(won))
                row["other_outcomes"] = more + less
            report["formats"][name] = row
            print(name, json.dumps(row), flush=True)
    keep(report, args.output, show=False)


if __name__ == "__main__":
    main()
