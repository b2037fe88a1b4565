"""Lift: the cube is picked up. D0 where robosuite puts it, D1 anywhere on the table."""

from __future__ import annotations

from vla_sim_bridge.tasks.base import Subtask, Task
from vla_sim_bridge.tasks.grammar import Grammar
from vla_sim_bridge.tasks.rules import held
from vla_sim_bridge.tasks.stack import FULL_TABLE_CAMERA

WORDS = {"block": ("cube", "block"), "lift": ("lift", "raise", "pick up")}
TRAIN = Grammar(
    (
        "{lift} the {block}",
        "{lift} the red {block}",
        "{lift} the {block} from the table",
        "take the {block} and {lift} it",
        "please {lift} the red {block} off the table",
        "grasp the red {block} and hold it up",
    ),
    WORDS,
)
HELD_OUT = Grammar(
    (
        "grasp the {block} and {lift} it off the table",
        "take the red {block} from the table",
        "hold the red {block} up",
        "please take the {block} off the table and hold it",
    ),
    WORDS,
)


def _lift(variant: int, reach: float) -> Task:
    return Task(
        name=f"Lift_D{variant}",
        env="Lift",
        objects={"cube": "cube_main"},
        subtasks=(
            Subtask("cube", "grasp", offset=(5, 10), symmetry=4, until=held("cube")),
            Subtask("cube", symmetry=4),
        ),
        draw_instruction=TRAIN.for_scene(),
        draw_held_out=HELD_OUT.for_scene(),
        x_range=(-reach, reach),
        y_range=(-reach, reach),
        camera_poses={} if variant == 0 else FULL_TABLE_CAMERA,
        language="episode",
        expert="lift",
        human="lift_human.hdf5",
    )


LIFT_TASKS = (_lift(0, 0.03), _lift(1, 0.20))
