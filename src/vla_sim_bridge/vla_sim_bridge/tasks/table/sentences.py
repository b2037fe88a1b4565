"""Sentences of Table_L: what is to be done, of things called as in `references`."""

from __future__ import annotations

import numpy as np

from vla_sim_bridge.tasks.base import Scene
from vla_sim_bridge.tasks.grammar import Grammar

WORDS = {
    "put": ("put", "place", "set", "move"),
    "take": ("take", "pick up", "grab"),
    "lift": ("lift", "pick up", "raise"),
    "push": ("push", "slide", "move", "bring"),
    "beside": ("beside", "next to", "close to"),
    "up": ("into the air", "off the table"),
    "edge": ("edge", "side"),
}
TRAIN = {
    "stack": Grammar(
        (
            "{put} {a} on {b}",
            "{put} {a} on top of {b}",
            "stack {a} on {b}",
            "stack {a} on top of {b}",
            "please stack {a} onto {b}",
            "{take} {a} and {put} it on {b}",
            "on top of {b} {put} {a}",
            "{a} goes on {b}",
            "{a} belongs on top of {b}",
            "I want {a} on {b}",
        ),
        WORDS,
    ),
    "lift": Grammar(
        (
            "{lift} {a}",
            "{lift} {a} {up}",
            "please {lift} {a}",
            "can you {lift} {a}",
            "hold up {a}",
            "take {a} and hold it up",
            "I want {a} {up}",
            "{lift} {a} and hold it",
        ),
        WORDS,
    ),
    "edge": Grammar(
        (
            "{push} {a} to the {side} {edge}",
            "{push} {a} to the {side} {edge} of the table",
            "please {push} {a} to the {side} {edge}",
            "to the {side} {edge} {push} {a}",
            "{take} {a} and {put} it at the {side} {edge}",
            "{a} goes to the {side} {edge}",
            "I want {a} at the {side} {edge} of the table",
        ),
        WORDS,
    ),
    "beside": Grammar(
        (
            "{put} {a} {beside} {b}",
            "please {put} {a} {beside} {b}",
            "{take} {a} and {put} it {beside} {b}",
            "{beside} {b} {put} {a}",
            "{a} goes {beside} {b}",
            "I want {a} {beside} {b}",
            "{a} belongs {beside} {b}",
        ),
        WORDS,
    ),
}
HELD_OUT = {
    "stack": Grammar(
        (
            "can you {put} {a} on {b}",
            "build a tower with {a} on {b}",
            "let {a} sit on top of {b}",
            "{b} is the base, {put} {a} on it",
        ),
        WORDS,
    ),
    "lift": Grammar(
        ("{take} {a} and {lift} it", "can you take {a} and hold it", "{a} goes into the air"),
        WORDS,
    ),
    "edge": Grammar(
        ("can you {push} {a} to the {side} {edge}", "{put} {a} at the {side} {edge}"), WORDS
    ),
    "beside": Grammar(("can you {put} {a} {beside} {b}", "let {a} sit {beside} {b}"), WORDS),
}


def say(grammars: dict[str, Grammar]):
    """The form of `Task.draw_instruction`."""

    def draw(rng: np.random.Generator, scene: Scene) -> str:
        words = scene.words
        values = {"a": words["moved"], "b": words["base"], "side": words.get("edge", "")}
        return grammars[words["act"]].draw(rng, **values)

    return draw
