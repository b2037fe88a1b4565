"""Converts `<param>` values to the types that ROS uses, and writes parameter files."""

from __future__ import annotations

import math
from pathlib import Path

import yaml

Scalar = bool | int | float | str
Value = Scalar | list[Scalar]  # a list of one kind
KINDS = ("bool", "int", "float", "str")
TYPES = (*KINDS, *(f"list_of_{k}" for k in KINDS))


def scalar(value: object, kind: str) -> Scalar:
    """`value` parsed as YAML of type `kind`; ValueError if it is of another type."""
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{value} doesn't fit into 64 bits")
        return value
    if kind == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind == "str" and isinstance(value, str):
        return value
    raise ValueError(f"{value!r} is not of type {kind}")


def parameter_value(text: str, kind: str | None = None) -> Value:
    """The value of a parameter given as text. Without a type YAML's rules decide, as in launch."""
    if kind is not None and kind not in TYPES:
        raise ValueError(f"type '{kind}' is unknown (known: {', '.join(TYPES)})")
    if kind == "str":
        return text
    if kind in ("int", "float"):  # Python's own reading, as in launch: no 0x10, no .inf
        try:
            return scalar(int(text) if kind == "int" else float(text), kind)
        except ValueError:
            raise ValueError(f"{text!r} is not of type {kind}") from None
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        if kind is None:
            return text
        raise ValueError(f"{text!r} is not of type {kind}") from None
    if kind is None:
        if isinstance(value, dict):
            raise ValueError(f"{text!r} is a mapping; give its entries as parameters a.b")
        if isinstance(value, list):
            return typed_list(value, text)
        if isinstance(value, (bool, str)):
            return value
        if isinstance(value, (int, float)):
            return scalar(value, type(value).__name__)
        return text  # nothing, dates: text to ROS
    if kind.startswith("list_of_"):
        if not isinstance(value, list):
            raise ValueError(f"{text!r} is not a list")
        if not value:
            raise ValueError("an empty list has no type in ROS; leave the parameter out")
        inner = kind.removeprefix("list_of_")
        return [str(v) if inner == "str" else scalar(v, inner) for v in value]
    try:
        return scalar(value, kind)
    except ValueError:
        raise ValueError(f"{text!r} is not of type {kind}") from None


def typed_list(value: list, text: str) -> Value:
    if not value:
        raise ValueError("an empty list has no type in ROS; leave the parameter out")
    for kind in KINDS:
        try:
            return [scalar(v, kind) for v in value]
        except ValueError:
            continue
    raise ValueError(f"{text!r} mixes types; a ROS list has one")


def quoted(value: Value) -> str:
    """`value` as YAML that ROS's own reader takes for the same type, strings always quoted."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(map(quoted, value)) + "]"
    if isinstance(value, float):
        if math.isnan(value) or math.isinf(value):
            return ".nan" if math.isnan(value) else (".inf" if value > 0 else "-.inf")
        text = repr(value)  # 1e-05 would be a string to YAML 1.1
        return text if "." in text else text.replace("e", ".0e")
    if isinstance(value, str):
        return yaml.dump(value, default_style='"', width=math.inf, allow_unicode=True).strip()
    return str(value)


def write_parameters(values: dict[str, Value], path: Path) -> None:
    """Writes a parameter file that applies to any node that reads it."""
    lines = [f"    {quoted(name)}: {quoted(value)}" for name, value in values.items()]
    path.write_text("/**:\n  ros__parameters:\n" + "\n".join(lines) + "\n", encoding="utf-8")
