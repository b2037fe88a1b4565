"""What a model that reasons before it acts has written: embodied chain of thought (ECoT).

The form is that of the released checkpoints (arXiv 2407.08693): fields, each behind its tag in
capitals, and the action after the last one. The text is a model's: any part of it may be missing,
out of order or cut off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

ACTION = "ACTION:"


@dataclass(frozen=True)
class Reasoning:
    """The fields of a reasoning; empty where the model wrote none.

    whole: the model has come to its action. tokens: how many it wrote. kept: it was made for an
    earlier image, and the action alone is new.
    """

    task: str = ""
    plan: str = ""
    visible_objects: str = ""
    subtask_reasoning: str = ""
    subtask: str = ""
    move_reasoning: str = ""
    move: str = ""
    gripper_position: str = ""
    whole: bool = False
    tokens: int = 0
    kept: bool = False

    @classmethod
    def parse(cls, text: str, tokens: int = 0) -> Reasoning:
        """Of a text that goes on from the prompt's TASK:. Of a repeated field the first counts."""
        pieces = TAG.split("TASK:" + text)[1:]
        found: dict[str, str] = {}
        for tag, value in zip(pieces[::2], pieces[1::2], strict=True):
            found.setdefault(tag, " ".join(value.split()))
            if tag == "ACTION":
                break
        whole = found.pop("ACTION", None) is not None
        values: dict[str, Any] = {TAGS[tag]: value for tag, value in found.items()}
        return replace(cls(whole=whole, tokens=tokens), **values)

    def said(self) -> Iterator[tuple[str, str]]:
        """Tag and text of each field that is there, in the order of the form."""
        for tag, name in TAGS.items():
            if value := getattr(self, name):
                yield tag, value

    def text(self) -> str:
        """What a model writes after the prompt's TASK:, up to the action."""
        fields = " ".join(f"{tag}: {value}" for tag, value in self.said())
        return f"{fields} {ACTION}".removeprefix("TASK:")

    @property
    def boxes(self) -> dict[str, tuple[int, ...]]:
        """Objects by name: left, top, right, bottom, of an image of 256 x 256 pixels."""
        found = BOX.findall(self.visible_objects)
        return {name.strip(" ,"): tuple(map(int, numbers)) for name, *numbers in found}

    @property
    def gripper(self) -> list[tuple[int, int]]:
        """The gripper's column and row, now and as the model expects it next, of 256."""
        numbers = [int(n) for n in re.findall(r"\d{1,4}", self.gripper_position)]
        return list(zip(numbers[::2], numbers[1::2], strict=False))


TAGS = {f.name.upper().replace("_", " "): f.name for f in fields(Reasoning) if f.type == "str"}
_NAMES = "|".join(sorted([*TAGS, "ACTION"], key=len, reverse=True))
TAG = re.compile(rf"(?<![A-Z])({_NAMES}):")
BOX = re.compile(r"([^\[\]]+?)\s*\[(\d{1,4}),\s*(\d{1,4}),\s*(\d{1,4}),\s*(\d{1,4})\]")
