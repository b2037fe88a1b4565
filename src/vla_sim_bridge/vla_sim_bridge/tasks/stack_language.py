"""Stack_L: two blocks of one size, and only the sentence says which goes on which.

Placement and camera are Stack_D2's. Which body is moved is drawn as well, so that neither place
nor name of a block gives the answer away. The other order ends an episode as `wrong_order`.
"""

from __future__ import annotations

import re
from itertools import product

import numpy as np

from vla_sim_bridge.tasks import free_sentences
from vla_sim_bridge.tasks.base import Scene, Subtask, Task
from vla_sim_bridge.tasks.grammar import Grammar
from vla_sim_bridge.tasks.rules import held, on_top
from vla_sim_bridge.tasks.stack import FULL_TABLE_CAMERA, PALETTE

HALF = 0.02  # m, half an edge of either block

# {a} goes on {b}. How a block is called does not depend on what is said about it, so each of
# FRAMES stands here once and is said with all nine pairs of names.
MOVED = ("the {a} {block}", "the {a} one", "{a}")
BASE = ("the {b} {block}", "the {b} one", "{b}")
FRAMES = (
    "{put} A on B",
    "{put} A on top of B",
    "{put} A onto B",
    "{put} A above B",
    "please {put} A on B",
    "can you {put} A onto B",
    "on B {put} A",
    "on top of B {put} A",
    "{take} A and {put} it on B",
    "{take} A and {put} it on top of B",
    "{take} A and {put} it onto B",
    "pick up A and lay it on B",
    "lift A and lower it onto B",
    "take B as the base and {put} A on it",
    "A goes on B",
    "A goes on top of B",
    "A goes on top, B stays where it is",
    "A should be on B",
    "A is to go on top of B",
    "A is the top, B is the bottom",
    "A covers B",
    "A on B",
    "A above B",
    "B below A",
    "B under A",
    "B goes under A",
    "B should be under A",
    "B is the bottom and A is the top",
    "B is the base, {put} A on it",
    "B stays, A goes on top",
    "B is to be covered with A",
    "above B goes A",
    "under A is B",
    "I want A on B",
    "I want A to sit on top of B",
    "I want A {up} and B {down}",
    "I want B under A",
    "let A sit on B",
    "let B be the base and {put} A on it",
    "make A the top and B the bottom",
    "make B the bottom and A the top",
    "make B the bottom and {put} A on it",
    "have A above B",
    "keep B below, A goes above it",
    "leave B where it is and {put} A on it",
    "use B as the base for A",
    "use A to cover B",
    "use A as the top and B as the bottom",
    "use B as the bottom and A as the top",
    "use B as the bottom for A",
    "cover B with A",
    "build a tower on B with A",
    "with B {down}, {put} A {up}",
    "A {up}, B {down}",
    "B {down}, A {up}",
    "A is to be {up}, B {down}",
    "B is to be {down}, A {up}",
    "{with} A {up} and B {down}",
    "{with} B {down} and A {up}",
    "with A on top of B build a tower",
)
WORDS = {
    "put": ("put", "place", "stack", "set", "move"),
    "take": ("take", "pick up", "lift", "grab"),
    "block": ("block", "cube", "box", "brick"),
    "up": ("on top", "above", "at the top"),
    "down": ("at the bottom", "below", "underneath"),
    "with": ("build a tower with", "make a stack with", "have", "keep"),
}

# Every word is known from TRAIN. Held out are these sentences, the frames among them that FRAMES
# has not, and the words "lay" and "lower" by themselves.
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


def _train() -> Grammar:
    """FRAMES with every pair of names, without templates that can produce HELD_OUT sentences."""
    held_out = set(HELD_OUT.sentences(a="A", b="B"))
    templates = []
    for frame, moved, base in product(FRAMES, MOVED, BASE):
        names = {"A": moved, "B": base}
        template = "".join(names.get(part, part) for part in re.split(r"\b([AB])\b", frame))
        if held_out.isdisjoint(Grammar((template,), WORDS).sentences(a="A", b="B")):
            templates.append(template)
    return Grammar(tuple(templates), WORDS)


TRAIN = _train()


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
    draw_free=_say(Grammar(free_sentences.STACK_L)),
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
