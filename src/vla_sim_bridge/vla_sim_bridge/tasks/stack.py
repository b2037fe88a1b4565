"""Stack: the small block goes on the big one, in the five variants of OpenVLA on Jetson.

D0 narrow placement, D1 the whole table and a camera that sees it (bounds and camera: MimicGen,
arXiv 2310.17596), D2 random colours and one instruction an episode, D3 a new instruction every
step, D4 new colours every step as well (D2 to D4: dusty-nv's variants, behaviour re-implemented).
"""

from __future__ import annotations

import numpy as np

from vla_sim_bridge.tasks.base import Scene, Subtask, Task, Vary

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


def _plain_scene(rng: np.random.Generator) -> Scene:
    return Scene()


def _plain_instruction(rng: np.random.Generator, scene: Scene) -> str:
    return "stack the red block on top of the green block"


def _two_colours(rng: np.random.Generator) -> Scene:
    small, big = rng.choice(list(PALETTE), size=2, replace=False)
    return Scene({"cubeA": str(small), "cubeB": str(big)})


def _sentence(rng: np.random.Generator, scene: Scene) -> str:
    """`PICK the A NOUN PLACE B NOUN`: a block goes by its colour 5 times in 8, else by size."""

    def pick(*words: str) -> str:
        return str(rng.choice(words))

    def adjective(colour: str, sizes: tuple[str, ...]) -> str:
        return colour if rng.random() < 5 / 8 else pick(*sizes)

    small = adjective(scene.colours["cubeA"], ("small", "smaller", "little"))
    big = adjective(scene.colours["cubeB"], ("big", "larger", "other"))
    return (
        f"{pick('stack', 'place', 'put')} the {small} {pick('block', 'cube')} "
        f"{pick('on the', 'on top of the')} {big} {pick('block', 'cube', 'one')}"
    )


def _stack(variant: int, reach: float, colours: Vary, language: Vary) -> Task:
    plain = colours == "never"
    return Task(
        name=f"Stack_D{variant}",
        env="Stack",
        objects={"cubeA": "cubeA_main", "cubeB": "cubeB_main"},
        subtasks=(
            Subtask("cubeA", signal="grasp", offset=(10, 20), symmetry=4),
            Subtask("cubeB", symmetry=4),
        ),
        draw_scene=_plain_scene if plain else _two_colours,
        draw_instruction=_plain_instruction if plain else _sentence,
        x_range=(-reach, reach),
        y_range=(-reach, reach),
        camera_poses={} if variant == 0 else FULL_TABLE_CAMERA,
        colour_geoms={} if plain else {"cubeA": "cubeA_g0", "cubeB": "cubeB_g0"},
        colours=colours,
        language=language,
        still_object="cubeA",
    )


STACK_TASKS = (
    _stack(0, 0.08, "never", "never"),
    _stack(1, 0.20, "never", "never"),
    _stack(2, 0.20, "episode", "episode"),
    _stack(3, 0.20, "episode", "step"),
    _stack(4, 0.20, "step", "step"),
)
