"""The tasks of an installed `mimicgen` package (NVlabs/mimicgen, robosuite 1.4).

Neither the package nor anything of it is here: it runs in a Python of its own, which is asked for
the environments that it registers. Names, variants and horizons are those published.
"""

from __future__ import annotations

from vla_inference.errors import VlaError
from vla_sim_bridge.tasks.base import Task
from vla_sim_bridge.tasks.grammar import Grammar

PREFIX = "mimicgen/"
# Task -> its variants, the control steps after which it has failed, what the model is told.
PUBLISHED: dict[str, tuple[str, int, str]] = {
    "Stack": ("D0 D1", 400, "stack the red block on top of the green block"),
    "StackThree": (
        "D0 D1",
        400,
        "stack the red block on the green block and the blue block on the red block",
    ),
    "Square": ("D0 D1 D2", 400, "put the square nut on the square peg"),
    "Threading": ("D0 D1 D2", 400, "put the needle through the ring"),
    "Coffee": ("D0 D1 D2", 400, "put the pod into the coffee machine and close the lid"),
    "ThreePieceAssembly": ("D0 D1 D2", 500, "put the three pieces together"),
    "HammerCleanup": ("D0 D1", 500, "put the hammer into the drawer and close it"),
    "MugCleanup": ("D0 D1 O1 O2", 500, "put the mug into the drawer and close it"),
    "NutAssembly": ("D0", 500, "put both nuts on their pegs"),
    "PickPlace": ("D0", 1000, "put every object into its bin"),
    "Kitchen": ("D0 D1", 800, "cook with the pot and serve it"),
    "CoffeePreparation": ("D0 D1", 800, "prepare a cup of coffee"),
}


def published_names() -> list[str]:
    """`mimicgen/Coffee_D1` and the like, whether or not the package is installed."""
    return [f"{PREFIX}{t}_{v}" for t, (vs, *_) in PUBLISHED.items() for v in vs.split()]


def mimicgen_task(name: str) -> Task:
    """The task `mimicgen/NAME` (any case; without a variant: D0), whether or not it is installed.

    Subtasks and reference objects are the package's business: this is for rollouts, not for
    generation.
    """
    known = {n.lower(): n for n in published_names()}
    wanted = name.lower()
    full = known.get(wanted) or known.get(f"{wanted}_d0")
    if full is None:
        raise VlaError(f"there is no task {name!r}", f"of mimicgen's: {', '.join(known.values())}")
    env = full.removeprefix(PREFIX)
    _, horizon, sentence = PUBLISHED[env.rsplit("_", 1)[0]]
    return Task(
        name=full,
        env=env,
        package="mimicgen",
        objects={},
        subtasks=(),
        draw_instruction=Grammar((sentence,)).for_scene(),
        horizon=horizon,
    )
