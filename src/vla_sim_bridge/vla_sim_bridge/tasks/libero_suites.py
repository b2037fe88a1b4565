"""LIBERO's suites as tasks: names, step limits, and which sentence a model is given.

Sources: Liu et al., LIBERO, arXiv 2306.03310; the step limits are those of OpenVLA's evaluation,
which all later ones took over; PRO is the suites' perturbed form (LIBERO-PRO).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np

from vla_inference.errors import VlaError
from vla_sim_bridge.tasks.base import Scene, Task

LIMITS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
# what LIBERO-PRO changes: the sentence, the objects' types, their places, the goal
PERTURBATIONS = ("lan", "object", "swap", "task")
INITIAL_STATES = 50  # of each task
ANY = "_any"  # our own: any thing of the scene may be asked for, and things change places
ANY_OF = ("libero_spatial", "libero_object")


@dataclass(frozen=True)
class Suite:
    """horizon: control steps (0.05 s) until an episode has failed, settling not counted."""

    name: str
    tasks: int
    horizon: int

    @property
    def any(self) -> bool:
        """Whether the sentence alone says what is asked for, in scenes drawn by us."""
        return self.name.endswith(ANY)

    @property
    def registered(self) -> str:
        """The name of the suite in LIBERO's package whose scenes these are."""
        return self.name.removesuffix(ANY)

    @property
    def perturbed(self) -> bool:
        return self.registered not in LIMITS

    def sentence(self, by_name: str, in_file: str) -> str:
        """What the model is told. by_name, in_file: by the task's file name, by its BDDL text.

        Published models are trained and tested with the first. A perturbed suite keeps the file
        names and changes the text, so there only the second is the task's.
        """
        return in_file if self.perturbed else by_name

    def place(self, index: int) -> tuple[int, int]:
        """The task and the initial state of an episode: all tasks take turns."""
        task, state = index % self.tasks, index // self.tasks
        if state >= INITIAL_STATES:
            raise VlaError(
                f"{self.name} has {INITIAL_STATES} initial states a task, "
                f"{self.tasks * INITIAL_STATES} episodes",
                f"ask for {self.tasks * INITIAL_STATES} episodes at most",
            )
        return task, state


def _suites() -> dict[str, Suite]:
    plain = {n: Suite(n, 90 if n == "libero_90" else 10, limit) for n, limit in LIMITS.items()}
    names = [n for n in LIMITS if n != "libero_90"]
    perturbed = [Suite(f"{n}_{p}", 10, LIMITS[n]) for n in names for p in PERTURBATIONS]
    own = [Suite(n + ANY, 10, LIMITS[n]) for n in ANY_OF]
    return plain | {suite.name: suite for suite in (*perturbed, *own)}


SUITES = _suites()


def split_name(name: str) -> tuple[Suite, int | None]:
    """The suite of `libero_spatial` or `libero_spatial/3`, and the task's index, if one is named.

    Case does not matter.
    """
    base, slash, number = name.lower().partition("/")
    if base not in SUITES:
        near = difflib.get_close_matches(base, SUITES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise VlaError(f"there is no suite {base!r}", f"{hint}LIBERO's: {', '.join(SUITES)}")
    suite = SUITES[base]
    if not slash:
        return suite, None
    if not number.isdecimal() or int(number) >= suite.tasks:
        raise VlaError(
            f"{suite.name} has no task {number!r}", f"name one from 0 to {suite.tasks - 1}"
        )
    return suite, int(number)


def libero_task(name: str) -> Task:
    """A suite (its tasks take turns), or one task of it, whether or not LIBERO is installed."""
    suite, number = split_name(name)
    return Task(
        name=suite.name if number is None else f"{suite.name}/{number}",
        env=suite.registered,
        package="libero",
        objects={},
        subtasks=(),
        draw_instruction=_no_sentence,
        horizon=suite.horizon,
    )


def _no_sentence(rng: np.random.Generator, scene: Scene) -> str:
    raise VlaError("LIBERO's sentences come with its tasks", "read the world's instruction")
