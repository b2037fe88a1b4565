"""What is compared, and how: `InputsConfig`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from vla_inference.errors import VlaError
from vla_sim_bridge.tasks import get_task

FRONT, WRIST = "agentview", "robot0_eye_in_hand"
CAMERAS = (FRONT, WRIST)  # of the datasets


@dataclass(frozen=True)
class Variant:
    """The inputs of a model beside its sentence.

    history: past images of each camera. state: whether it takes the robot's.
    """

    name: str
    cameras: tuple[str, ...] = (FRONT,)
    history: int = 0
    state: bool = False


VARIANTS = (
    Variant("one frame"),
    Variant("2 frames", history=1),
    Variant("state", state=True),
    Variant("wrist camera", cameras=CAMERAS),
    Variant("all", CAMERAS, 1, True),
)


@dataclass(frozen=True)
class Cell:
    """One model: its inputs and the seed of its weights and batches."""

    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        return f"{self.variant.name.replace(' ', '-')}_seed-{self.seed}"


@dataclass(frozen=True)
class Condition:
    """What a model is tested in. delay: control steps that its answers take."""

    task: str
    delay: int = 0

    @property
    def name(self) -> str:
        return f"{self.task}, {0.05 * self.delay:g} s late" if self.delay else self.task


@dataclass(frozen=True, kw_only=True)
class InputsConfig:
    """Every variant is trained from `seeds` seeds on the demonstrations of all `tasks`.

    minutes: of training, of each model: what takes more images sees fewer samples. steps: in place
        of that, the same number of samples for all.
    interval: seconds between past images.
    delays: control steps; the first task is tested with each, the others with the first one.
    device: "cuda" takes all GPUs there are, one model on each.
    parallel: evaluation processes; 0: all in this process, one thing after the other.
    """

    output: str
    data: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("Stack_D1", "Stack_H")
    demonstrations: int = 400
    minutes: float | None = 1.2
    steps: int | None = None
    seeds: int = 3
    interval: float = 0.2
    batch_size: int = 256
    learning_rate: float = 1.5e-3
    eval_episodes: int = 100
    eval_seed: int = 1000
    delays: tuple[int, ...] = (0, 2, 4)
    execute_steps: int = 4
    horizon: int | None = None
    device: str = "cpu"
    compile: bool = False
    parallel: int = 1

    def check(self) -> None:
        for task in self.tasks:
            get_task(task)
        least = (self.seeds, self.eval_episodes, self.demonstrations, self.batch_size)
        if not self.tasks or not self.delays or min(least) < 1 or min(self.delays) < 0:
            raise VlaError(
                "tasks, delays, seeds, episodes and the batch must be there, none below its least",
                "correct the numbers",
            )
        if (self.minutes is None) == (self.steps is None):
            raise VlaError("training has both a time and a number of steps", "give one of them")

    def identity(self) -> dict[str, Any]:
        """What a resumed study must have in common with its start, as JSON."""
        how = ("output", "data", "device", "compile", "parallel")
        values = {k: v for k, v in asdict(self).items() if k not in how}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @property
    def cells(self) -> list[Cell]:
        """Ordered by seed, so that what is there of an unfinished study compares all variants."""
        return [Cell(v, seed) for seed, v in product(range(self.seeds), VARIANTS)]

    @property
    def conditions(self) -> list[Condition]:
        first, *others = self.tasks
        late = [Condition(first, delay) for delay in self.delays]
        return [*late, *(Condition(task, self.delays[0]) for task in others)]
