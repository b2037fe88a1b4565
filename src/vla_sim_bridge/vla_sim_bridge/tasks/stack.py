"""Stack: the small block goes on the big one, in the five variants of OpenVLA on Jetson, and one
in which the hand hides it.

D0 narrow placement, D1 the whole table and a camera that sees it (bounds and camera: MimicGen,
arXiv 2310.17596), D2 random colours and one instruction an episode, D3 a new instruction every
step, D4 new colours every step as well (D2 to D4: dusty-nv's variants, behaviour re-implemented).

H looks straight down: once the hand is over the small block, neither that nor the fingers are to
be seen, and one image does not tell whether the hand is on its way down to it or up with it. Both
blocks start beside the hand, in sight.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vla_sim_bridge.tasks.base import Scene, Subtask, Task, Vary, plain_scene
from vla_sim_bridge.tasks.grammar import Grammar
from vla_sim_bridge.tasks.rules import held

PALETTE = {
    "red": (255, 0, 0),
    "orange": (255, 128, 0),
    "yellow": (255, 255, 0),
    "green": (128, 255, 0),
    "blue": (0, 128, 255),
    "purple": (128, 0, 255),
}

FULL_TABLE_CAMERA = {
    "agentview": ((0.753078, 0.0, 1.519473), (0.643241, 0.293668, 0.293668, 0.643241))
}

OVERHEAD_CAMERA = {"agentview": ((0.06, 0.0, 1.75), (0.707107, 0.0, 0.0, -0.707107))}

# Held out from the published grammar, in its own words: the block on top named last or without
# a word for the action, and "one" for it.
HELD_OUT = Grammar(
    (
        "on top of the {big} {block} {put} the {small} {block}",
        "on the {big} {block} {put} the {small} one",
        "on the {big} one {put} the {small} {block}",
        "{put} on the {big} {block} the {small} {block}",
        "{put} the {small} one on top of the {big} {block}",
        "{put} the {small} one on the {big} one",
        "the {small} {block} on top of the {big} {block}",
        "the {small} one on the {big} {block}",
    ),
    {"put": ("stack", "place", "put"), "block": ("block", "cube")},
)


def _plain_instruction(rng: np.random.Generator, scene: Scene) -> str:
    return "stack the red block on top of the green block"


def _two_colours(rng: np.random.Generator) -> Scene:
    small, big = rng.choice(list(PALETTE), size=2, replace=False)
    return Scene({"cubeA": str(small), "cubeB": str(big)})


def _sentence(rng: np.random.Generator, scene: Scene) -> str:
    """`PICK the A NOUN PLACE B NOUN`: blocks are named by colour 5 times in 8, else by size."""

    def pick(*words: str) -> str:
        return str(rng.choice(words))

    small, big = _adjectives(rng, scene)
    return (
        f"{pick('stack', 'place', 'put')} the {small} {pick('block', 'cube')} "
        f"{pick('on the', 'on top of the')} {big} {pick('block', 'cube', 'one')}"
    )


def _held_out(rng: np.random.Generator, scene: Scene) -> str:
    small, big = _adjectives(rng, scene)
    return HELD_OUT.draw(rng, small=small, big=big)


def _adjectives(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    def adjective(colour: str, sizes: tuple[str, ...]) -> str:
        return colour if rng.random() < 5 / 8 else str(rng.choice(sizes))

    small = adjective(scene.colours.get("cubeA", "red"), ("small", "smaller", "little"))
    return small, adjective(scene.colours.get("cubeB", "green"), ("big", "larger", "other"))


def _stack(variant: int, reach: float, colours: Vary, language: Vary) -> Task:
    plain = colours == "never"
    return Task(
        name=f"Stack_D{variant}",
        env="Stack",
        objects={"cubeA": "cubeA_main", "cubeB": "cubeB_main"},
        subtasks=(
            Subtask("cubeA", "grasp", offset=(10, 20), symmetry=4, until=held("cubeA")),
            Subtask("cubeB", symmetry=4),
        ),
        draw_scene=plain_scene if plain else _two_colours,
        draw_instruction=_plain_instruction if plain else _sentence,
        x_range=(-reach, reach),
        y_range=(-reach, reach),
        camera_poses={} if variant == 0 else FULL_TABLE_CAMERA,
        colour_geoms={} if plain else {"cubeA": "cubeA_g0", "cubeB": "cubeB_g0"},
        colours=colours,
        language=language,
        draw_held_out=_held_out,
        still_object="cubeA",
        expert="stack",
        human="stack_human.hdf5",
    )


STACK_TASKS = (
    _stack(0, 0.08, "never", "never"),
    _stack(1, 0.20, "never", "never"),
    _stack(2, 0.20, "episode", "episode"),
    _stack(3, 0.20, "episode", "step"),
    _stack(4, 0.20, "step", "step"),
)
STACK_HIDDEN = replace(
    _stack(1, 0.20, "never", "never"),
    name="Stack_H",
    x_range=(0.04, 0.20),
    camera_poses=OVERHEAD_CAMERA,
)
