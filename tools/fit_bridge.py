#!/usr/bin/env python3
"""Fits a small model to a slice of Bridge and runs `vla eval` on it: an end-to-end check.

    python tools/fit_bridge.py [--data FOLDER] [--steps 2000] [--output FOLDER]

Trains the small model's architecture, narrower and at the images' own 64 x 64 pixels so that one
CPU core will do, on all frames of the Bridge slice without augmentation, and measures it on the
same frames. A memory test, not a measure of skill: at least 95 % (clipped) is due. The width of
the model that ships: --width 320 --layers 4.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
from pathlib import Path

# Threads that spin while they wait take the processor from others.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_training.datasets import open_dataset
from vla_training.evaluation.evaluate import evaluate
from vla_training.evaluation.report import write_report
from vla_training.small_model.episode_frames import frames_from_episodes
from vla_training.small_model.train import SMALL, TrainConfig, Trainer

ROOT = Path(__file__).resolve().parents[1]
SIDE = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("VLA_TEST_DATA", str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default) / "bridge_rlds")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--width", type=int, default=128, help="of the model; a multiple of 64")
    parser.add_argument("--layers", type=int, default=2, help="of its language model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="keeps checkpoint and report there")
    args = parser.parse_args()
    if not args.data.is_dir():
        print(f"there is no data at {args.data}; give --data or set VLA_TEST_DATA")
        return
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(fit(args, args.output or Path(scratch)), indent=2))


def fit(args: argparse.Namespace, output: Path) -> dict:
    data = open_dataset(args.data)
    model = copy.deepcopy(SMALL)
    model["name"] = "small-bridge"
    width, heads = args.width, args.width // 64
    model["vision_towers"][0].update(
        image_size=SIDE, embed_dim=width, num_heads=heads, mlp_hidden=4 * width
    )
    model["text_config"].update(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=args.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    )
    frames = frames_from_episodes([data], size=SIDE, device=args.device)
    config = TrainConfig(
        batch_size=args.batch_size,
        steps=args.steps,
        learning_rate=args.learning_rate,
        ema=0.99,
        weight_decay=0.0,
        shift=0,
        brightness=0.0,
        channel=0.0,
        validation=0.0,
    )
    trainer = Trainer(frames, config, args.device, model)
    begun = time.perf_counter()
    trainer.run(lambda r: print(f"step {r['step']}  loss {r['loss']}", flush=True), every=100)
    seconds = time.perf_counter() - begun
    policy = OpenVLAPolicy.from_pretrained(
        trainer.export(output / "checkpoint"), device=args.device
    )
    result = evaluate(policy, data)
    statistics = result.statistics()
    if args.output:
        write_report(output, result, statistics)
    kept = ("timesteps", "accuracy", "accuracy_clipped", "latency", "fps")
    return {
        "training_seconds": round(seconds, 1),
        "steps": trainer.step,
        "loss_is": "mean L1 of normalised actions",
        **{k: statistics["mean"][k] for k in kept},
        "gripper": statistics["gripper"],
        "dimensions": statistics["dimensions"],
    }


if __name__ == "__main__":
    main()
