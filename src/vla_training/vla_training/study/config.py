"""`StudyConfig`: the options of `vla study` (few episodes seen often, or many seen seldom)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from vla_inference.errors import VlaError
from vla_inference.options import Holds, check_options, option

PATCH = 16  # pixels of the small model's patches
HELD_OUT = 40  # episodes at most that no model of a study is trained on


@dataclass(frozen=True)
class Cell:
    """One model: trained on `episodes` episodes for about passes / episodes epochs.

    image_size: side of the images it sees, pixels; 0: the small model's usual.
    """

    episodes: int
    passes: int
    seed: int
    image_size: int = 0

    @property
    def name(self) -> str:
        name = f"episodes-{self.episodes}_passes-{self.passes}_seed-{self.seed}"
        return f"{name}_pixels-{self.image_size}" if self.image_size else name


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A grid of episodes and passes, each cell trained from `seeds` seeds.

    passes: episodes times epochs. Cells of equal passes see equally many frames, whatever the
        number of their episodes: it is what training costs.
    data: datasets of episodes; generated where there is none.
    image_sizes: cells of equal passes see equally many frames in each size; those of one seed
        begin with the same weights but for the position embeddings, on the same episodes.
    generated: by image size, what was generated.
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
    image_sizes: tuple[int, ...] = option(
        (),
        "Sides of the images that models see, pixels, separated by commas; default: the usual.",
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
    generated: tuple[tuple[int, str], ...] = ()

    def check(self) -> None:
        check_options(self)
        for name in ("episodes", "passes"):
            values = getattr(self, name)
            if not values or min(values) < 1 or len(set(values)) < len(values):
                given = ", ".join(map(str, values)) or "empty"
                raise VlaError(f"{name} is {given}", "give different numbers above 0")
        self._check_sizes()
        if self.minutes and len(self.passes) > 1:
            raise VlaError("both minutes and several passes were given", "give one of them")

    def _check_sizes(self) -> None:
        sizes = self.image_sizes
        if len(set(sizes)) < len(sizes) or any(s < 32 or s % PATCH for s in sizes):
            given = ", ".join(map(str, sizes))
            raise VlaError(
                f"image_sizes is {given}", f"give different multiples of {PATCH} from 32 on"
            )
        if sizes and self.data:
            raise VlaError(
                "both image sizes and a dataset were given, whose images have one size",
                "leave --dataset out: episodes are generated in each size",
            )
        if len(sizes) > 1 and len(self.episodes) > 1:
            raise VlaError(
                "several image sizes and several numbers of episodes were given",
                "give one number of --episodes",
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.image_sizes or (0,)

    def data_of(self, image_size: int) -> tuple[str, ...]:
        return self.data or (dict(self.generated)[image_size],)

    def identity(self) -> dict[str, Any]:
        """What a resumed study must have in common with its start, as JSON."""
        how = ["output", "devices", "compile", "parallel", "generated"]
        if not self.image_sizes:  # as in studies begun before there were such
            how.append("image_sizes")
        values = {k: v for k, v in asdict(self).items() if k not in how}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def cells(self, passes: list[int]) -> list[Cell]:
        """Cells ordered by seed, so that a truncated study has complete grids."""
        grid = product(range(self.seeds), passes, self.episodes, self.sizes)
        return [Cell(n, p, s, size) for s, p, n, size in grid]
