"""StackThree: cubeA on cubeB, then cubeC on cubeA.

Sizes, colours and bounds as MimicGen has them (arXiv 2310.17596): D0 narrow, D1 the whole table.
"""

from __future__ import annotations

from vla_sim_bridge.tasks.base import Subtask, Task
from vla_sim_bridge.tasks.grammar import Grammar
from vla_sim_bridge.tasks.rules import all_of, held, on_top
from vla_sim_bridge.tasks.stack import FULL_TABLE_CAMERA

WORDS = {"put": ("put", "place", "stack"), "block": ("block", "cube")}
TRAIN = Grammar(
    (
        "{put} the red {block} on the green {block} and the blue {block} on the red one",
        "{put} red on green, then blue on red",
        "{put} the red {block} on the green one, then the blue {block} on top",
        "build a tower of three: green at the bottom, red in the middle, blue on top",
        "build a tower with the green {block} at the bottom and the blue {block} on top",
        "{put} all three {block}s on top of each other, the green one at the bottom",
    ),
    WORDS,
)
HELD_OUT = Grammar(
    (
        "{put} red on the green {block} and blue on top",
        "{put} the three {block}s on top of each other, blue on red and red on green",
        "build a tower: green, then red, then blue",
        "green at the bottom, the red {block} in the middle, the blue one on top",
    ),
    WORDS,
)
A_ON_B, C_ON_A = on_top("cubeA", "cubeB", 0.045), on_top("cubeC", "cubeA", 0.04)


def _stack_three(variant: int, reach: float) -> Task:
    return Task(
        name=f"StackThree_D{variant}",
        env="Blocks",
        make={
            "blocks": {
                "cubeA": (0.02, "WoodRed"),
                "cubeB": (0.025, "WoodGreen"),
                "cubeC": (0.02, "WoodBlue"),
            }
        },
        objects={name: f"{name}_main" for name in ("cubeA", "cubeB", "cubeC")},
        subtasks=(
            Subtask("cubeA", "grasp_1", offset=(10, 20), symmetry=4, until=held("cubeA")),
            Subtask("cubeB", "stack_1", offset=(10, 20), symmetry=4, until=A_ON_B),
            Subtask("cubeC", "grasp_2", offset=(10, 20), symmetry=4, until=held("cubeC")),
            Subtask("cubeA", symmetry=4),
        ),
        draw_instruction=TRAIN.for_scene(),
        draw_held_out=HELD_OUT.for_scene(),
        x_range=(-reach, reach),
        y_range=(-reach, reach),
        camera_poses={} if variant == 0 else FULL_TABLE_CAMERA,
        language="episode",
        success=all_of(A_ON_B, C_ON_A),
        expert="stack_three",
        horizon=400,
    )


STACK_THREE_TASKS = (_stack_three(0, 0.10), _stack_three(1, 0.20))
