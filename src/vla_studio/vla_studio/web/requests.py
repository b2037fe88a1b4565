"""What a page may ask for, and by whom: the allow-list, with its arguments checked."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vla_inference.errors import VlaError

TEXT = 1000  # characters


@dataclass(frozen=True)
class Request:
    """What a page sent. number: what its answer refers to."""

    name: str
    number: int
    arguments: dict[str, Any]

    @classmethod
    def read(cls, text: str) -> Request:
        """Raises VlaError where it is none."""
        try:
            given = json.loads(text)
        except (ValueError, RecursionError):
            given = None
        if not isinstance(given, dict) or not isinstance(given.get("do"), str):
            raise VlaError("that is no request", 'send {"do": NAME, "id": NUMBER, ...}')
        number = given.get("id", 0)
        if type(number) is not int or abs(number) > 2**53:
            raise VlaError("the id is no number", "count the requests")
        rest = {k: v for k, v in given.items() if k not in ("do", "id")}
        return cls(given["do"], number, rest)

    def text(self, name: str, most: int = TEXT, default: str | None = None) -> str:
        value = self.arguments.get(name, default)
        if not isinstance(value, str) or len(value) > most or not _printable(value):
            raise VlaError(f"{name} is no text", f"give at most {most} characters on one line")
        return value

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        values = self.arguments.get(name, [])
        if not isinstance(values, list) or len(values) > most:
            raise VlaError(f"{name} is no list", f"give at most {most} texts")
        return tuple(Request("", 0, {name: value}).text(name) for value in values)

    def flag(self, name: str) -> bool:
        value = self.arguments.get(name)
        if type(value) is not bool:
            raise VlaError(f"{name} is not true or false", "give one of them")
        return value

    def real(self, name: str, low: float, high: float) -> float:
        value = self.arguments.get(name)
        if isinstance(value, (int, float)) and type(value) is not bool and low <= value <= high:
            return float(value)
        raise VlaError(f"{name} is no such number", f"give {low:g} to {high:g}")

    def reals(self, name: str, count: int, low: float, high: float) -> tuple[float, ...]:
        values = self.arguments.get(name)
        if not isinstance(values, list) or len(values) != count:
            raise VlaError(f"{name} is no list", f"give {count} numbers")
        return tuple(Request("", 0, {name: value}).real(name, low, high) for value in values)

    def whole(self, name: str, low: int, high: int, default: int | None = None) -> int:
        value = self.arguments.get(name, default)
        if type(value) is not int or not low <= value <= high:
            raise VlaError(f"{name} is no whole number", f"give {low} to {high}")
        return value


def _printable(text: str) -> bool:
    return all(character.isprintable() for character in text)


Fields = Callable[[Request], dict[str, Any]]


@dataclass(frozen=True)
class Service:
    """A request that one service call answers. fields: of the service's request."""

    fields: Fields
    seat: bool = True  # whether it needs the operator's seat
    told: str = ""  # what the event log says of it; empty: nothing


def _words(request: Request) -> list[str]:
    try:
        return shlex.split(request.text("arguments", 2000, ""))
    except ValueError as error:
        raise VlaError(f"the options cannot be read ({error})", "close the quotes") from None


SERVICES = {
    "instruct": Service(
        lambda r: {"instruction": r.text("instruction")}, told="instruction: {instruction}"
    ),
    "load_model": Service(lambda r: {"model": r.text("model")}, told="load model {model}"),
    "reset": Service(
        lambda r: {
            "task": r.text("task", 100, ""),
            "seed": r.whole("seed", -1, 2**31, -1),
            "instruction": r.text("instruction", default=""),
        },
        told="reset",
    ),
    "take_over": Service(lambda r: {"data": r.flag("human")}, told="take over by hand: {data}"),
    "pause": Service(lambda r: {"data": r.flag("paused")}, told="pause: {data}"),
    "step": Service(lambda r: {}, told="step"),
    "record": Service(lambda r: {"data": r.flag("on")}, told="record: {data}"),
    "jobs": Service(lambda r: {"limit": r.whole("limit", 1, 100, 20)}, seat=False),
    "job_log": Service(
        lambda r: {"job_id": r.text("job", 100), "lines": r.whole("lines", 1, 500, 100)},
        seat=False,
    ),
    "start_job": Service(
        lambda r: {"kind": r.text("kind", 40), "arguments": _words(r)}, told="start {kind}"
    ),
    "cancel_job": Service(lambda r: {"job_id": r.text("job", 100)}, told="cancel {job_id}"),
}
