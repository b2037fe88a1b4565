"""`Settings`: a JSON object of a checkpoint, whose values are asked for by name and kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_inference.checkpoints.safetensors_io import read_json
from vla_inference.errors import CheckpointError

MOST = 1_000_000  # of what is counted: a larger number is a mistake, not a model
LAYERS = 1_000


@dataclass(frozen=True)
class Settings:
    """Each method raises CheckpointError, which names the file and the setting, where a value is
    missing or of another kind.

    where: the file, and the part of it. `usual` stands in for a value that is missing or null;
    None: there must be one.
    """

    where: str
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Settings:
        return cls(str(path), read_json(path))

    def get(self, name: str) -> Any:
        if name not in self.values:
            raise CheckpointError(f"{self.where} lacks {name}", "complete it")
        return self.values[name]

    def count(self, name: str, usual: int | None = None, least: int = 1, most: int = MOST) -> int:
        """How many there are of something."""
        value = self._value(name, usual)
        if type(value) is not int or not least <= value <= most:
            raise self._wrong(name, value, f"give a count of {least} to {most}")
        return value

    def counts(self, name: str, size: int | None = None) -> tuple[int, ...]:
        """A list of `size` counts; None: of at least one."""
        value = self.get(name)
        good = isinstance(value, list) and all(type(n) is int and 0 < n <= MOST for n in value)
        if not good or not value or size not in (None, len(value)):
            raise self._wrong(name, value, f"give a list of {size or 'one or more'} counts")
        return tuple(value)

    def number(
        self, name: str, usual: float | None = None, low: float = 0.0, high: float = math.inf
    ) -> float:
        """A finite number from `low` to `high`."""
        value = self._value(name, usual)
        if not _is_number(value, low, high):
            raise self._wrong(name, value, f"give a number of {low:g} to {high:g}")
        return float(value)

    def numbers(
        self, name: str, size: int, low: float = 0.0, high: float = math.inf
    ) -> tuple[float, ...]:
        """A list of `size` of them."""
        value = self.get(name)
        good = isinstance(value, list) and all(_is_number(n, low, high) for n in value)
        if not good or len(value) != size:
            raise self._wrong(name, value, f"give a list of {size} numbers, {low:g} to {high:g}")
        return tuple(map(float, value))

    def flag(self, name: str, usual: bool | None = None) -> bool:
        value = self._value(name, usual)
        if type(value) is not bool:
            raise self._wrong(name, value, "give true or false")
        return value

    def text(self, name: str, usual: str | None = None) -> str:
        value = self._value(name, usual)
        if not isinstance(value, str):
            raise self._wrong(name, value, "give text")
        return value

    def texts(self, name: str, usual: list[str]) -> list[str]:
        value = self._value(name, usual)
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self._wrong(name, value, "give a list of texts")
        return value

    def part(self, name: str, usual: Mapping[str, Any] | None = None) -> Settings:
        value = self._value(name, usual)
        if not isinstance(value, Mapping):
            raise self._wrong(name, value, "give an object")
        return Settings(f"{self.where}: {name}", value)

    def _value(self, name: str, usual: Any) -> Any:
        if usual is None:
            return self.get(name)
        value = self.values.get(name)
        return usual if value is None else value

    def _wrong(self, name: str, value: Any, remedy: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {name} is {value!r:.40}", remedy)


def _is_number(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high and abs(value) < math.inf
