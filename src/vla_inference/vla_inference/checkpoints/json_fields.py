"""Checks a JSON object against a dataclass; errors name the field."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from vla_inference.errors import CheckpointError

T = TypeVar("T")

MAY_BE_ZERO = ("reg_tokens", "proprio_dim", "pad_to_multiple_of", "bos_token_id", "stop_token_id")


def pick(cls: type[T], raw: Mapping[str, Any], where: str, strict: bool = False) -> T:
    """Build dataclass `cls` from the fields it knows; with `strict`, refuse any other."""
    if not isinstance(raw, Mapping):
        raise CheckpointError(f"{where} is {raw!r:.60}", "it must be an object")
    fields = {f.name: f.type for f in dataclasses.fields(cast(Any, cls))}
    unknown = set(raw) - set(fields)
    if strict and unknown:
        raise CheckpointError(
            f"{where} names unknown {', '.join(sorted(unknown))}",
            f"known fields: {', '.join(sorted(fields))}",
        )
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items() if k in fields}
    for key, value in values.items():
        check(value, str(fields[key]), f"{where}.{key}", least=int(key not in MAY_BE_ZERO))
    try:
        return cls(**values)
    except TypeError as error:
        raise CheckpointError(f"{where}: {error}", "complete the file") from error


def check(value: Any, kind: str, where: str, least: int = 0) -> None:
    """Refuse a value that is not of the annotated kind, or a whole number below `least`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    whole = number and isinstance(value, int)
    good = {
        "int": whole and value >= least,
        "float": number and value > 0,
        "bool": isinstance(value, bool),
        "tuple[float, ...]": isinstance(value, tuple)
        and len(value) == 3
        and all(isinstance(v, (int, float)) for v in value),
    }.get(kind, isinstance(value, str))
    if not good:
        words = {"int": f"a whole number from {least} on", "float": "a number above 0"}
        words |= {"bool": "true or false", "tuple[float, ...]": "three numbers"}
        raise CheckpointError(
            f"{where} is {value!r:.60}", f"it must be {words.get(kind, 'a string')}"
        )


def one_of(value: Any, known: tuple[str, ...], where: str) -> None:
    if value not in known:
        raise CheckpointError(f"{where} is {value!r}", f"known: {', '.join(known)}")
