"""PickPlace: milk, bread, cereal and a can, each into its compartment, placed as in robosuite."""

from __future__ import annotations

from vla_sim_bridge.tasks.base import Rule, RuleState, Subtask, Task
from vla_sim_bridge.tasks.grammar import Grammar
from vla_sim_bridge.tasks.rules import held

ITEMS = ("Milk", "Bread", "Cereal", "Can")
ORDER = ("Cereal", "Milk", "Bread", "Can")  # the tall ones first; the farthest place last
HALF = (0.0975, 0.1225)  # m, of a compartment in x and y
FLOOR = 0.80  # m, where robosuite has the bin's origin

WORDS = {"put": ("put", "place", "sort"), "things": ("groceries", "things", "objects")}
TRAIN = Grammar(
    (
        "{put} all {things} into their bins",
        "{put} the milk, the bread, the cereal and the can into their bins",
        "{put} each of the {things} where it belongs",
        "move the four {things} to the other bin",
        "clear the first bin and {put} the {things} where they belong",
    ),
    WORDS,
)
HELD_OUT = Grammar(
    (
        "clear the bin",
        "move all {things} to where they belong",
        "{put} the four {things} into the other bin",
        "{put} the cereal, the milk, the can and the bread where they belong",
    ),
    WORDS,
)


def in_bin(item: str) -> Rule:
    """Within its compartment, as robosuite counts it, and released."""

    def rule(sim: RuleState) -> bool:
        at, centre = sim.position(item), sim.position(f"{item}_bin")
        inside = abs(at[0] - centre[0]) < HALF[0] and abs(at[1] - centre[1]) < HALF[1]
        return bool(inside and FLOOR < at[2] < FLOOR + 0.1 and not sim.holds(item))

    return rule


def _stages():
    for item in ORDER:
        yield Subtask(item, f"grasp_{item}", offset=(5, 10), until=held(item))
        last = item == ORDER[-1]
        yield Subtask(
            f"{item}_bin", None if last else f"placed_{item}", until=None if last else in_bin(item)
        )


PICK_PLACE = Task(
    name="PickPlace_D0",
    env="PickPlace",
    objects={
        **{item: f"{item}_main" for item in ITEMS},
        **{f"{item}_bin": f"Visual{item}_main" for item in ITEMS},
    },
    subtasks=tuple(_stages()),
    draw_instruction=TRAIN.for_scene(),
    draw_held_out=HELD_OUT.for_scene(),
    language="episode",
    expert="pick_place",
    horizon=900,
)
