"""Nuts on pegs: Square (the square nut alone) and NutAssembly (the round one as well).

Square_D0 and NutAssembly_D0 are placed as robosuite places them. D1 and D2 are ours, after the
idea of MimicGen's (arXiv 2310.17596): D1 a nut anywhere on a stretch of the table and a peg that
moves by up to 5 cm, D2 half the table and 8 cm.
"""

from __future__ import annotations

from vla_sim_bridge.tasks.base import Placement, Subtask, Task
from vla_sim_bridge.tasks.grammar import Grammar
from vla_sim_bridge.tasks.rules import all_of, around, held
from vla_sim_bridge.tasks.stack import FULL_TABLE_CAMERA

DOWN = 0.87  # m; a nut whose centre is lower is down on its peg (robosuite's rule)
SQUARE_ON, ROUND_ON = (
    around(n, p, 0.03, DOWN) for n, p in (("SquareNut", "peg1"), ("RoundNut", "peg2"))
)

# The round nut is taken away after it was placed: it must not be in the way of that.
ASIDE = Placement((0.0, 0.0), (0.6, 0.6))

WORDS = {"put": ("put", "place"), "nut": ("square nut", "nut")}
TRAIN = Grammar(
    (
        "{put} the {nut} on the peg",
        "{put} the {nut} onto the square peg",
        "{put} the {nut} over the peg",
        "take the {nut} and slide it down the peg",
        "pick up the {nut} by its handle and {put} it over the square peg",
        "slide the {nut} onto the peg",
        "on the square peg {put} the {nut}",
    ),
    WORDS,
)
HELD_OUT = Grammar(
    (
        "slide the {nut} over the square peg",
        "take the {nut} by its handle and {put} it on the peg",
        "pick up the {nut} and slide it onto the square peg",
        "over the peg {put} the {nut}",
    ),
    WORDS,
)
TRAIN_BOTH = Grammar(
    (
        "{put} both nuts on their pegs",
        "{put} the square nut on the square peg and the round nut on the round peg",
        "{put} each nut on the peg of its shape",
        "slide both nuts onto their pegs, the square one first",
        "take the nuts and {put} them over the pegs",
    ),
    WORDS,
)
HELD_OUT_BOTH = Grammar(
    (
        "{put} each nut over its peg",
        "slide the square nut onto its peg and the round one onto the round peg",
        "take both nuts and slide them onto their pegs",
    ),
    WORDS,
)


def _square(variant: int, nut: Placement | None, moved: float, camera: bool) -> Task:
    return Task(
        name=f"Square_D{variant}",
        env="NutAssemblySquare",
        objects={"SquareNut": "SquareNut_main", "peg1": "peg1"},
        subtasks=(
            Subtask("SquareNut", "grasp", offset=(10, 20), until=held("SquareNut")),
            Subtask("peg1", symmetry=4),
        ),
        draw_instruction=TRAIN.for_scene(),
        draw_held_out=HELD_OUT.for_scene(),
        placements={} if nut is None else {"SquareNutSampler": nut, "RoundNutSampler": ASIDE},
        fixtures={"peg1": Placement((-moved, 0.0), (-moved, moved), (0, 0))} if moved else {},
        camera_poses=FULL_TABLE_CAMERA if camera else {},
        language="episode",
        still_object="SquareNut",
        expert="square",
        horizon=300,
    )


NUT_ASSEMBLY = Task(
    name="NutAssembly_D0",
    env="NutAssembly",
    objects={
        "SquareNut": "SquareNut_main",
        "RoundNut": "RoundNut_main",
        "peg1": "peg1",
        "peg2": "peg2",
    },
    subtasks=(
        Subtask("SquareNut", "grasp_square", offset=(10, 20), until=held("SquareNut")),
        Subtask("peg1", "square_on", offset=(5, 10), symmetry=4, until=SQUARE_ON),
        Subtask("RoundNut", "grasp_round", offset=(10, 20), until=held("RoundNut")),
        Subtask("peg2"),
    ),
    draw_instruction=TRAIN_BOTH.for_scene(),
    draw_held_out=HELD_OUT_BOTH.for_scene(),
    language="episode",
    success=all_of(SQUARE_ON, ROUND_ON),
    expert="nuts",
    horizon=600,
)

NUT_TASKS = (
    _square(0, None, 0.0, camera=False),
    _square(1, Placement((-0.15, 0.05), (0.05, 0.25)), 0.05, camera=True),
    _square(2, Placement((-0.20, 0.10), (-0.25, 0.25)), 0.08, camera=True),
    NUT_ASSEMBLY,
)
