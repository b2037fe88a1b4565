#!/usr/bin/env python3
"""Ways to join the chunks of a slow model, by the same episodes: success and jumps.

    python bench/closed_loop/joining.py MODEL --delay 0.3 --episodes 100
        [--output bench/results/joining.json]

MODEL: a flow-matching checkpoint. `delays.py` says how an episode is played and what a jump is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from delays import Episode, make_parser, open_model, settings_of, summary

from vla_inference.policies.base import no_chunking
from vla_inference.policies.chunking import GUIDED
from vla_sim_bridge.envs.robosuite_sim import Simulation

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import add_output, keep

WAYS = {
    "no delay": ["--delay", "0", "--blend", "0"],
    "newest chunk": ["--blend", "0"],
    "blend": ["--blend", "0.1"],
    "ensemble": ["--ensemble", "0.1"],
    "rtc": ["--blend", "0", "--chunking", GUIDED],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--delay", type=float, default=0.3, help="s")
    parser.add_argument("--jitter", type=float, default=0.0, help="s")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    add_output(parser)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    policy = open_model(args.model)
    if GUIDED not in policy.chunking:
        raise no_chunking(policy, GUIDED)
    given = ["--delay", str(args.delay), "--jitter", str(args.jitter), "--seed", str(args.seed)]
    ways = {
        name: make_parser().parse_args([*given, "--horizon", "200", *more])
        for name, more in WAYS.items()
    }
    sim = Simulation("Stack_D0")
    rows: dict[str, list[dict]] = {name: [] for name in ways}
    for index in range(args.episodes):
        for name, way in ways.items():
            episode = Episode(way, settings_of(way), sim, policy, index)
            rows[name].append(episode.play())
        won = ", ".join(f"{name} {sum(r['success'] for r in of)}" for name, of in rows.items())
        print(f"{index + 1} episodes: {won}", file=sys.stderr, flush=True)
    sim.close()
    report = {
        "model": policy.name,
        "delay_s": args.delay,
        "jitter_s": args.jitter,
        "episodes": args.episodes,
        "seed": args.seed,
        "chunk_steps": policy.chunk,
        "ways": {name: summary(of) for name, of in rows.items()},
    }
    keep(report, args.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
