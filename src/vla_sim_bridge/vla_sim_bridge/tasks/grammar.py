"""Sentences from templates: `"{put} the {a} {block} on the {b} one"`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from vla_sim_bridge.tasks.base import Scene

SLOT = re.compile(r"{(\w+)}")


@dataclass(frozen=True)
class Grammar:
    """templates: all equally likely. words: slot -> synonyms, all equally likely."""

    templates: tuple[str, ...]
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def draw(self, rng: np.random.Generator, **values: str) -> str:
        """A random sentence; `values` fill the slots that the scene determines."""
        template = self.templates[rng.integers(len(self.templates))]

        def fill(slot: re.Match) -> str:
            name = slot[1]
            if name in values:
                return values[name]
            return self.words[name][rng.integers(len(self.words[name]))]

        return SLOT.sub(fill, template)

    def for_scene(self) -> Callable[[np.random.Generator, Scene], str]:
        """The form of `Task.draw_instruction`, for scenes that determine nothing."""
        return lambda rng, scene: self.draw(rng)

    def sentences(self, **values: str) -> Iterator[str]:
        """Every sentence that can be drawn with these values."""
        for template in self.templates:
            parts = SLOT.split(template)  # text, slot, text, slot ... text
            slots = [(values[n],) if n in values else self.words[n] for n in parts[1::2]]
            for chosen in product(*slots):
                filled = [*parts]
                filled[1::2] = chosen
                yield "".join(filled)
