"""Closed-loop evaluation of the model during training, in the training processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch.distributed as dist

from vla_inference.policies.base import Policy
from vla_sim_bridge.envs.protocol import make_world
from vla_sim_bridge.evaluation.lookback import Lookback
from vla_sim_bridge.evaluation.rollout import run_episode, summarise
from vla_training.loop.distributed import Place

SEED = 1_000_003  # of episodes that nothing else draws from


class ClosedLoop:
    """Episodes 0..N-1 of its own seed; each process runs its share of them.

    cameras: what the model sees, in its order. The world is made at once, so that what is wrong
    with it shows before training.
    """

    def __init__(self, task: str, cameras: Sequence[str], episodes: int, place: Place):
        self.world = make_world(task, tuple(cameras))
        self.episodes, self.place = episodes, place

    def try_once(self, policy: Policy) -> None:
        """One answer, so that a model which cannot look at this world is known of."""
        self.world.reset(np.random.default_rng(0))
        look = Lookback(policy.needs)
        seen = self.world.observation()
        look.see(seen.images)
        policy.act(replace(seen, images=look.images(list(seen.images))))

    def play(self, policy: Policy) -> dict[str, Any]:
        """Runs all episodes and returns `summarise`'s counts, the same in every process."""
        place, results = self.place, []
        steps = max(1, policy.chunk // 2)
        for begin in range(0, self.episodes, place.world):
            index = begin + place.rank
            if index < self.episodes:
                act, horizon = policy.act, self.world.task.horizon
                how = (SEED, index, horizon, steps)
                results.append(run_episode(self.world, act, *how, needs=policy.needs))
            # Together after each episode: nobody waits for longer than one lasts.
            place.barrier()
        if place.world > 1:
            parts: list = [None] * place.world
            dist.all_gather_object(parts, results)
            results = sorted((r for part in parts for r in part), key=lambda r: r.index)
        return summarise(results)
