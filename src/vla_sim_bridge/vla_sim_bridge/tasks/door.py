"""Door: press the handle down, pull the door open by 0.3 rad. Placed as robosuite places it."""

from __future__ import annotations

from vla_sim_bridge.tasks.base import Subtask, Task
from vla_sim_bridge.tasks.grammar import Grammar
from vla_sim_bridge.tasks.rules import held

WORDS = {"press": ("press", "push", "turn"), "open": ("open", "pull open")}
TRAIN = Grammar(
    (
        "{open} the door",
        "please {open} the door",
        "{press} the handle and {open} the door",
        "{press} the handle down, then pull",
        "take the handle and pull the door towards you",
        "take the door by its handle and {open} it",
    ),
    WORDS,
)
HELD_OUT = Grammar(
    (
        "take the handle and {open} the door",
        "{press} the handle down and pull the door towards you",
        "please pull the door by its handle",
        "{open} it by the handle",
    ),
    WORDS,
)

DOOR = Task(
    name="Door_D0",
    env="Door",
    objects={"latch": "Door_latch", "door": "Door_door", "frame": "Door_frame"},
    subtasks=(
        Subtask("frame", "grasp", offset=(0, 5), until=held("latch")),
        Subtask("frame"),
    ),
    draw_instruction=TRAIN.for_scene(),
    draw_held_out=HELD_OUT.for_scene(),
    language="episode",
    expert="door",
    horizon=300,
)
