#!/usr/bin/env python3
"""Overhead of ROS in the closed loop, against the same episodes without ROS.

    python bench/closed_loop/closed_loop.py [--task Stack_D0] [--episodes 5] [--seed 7]

With ROS: `vla rollout`, two processes, Fast DDS, lock step. Without: simulation and policy in one
process. Overhead of a frame = from publishing the image to holding its action, less the time
the model itself took.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import add_output, keep, over_ros

# As in the node: threads that spin while they wait take the processor from the simulation.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_sim_bridge.cli.rollout import find_model
from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.evaluation.rollout import run_episode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="Stack_D0")
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=7)
    add_output(parser)
    args = parser.parse_args()
    ros = over_ros(args.task, args.episodes, args.seed)
    direct = without_ros(args)
    frames = [[e["frames"] for e in r["per_episode"]] for r in (ros, direct)]
    keep(
        {
            "task": args.task,
            "episodes": args.episodes,
            "ros_overhead_ms": ros["ros_overhead_ms"],
            "model_latency_ms": {"ros": ros["latency_ms"], "direct": direct["latency_ms"]},
            "action_steps_per_s": {
                "ros": ros["action_steps_per_s"],
                "direct": direct["action_steps_per_s"],
            },
            "frames_per_episode": {"ros": frames[0], "direct": frames[1]},
            "same_episodes": frames[0] == frames[1],
        },
        args.output,
    )


def without_ros(args) -> dict:
    policy = OpenVLAPolicy.from_pretrained(find_model(None), device="cpu")
    policy.warm_up()
    sim = Simulation(args.task)
    latency: list[float] = []

    def act(observation):
        chunk = policy.predict_action(observation)
        latency.append(chunk.timing["total"])
        return chunk

    begun = time.perf_counter()
    results = [run_episode(sim, act, args.seed, i, 200, 4) for i in range(args.episodes)]
    seconds = time.perf_counter() - begun
    return {
        "per_episode": [{"frames": r.frames} for r in results],
        "latency_ms": {
            "median": round(float(np.median(latency)), 3),
            "p95": round(float(np.percentile(latency, 95)), 3),
            "count": len(latency),
        },
        "action_steps_per_s": round(sum(r.frames for r in results) / seconds, 2),
    }


if __name__ == "__main__":
    main()
