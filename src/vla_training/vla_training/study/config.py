"""What `vla study` asks: the same training from few episodes seen often, or many seen seldom."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from vla_inference.errors import VlaError

HELD_OUT = 40  # episodes at most that no model of a study is trained on


@dataclass(frozen=True)
class Cell:
    """One model: from `episodes` episodes, gone through about passes / episodes times."""

    episodes: int
    passes: int
    seed: int

    @property
    def name(self) -> str:
        return f"episodes-{self.episodes}_passes-{self.passes}_seed-{self.seed}"


@dataclass(frozen=True)
class StudyConfig:
    """A grid of episodes and passes, each cell trained from `seeds` seeds.

    passes: episodes times epochs. Cells of equal passes see equally many frames, whatever the
        number of their episodes: it is what training costs.
    minutes: for training all of it; takes the place of `passes`, which then follows from the speed
        that is measured before the first cell.
    data: made by `generate` where none is given. start: checkpoint to begin with, "" for none.
    devices: GPUs, a cell on each; None for all there are, 0 for the CPU.
    parallel: processes that play episodes; 0 plays and trains in this one, one after the other.
    """

    output: str
    data: tuple[str, ...] = ()
    task: str = "Stack_D2"
    episodes: tuple[int, ...] = (250, 500, 1000, 2000)
    passes: tuple[int, ...] = (8000,)
    seeds: int = 3
    minutes: float | None = None
    batch_size: int = 256
    learning_rate: float = 1.5e-3
    start: str = ""
    eval_episodes: int = 100
    eval_seed: int = 1000
    horizon: int | None = None
    execute_steps: int = 4
    devices: int | None = None
    compile: bool = False
    parallel: int = 1

    def check(self) -> None:
        least = {
            "seeds": 1,
            "batch_size": 1,
            "eval_episodes": 1,
            "eval_seed": 0,
            "execute_steps": 1,
            "parallel": 0,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise VlaError(f"{name} is {getattr(self, name)}", f"give at least {low}")
        for name in ("episodes", "passes"):
            values = getattr(self, name)
            if not values or min(values) < 1 or len(set(values)) < len(values):
                given = ", ".join(map(str, values)) or "empty"
                raise VlaError(f"{name} is {given}", "give different numbers above 0")
        for name, value in (("learning_rate", self.learning_rate), ("minutes", self.minutes)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise VlaError(f"{name} is {value}", "give a number above 0")
        if self.horizon is not None and self.horizon < 1:
            raise VlaError(f"horizon is {self.horizon}", "give at least 1")
        if self.minutes and len(self.passes) > 1:
            raise VlaError("both minutes and several passes were given", "give one of them")

    def identity(self) -> dict[str, Any]:
        """What a study that goes on must have in common with how it began, as JSON has it."""
        how = ("output", "devices", "compile", "parallel")
        values = {k: v for k, v in asdict(self).items() if k not in how}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def cells(self, passes: list[int]) -> list[Cell]:
        """Seed by seed, so that a study cut short has whole grids."""
        return [Cell(n, p, s) for s, p, n in product(range(self.seeds), passes, self.episodes)]
