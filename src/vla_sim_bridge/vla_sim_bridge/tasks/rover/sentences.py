"""What a rover is told."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vla_sim_bridge.tasks.base import Scene
from vla_sim_bridge.tasks.grammar import Grammar
from vla_sim_bridge.tasks.rover.scenes import shape_of

WORDS = {
    "go": ("drive", "go", "move", "roll"),
    "find": ("find", "look for", "approach"),
    "halt": ("stop", "halt", "wait"),
    "by": ("in front of", "before", "at"),
    "ball": ("ball", "sphere"),
    "box": ("box", "cube"),
    "pillar": ("pillar", "post"),
    "cone": ("cone", "pylon"),
    "person": ("person", "walker"),
    "follow": ("follow", "go after", "stay behind"),
}
TRAIN = Grammar(
    (
        "{go} to the {colour} {shape}",
        "{go} to the {colour} {shape} and {halt} {by} it",
        "please {go} to the {colour} {shape}",
        "{find} the {colour} {shape}",
        "{find} the {colour} {shape} and {halt} {by} it",
        "{halt} {by} the {colour} {shape}",
        "{go} up to the {colour} {shape}",
        "the {colour} {shape} is where you {halt}",
        "I want you {by} the {colour} {shape}",
        "{go} over there, to the {colour} {shape}",
        "can you {go} to the {colour} {shape}",
        "to the {colour} {shape}",
    ),
    WORDS,
)
HELD_OUT = Grammar(
    (
        "please {find} the {colour} {shape} and {halt} there",
        "can you {find} the {colour} {shape}",
        "{by} the {colour} {shape} you {halt}",
        "I want you to {go} to the {colour} {shape}",
        "{go} up to the {colour} {shape} and {halt} {by} it",
        "over to the {colour} {shape}, please",
    ),
    WORDS,
)


GATE = Grammar(
    (
        "{go} between the {colour} {shape} and the {colour2} {shape2}",
        "{go} between the {colour} {shape} and the {colour2} {shape2} and {halt} behind them",
        "{go} through between {colour} {shape} and {colour2} {shape2}",
        "please pass between the {colour} {shape} and the {colour2} {shape2}",
        "pass the {colour} {shape} and the {colour2} {shape2}, between them",
        "the way is between the {colour} {shape} and the {colour2} {shape2}",
    ),
    WORDS,
)
GATE_HELD_OUT = Grammar(
    (
        "please {go} between the {colour} {shape} and the {colour2} {shape2}",
        "pass between {colour} {shape} and {colour2} {shape2} and {halt} behind them",
        "between the {colour} {shape} and the {colour2} {shape2} is the way",
        "{go} through, between the {colour} {shape} and the {colour2} {shape2}",
    ),
    WORDS,
)
STOP = Grammar(("{halt}", "{halt} now", "please {halt}", "{halt} there"), WORDS)
STOP_HELD_OUT = Grammar(("please {halt} now", "now {halt}", "{halt}, please"), WORDS)
ROUND = Grammar(
    (
        "{go} round the {colour} {shape} on its {side} to the {colour2} {shape2}",
        "pass the {colour} {shape} on its {side} and {go} to the {colour2} {shape2}",
        "{go} to the {colour2} {shape2}, {side} of the {colour} {shape}",
        "{go} {side} of the {colour} {shape} to the {colour2} {shape2} and {halt} {by} it",
        "keep {side} of the {colour} {shape} on the way to the {colour2} {shape2}",
        "please {go} round the {colour} {shape} on the {side} to the {colour2} {shape2}",
    ),
    WORDS,
)
ROUND_HELD_OUT = Grammar(
    (
        "pass {side} of the {colour} {shape} and {halt} {by} the {colour2} {shape2}",
        "please {go} to the {colour2} {shape2}, round the {colour} {shape} on its {side}",
        "on the {side} of the {colour} {shape} {go} to the {colour2} {shape2}",
    ),
    WORDS,
)
FOLLOW = Grammar(
    (
        "{follow} the {shape}",
        "{follow} the {shape} in {colour}",
        "please {follow} the {shape}",
        "{go} where the {shape} goes",
        "{follow} the {shape} and {halt} when the {shape} does",
    ),
    WORDS,
)
FOLLOW_HELD_OUT = Grammar(
    (
        "please {follow} the {shape} in {colour}",
        "where the {shape} in {colour} goes, please {go}",
        "{follow} the {shape} in {colour} and {halt} when the {shape} does",
    ),
    WORDS,
)


def say(grammar: Grammar) -> Callable[[np.random.Generator, Scene], str]:
    """Of a scene's objects with roles, the first and the second; on which side of the first."""

    def draw(rng: np.random.Generator, scene: Scene) -> str:
        said: dict[str, str] = {}
        for number, name in zip(("", "2"), scene.roles.values(), strict=False):
            said[f"colour{number}"] = scene.colours[name]
            said[f"shape{number}"] = str(rng.choice(WORDS[shape_of(name)]))
        if side := {"left", "right"} & set(scene.roles):
            said["side"] = side.pop()
        return grammar.draw(rng, **said)

    return draw
