"""The model under training at work in simulation, in the training process itself."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from vla_inference.model import VLA
from vla_inference.policy import Policy
from vla_sim_bridge.rollout import run_episode, summarise
from vla_sim_bridge.world import make_world

SEED = 1_000_003  # of episodes that nothing else draws from


def evaluate(
    model: VLA, tokenizer, device: str, dtype: torch.dtype, task: str, episodes: int
) -> dict[str, Any]:
    """Success over episodes 0..N-1 of a seed of its own; as `summarise` counts it."""
    policy = Policy(model, tokenizer, device, dtype)
    chunk, space = model.config.head.chunk, next(iter(model.config.norm_stats))
    sim = make_world(task)
    steps = max(1, chunk // 2)
    # Heads that are trained in float32 beside a bfloat16 base are run in bfloat16.
    low = dtype != torch.float32
    with torch.no_grad(), torch.autocast(device.split(":")[0], dtype, enabled=low):
        act = partial(policy.predict_action, action_space=space)
        horizon = sim.task.horizon
        results = [run_episode(sim, act, SEED, i, horizon, steps) for i in range(episodes)]
    return summarise(results)
