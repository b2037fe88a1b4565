"""Checks a JSON object against a dataclass; errors name the field."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from vla_inference.errors import CheckpointError

T = TypeVar("T")

MAY_BE_ZERO = (
    "reg_tokens",
    "proprio_dim",
    "history",
    "pad_to_multiple_of",
    "bos_token_id",
    "stop_token_id",
    "layers",
)
WORDS = {float: "a number above 0", bool: "true or false", str: "a string"}


def pick(cls: type[T], raw: Any, where: str, strict: bool = False) -> T:
    """Build dataclass `cls` from the fields it knows; with `strict`, refuse any other."""
    if not isinstance(raw, Mapping):
        raise CheckpointError(f"{where} is {raw!r:.60}", "it must be an object")
    fields = [f.name for f in dataclasses.fields(cast(Any, cls))]
    unknown = set(raw) - set(fields)
    if strict and unknown:
        raise CheckpointError(
            f"{where} names unknown {', '.join(sorted(unknown))}",
            f"known fields: {', '.join(sorted(fields))}",
        )
    try:
        return cls(**checked(cls, raw, fields, f"{where}."))
    except TypeError as error:
        raise CheckpointError(f"{where}: {error}", "complete the file") from error


def checked(cls: type, raw: Mapping[str, Any], names: list[str], where: str) -> dict[str, Any]:
    """What `raw` says of these fields of `cls`, each of the annotated type."""
    kinds = get_type_hints(cls)
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items() if k in names}
    for name, value in values.items():
        _check(value, kinds[name], where + name, least=int(name not in MAY_BE_ZERO))
    return values


def _check(value: Any, kind: Any, where: str, least: int) -> None:
    """Refuse a value that is not of the annotated kind, or a whole number below `least`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    options = get_args(kind)
    if get_origin(kind) is Literal:
        one_of(value, options, where)
        return
    if type(None) in options:  # int | None
        if value is None:
            return
        kind = options[0]
    if kind is int:
        good, words = number and isinstance(value, int) and value >= least, f"from {least} on"
        words = f"a whole number {words}"
    elif get_origin(kind) is tuple:
        good = isinstance(value, tuple) and len(value) == 3
        good = good and all(isinstance(v, (int, float)) for v in value)
        words = "three numbers"
    else:
        good = (number and value > 0) if kind is float else isinstance(value, kind)
        words = WORDS.get(kind, "an object")
    if not good:
        raise CheckpointError(f"{where} is {value!r:.60}", f"it must be {words}")


def one_of(value: Any, known: tuple[str, ...], where: str) -> None:
    if value not in known:
        raise CheckpointError(f"{where} is {value!r}", f"known: {', '.join(known)}")
