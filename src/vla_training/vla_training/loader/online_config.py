"""Options of online generation during training."""

from __future__ import annotations

from dataclasses import dataclass

from vla_inference.options import Holds, check_options, option


@dataclass(frozen=True, kw_only=True)
class Online:
    """Rounds of episodes; `seed` + r is the seed of round r."""

    tasks: tuple[str, ...] = option(
        (), "Tasks to generate while training, separated by commas.", names=("--online-tasks",)
    )
    episodes: int = option(
        50, "Episodes of each task in each round.", low=1, names=("--online-episodes",)
    )
    steps: int = option(500, "Updates per round.", low=1, names=("--online-steps",))
    parallel: int = option(
        -1, "Generation workers; -1: one per core.", low=-1, names=("--online-parallel",)
    )
    seed: int = 0
    ray_address: str = option("", "Ray cluster for generation.", holds=Holds.LOCAL)

    def check(self) -> None:
        check_options(self)
