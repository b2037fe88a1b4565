"""`StudyConfig`: the options of `vla study` (few episodes seen often, or many seen seldom)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from vla_inference.errors import VlaError
from vla_inference.options import Holds, check_options, option

HELD_OUT = 40  # episodes at most that no model of a study is trained on


@dataclass(frozen=True)
class Cell:
    """One model: trained on `episodes` episodes for about passes / episodes epochs."""

    episodes: int
    passes: int
    seed: int

    @property
    def name(self) -> str:
        return f"episodes-{self.episodes}_passes-{self.passes}_seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A grid of episodes and passes, each cell trained from `seeds` seeds.

    passes: episodes times epochs. Cells of equal passes see equally many frames, whatever the
        number of their episodes: it is what training costs.
    data: datasets of episodes; generated where there is none.
    minutes: takes the place of `passes`, which then follows from the speed that is measured before
        the first cell.
    parallel: 0 plays and trains in this process, one after the other.
    """

    output: str = option(help="Output folder; the same command resumes.", holds=Holds.PATH)
    data: tuple[str, ...] = ()
    task: str = option("Stack_D2", "Task of the closed-loop evaluation.")
    episodes: tuple[int, ...] = option(
        (250, 500, 1000, 2000), "Numbers of episodes, separated by commas."
    )
    passes: tuple[int, ...] = option(
        (8000,), "Episodes times epochs (the cost of training), separated by commas."
    )
    minutes: float | None = option(None, "Time for all training; replaces --passes.", above=0.0)
    seeds: int = option(3, "Models per cell.", low=1)
    batch_size: int = option(256, "Frames per step.", low=1)
    learning_rate: float = option(1.5e-3, "Peak of the cosine schedule.", above=0.0)
    start: str = option("", "Checkpoint to start from; default: from scratch.", holds=Holds.PATH)
    eval_episodes: int = option(100, "Evaluation episodes per model.", low=1)
    eval_seed: int = option(
        1000, "Seed of the evaluation episodes, the same for all models.", low=0
    )
    horizon: int | None = option(
        None, "Control steps until an episode fails; default: the task's own.", low=1
    )
    execute_steps: int = option(4, "Executed steps of each chunk.", low=1)
    devices: int | None = option(None, "GPUs, one model on each; default: all, 0: the CPU.", low=0)
    compile: bool = option(False, "Use torch.compile.")
    parallel: int = option(-1, "Evaluation processes; -1: cores minus 2, 0: none.", low=-1)

    def check(self) -> None:
        check_options(self)
        for name in ("episodes", "passes"):
            values = getattr(self, name)
            if not values or min(values) < 1 or len(set(values)) < len(values):
                given = ", ".join(map(str, values)) or "empty"
                raise VlaError(f"{name} is {given}", "give different numbers above 0")
        if self.minutes and len(self.passes) > 1:
            raise VlaError("both minutes and several passes were given", "give one of them")

    def identity(self) -> dict[str, Any]:
        """What a resumed study must have in common with its start, as JSON."""
        how = ("output", "devices", "compile", "parallel")
        values = {k: v for k, v in asdict(self).items() if k not in how}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def cells(self, passes: list[int]) -> list[Cell]:
        """Cells ordered by seed, so that a truncated study has complete grids."""
        return [Cell(n, p, s) for s, p, n in product(range(self.seeds), passes, self.episodes)]
