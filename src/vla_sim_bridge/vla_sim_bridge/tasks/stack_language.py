"""Stack_L: two blocks of one size, and only the sentence says which goes on which.

Placement and camera are Stack_D2's. Which body is moved is drawn as well, so that neither place
nor name of a block gives the answer away. The other order ends an episode as `wrong_order`.
"""

from __future__ import annotations

import numpy as np

from vla_sim_bridge.tasks.base import Scene, Subtask, Task
from vla_sim_bridge.tasks.grammar import Grammar
from vla_sim_bridge.tasks.rules import held, on_top
from vla_sim_bridge.tasks.stack import FULL_TABLE_CAMERA, PALETTE

HALF = 0.02  # m, half an edge of either block

# {a} goes on {b}. Nouns keep their side: "box" is only ever the block that is moved, "brick" only
# the one below, and the verbs "lay" and "lower" only follow "pick up" or "lift".
TRAIN = Grammar(
    (
        "{put} the {a} {block} on the {b} {base}",
        "{put} the {a} {block} on top of the {b} {base}",
        "{put} the {a} {block} onto the {b} {base}",
        "{put} the {a} {block} on the {b} one",
        "{put} the {a} {block} on top of the {b} one",
        "{put} the {a} one on the {b} {base}",
        "{put} the {a} one on top of the {b} one",
        "{put} {a} on {b}",
        "{put} {a} on top of {b}",
        "please {put} the {a} {block} on the {b} {base}",
        "can you {put} the {a} {block} onto the {b} one",
        "on the {b} {base} {put} the {a} {block}",
        "on top of the {b} {base} {put} the {a} one",
        "{take} the {a} {block} and {put} it on the {b} {base}",
        "{take} the {a} {block} and {put} it on top of the {b} one",
        "{take} the {a} one and {put} it onto the {b} one",
        "pick up the {a} {block} and lay it on the {b} {base}",
        "lift the {a} {block} and lower it onto the {b} {base}",
        "the {a} {block} goes on the {b} {base}",
        "the {a} {block} goes on top of the {b} one",
        "the {a} {block} should be on the {b} {base}",
        "the {a} {block} is to go on top of the {b} {base}",
        "I want the {a} {block} on the {b} one",
        "I want the {a} {block} to sit on top of the {b} {base}",
        "let the {a} {block} sit on the {b} {base}",
        "make the {a} {block} the top and the {b} {base} the bottom",
        "build a tower with the {b} {base} at the bottom and the {a} {block} on top",
        "build a tower with {a} on top and {b} at the bottom",
        "the {b} {base} goes under the {a} {block}",
        "the {b} {base} should be under the {a} one",
        "the {b} {base} is the bottom and the {a} {block} is the top",
        "the {b} {base} stays, the {a} {block} goes on top",
        "leave the {b} {base} where it is and {put} the {a} {block} on it",
        "use the {b} {base} as the base for the {a} {block}",
        "cover the {b} {base} with the {a} {block}",
        "cover the {b} one with the {a} one",
        "{a} on {b}",
        "{a} {block} on {b} {base}",
        "{b} at the bottom, {a} on top",
        "{b} below, {a} above",
        # "below" and "above" tied to their colours, wherever they stand in a sentence
        "{put} the {a} {block} above the {b} {base}",
        "the {a} {block} above the {b} {base}",
        "the {b} {base} below the {a} {block}",
        "above the {b} {base} goes the {a} {block}",
        "under the {a} {block} is the {b} {base}",
        "{b} under {a}",
        "keep the {b} {base} below, the {a} {block} goes above it",
        "have the {a} one above the {b} one",
        "with the {b} {base} at the bottom, {put} the {a} {block} on top",
        "{a} is the top, {b} is the bottom",
    ),
    {
        "put": ("put", "place", "stack", "set", "move"),
        "take": ("take", "pick up", "lift", "grab"),
        "block": ("block", "cube", "box"),
        "base": ("block", "cube", "brick"),
    },
)

# Every word is known from TRAIN. Held out are these templates, "brick" for the block that is
# moved, "box" for the one below, and the verbs "lay" and "lower" by themselves.
HELD_OUT = Grammar(
    (
        "lay the {a} {block} on the {b} {base}",
        "lower the {a} {block} onto the {b} one",
        "grab {a} and {put} it on top of {b}",
        "please let the {a} {block} go on top of the {b} {base}",
        "can you build a tower with {b} below and {a} above",
        "I want the {b} {base} at the bottom and the {a} {block} on top",
        "I want {a} on top of {b}",
        "{take} {a} and lay it on {b}",
        "use the {b} {base} as the bottom and {put} the {a} one on it",
        "make {b} the base and {put} {a} on top",
        "{a} goes on {b}",
        "{b} goes under {a}",
        "the {b} {base} should sit under the {a} {block}",
        "the {a} {block} is the top, the {b} {base} stays below it",
        "cover {b} with {a}",
        "with the {a} {block} cover the {b} {base}",
        "{a} above, {b} below",
        "on {b} {put} {a}",
    ),
    {
        "put": ("put", "place", "set", "lay"),
        "take": ("take", "pick up", "lift", "grab"),
        "block": ("block", "cube", "brick"),
        "base": ("block", "cube", "box"),
    },
)


def _scene(rng: np.random.Generator) -> Scene:
    one, other = (str(c) for c in rng.choice(list(PALETTE), size=2, replace=False))
    moved, base = ("cubeA", "cubeB") if rng.integers(2) == 0 else ("cubeB", "cubeA")
    return Scene({"cubeA": one, "cubeB": other}, {"moved": moved, "base": base})


def _say(grammar: Grammar):
    def draw(rng: np.random.Generator, scene: Scene) -> str:
        a, b = (scene.colours[scene.roles[role]] for role in ("moved", "base"))
        return grammar.draw(rng, a=a, b=b)

    return draw


STACK_L = Task(
    name="Stack_L",
    env="Blocks",
    make={"blocks": {"cubeA": (HALF, "WoodRed"), "cubeB": (HALF, "WoodGreen")}},
    objects={"cubeA": "cubeA_main", "cubeB": "cubeB_main"},
    subtasks=(
        Subtask("moved", "grasp", offset=(10, 20), symmetry=4, until=held("moved")),
        Subtask("base", symmetry=4),
    ),
    draw_scene=_scene,
    draw_instruction=_say(TRAIN),
    draw_held_out=_say(HELD_OUT),
    x_range=(-0.20, 0.20),
    y_range=(-0.20, 0.20),
    camera_poses=FULL_TABLE_CAMERA,
    colour_geoms={"cubeA": "cubeA_g0", "cubeB": "cubeB_g0"},
    colours="episode",
    language="episode",
    success=on_top("moved", "base", 2 * HALF),
    wrong={"wrong_order": on_top("base", "moved", 2 * HALF)},
    expert="stack_by_sentence",
    human="stack_human.hdf5",
    roles={"moved": "cubeA", "base": "cubeB"},
)
