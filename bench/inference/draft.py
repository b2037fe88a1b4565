#!/usr/bin/env python3
"""Share of action tokens equal to the previous action's: what draft decoding saves.

    python bench/inference/draft.py --task Stack_D2 --episodes 10 --seed 7

Plays episodes of the small model in closed loop without ROS, bins each executed action as the 256
action tokens and compares it with the one before. A draft that agrees on its first j of D tokens
takes D - j of D passes, 1 at the least.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from vla_inference.openvla.action_tokens import ActionTokens
from vla_inference.policies.normalisation import Normalisation, find_statistics
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.evaluation.rollout import run_episode

MODEL = Path(__file__).resolve().parents[2] / "models" / "stack-small"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--task", default="Stack_D2")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--execute-steps", type=int, default=4)
    parser.add_argument("--bins", type=int, nargs="+", default=[256, 32])
    args = parser.parse_args()
    policy = OpenVLAPolicy.from_pretrained(args.model, device="cpu")
    _, statistics = find_statistics(policy.action_spaces, None)
    bounds = Normalisation.from_statistics(statistics)
    sim = Simulation(args.task, width=224, height=224)
    episodes: list[np.ndarray] = []
    for index in range(args.episodes):
        taken: list[np.ndarray] = []

        def act(seen, taken=taken):
            chunk = policy.predict_action(seen)
            taken.extend(chunk.actions[: args.execute_steps])
            return chunk

        run_episode(sim, act, args.seed, index, 200, args.execute_steps)
        episodes.append(bounds.normalise(np.array(taken, float)))
    for bins in args.bins:
        coder = ActionTokens(policy.config.action_vocab_end, bins)
        ids = [coder.encode(e) for e in episodes]
        same = np.concatenate([e[1:] == e[:-1] for e in ids])
        prefix = same.cumprod(1).sum(1)  # tokens from the first on that repeat
        d = same.shape[1]
        passes = d - np.minimum(prefix, d - 1)
        row = {
            "bins": bins,
            "steps": len(same),
            "whole_repeats": same.all(1).mean(),
            "first_token_repeats": same[:, 0].mean(),
            "mean_prefix": prefix.mean(),
            "tokens_repeat": same.mean(),
            "mean_passes_of_7": passes.mean(),
        }
        print(json.dumps({k: round(float(v), 4) for k, v in row.items()}), flush=True)


if __name__ == "__main__":
    main()
