"""Messages by name, filled from YAML and shown as YAML."""

from __future__ import annotations

import array
import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import yaml
from rosidl_parser.definition import (
    AbstractNestedType,
    Array,
    BasicType,
    BoundedSequence,
    NamespacedType,
)

from vla_inference.errors import VlaError
from vla_inference.system.workspace import or_build

MOST_SHOWN = 128  # elements of an array, characters of a text: as ros2 topic echo has it
MOST_NAMES = 12  # in an error
FLOATS = ("float", "double", "long double")
INTEGERS = {
    **{f"int{n}": range(-(2 ** (n - 1)), 2 ** (n - 1)) for n in (8, 16, 32, 64)},
    **{f"uint{n}": range(2**n) for n in (8, 16, 32, 64)},
    "char": range(256),
}
Stamp = Callable[[], Any]  # builtin_interfaces/Time of now


def interface(name: str, kind: str) -> Any:
    """The Python class of a type: std_msgs/msg/String, or std_msgs/String.

    kind: "msg", "srv" or "action". Raises VlaError where there is no such type.
    """
    package, _, rest = name.partition("/")
    last = rest.removeprefix(f"{kind}/")
    if not package or not last or "/" in last:
        raise VlaError(f"{name!r} is no {kind} type", f"write it as package/{kind}/Name")
    try:
        module = importlib.import_module(f"{package}.{kind}")
    except ImportError as error:
        raise VlaError(
            f"there is no package {package!r} with {kind} types ({error})",
            "install it, or source the workspace that has it",
        ) from None
    if not hasattr(module, last):
        known = [n for n in dir(module) if n[0].isupper() and "_" not in n]
        raise VlaError(f"{package} has no {kind} type {last!r}", or_build(nearest(last, known)))
    return getattr(module, last)


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy for a wrong name."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    if len(known) > MOST_NAMES:
        known = [*difflib.get_close_matches(name, known, n=MOST_NAMES, cutoff=0.1), "..."]
    return f"there are {', '.join(known)}" if known else "there are none"


def read_yaml(text: str, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise VlaError(
            f"the {what} is not YAML ({' '.join(str(error).split())})",
            'write it as "{field: value}"',
        ) from None


def fill(message: Any, values: Any, now: Stamp, where: str = "") -> None:
    """Sets a message's fields from a mapping.

    A stamp may be "now", a header "auto": the current time. Raises VlaError naming the field.
    """
    kind = type_name(message)
    if not isinstance(values, Mapping):
        raise VlaError(
            f"{where or kind} is {values!r}, not a mapping", 'write it as "{field: value}"'
        )
    fields = fields_of(message)
    for name, value in values.items():
        path = f"{where}.{name}" if where else str(name)
        if name not in fields:
            raise VlaError(f"{kind} has no field {name!r}", nearest(str(name), fields))
        try:
            value = _convert(fields[name], getattr(message, name), value, now, path)
            setattr(message, name, value)
        except (TypeError, ValueError):
            wanted = message.get_fields_and_field_types()[name]
            raise VlaError(f"{path} is {value!r}, not {wanted}", "correct the value") from None


def filled(make: Callable[[], Any], values: Any, now: Stamp) -> Any:
    """A new message, request or goal with these fields: see `fill`."""
    message = make()
    fill(message, values, now)
    return message


def _convert(kind: Any, present: Any, value: Any, now: Stamp, path: str) -> Any:
    """value, as a field of this kind takes it. present: what the field holds."""
    if isinstance(kind, AbstractNestedType):
        if not isinstance(value, list) or not _fits(kind, len(value)):
            raise TypeError
        inner = kind.value_type
        if not isinstance(inner, NamespacedType):
            return [_plain_value(inner, v) for v in value]
        make = interface("/".join([*inner.namespaces[:1], "msg", inner.name]), "msg")
        return [_convert(inner, make(), v, now, f"{path}[{i}]") for i, v in enumerate(value)]
    if not isinstance(kind, NamespacedType):
        return _plain_value(kind, value)
    if value == "now" and kind.name == "Time":
        return now()
    if value == "auto" and kind.name == "Header":
        present.stamp = now()
        return present
    fill(present, value, now, path)
    return present


def _fits(kind: AbstractNestedType, length: int) -> bool:
    if isinstance(kind, Array):
        return length == kind.size
    return length <= (kind.maximum_size if isinstance(kind, BoundedSequence) else length)


def _plain_value(kind: Any, value: Any) -> Any:
    """A number or a text, checked: messages may not do so. YAML's 1 is also a float."""
    name = kind.typename if isinstance(kind, BasicType) else "string"
    if name in FLOATS and type(value) in (int, float):
        return float(value)
    if name == "octet" and type(value) is int:
        return bytes([value])
    if name in INTEGERS and type(value) is int and value in INTEGERS[name]:
        return value
    if {"boolean": bool, "string": str}.get(name) is type(value):
        return value
    raise TypeError


def fields_of(message: Any) -> dict[str, Any]:
    """Field -> its type as rosidl describes it."""
    return dict(zip(message.get_fields_and_field_types(), message.SLOT_TYPES, strict=True))


def type_name(message: Any) -> str:
    """sensor_msgs/msg/Image"""
    package, kind = type(message).__module__.split(".")[:2]
    return f"{package}/{kind}/{type(message).__name__}"


def type_name_of(kind: Any) -> str:
    """std_srvs/srv/SetBool, of a service's class."""
    package, middle = kind.__module__.split(".")[:2]
    return f"{package}/{middle}/{kind.__name__}"


def plain(value: Any, most: int | None = MOST_SHOWN, arrays: bool = True) -> Any:
    """A message as dicts, lists, numbers and texts; more than `most` elements are cut off.

    arrays: False shows an array's type and length alone.
    """
    if hasattr(value, "get_fields_and_field_types"):
        kinds = value.get_fields_and_field_types()
        shown = {}
        for name, kind in kinds.items():
            field = getattr(value, name)
            many = isinstance(field, (list, tuple, array.array, np.ndarray, bytes))
            if many and not arrays:
                shown[name] = f"<{kind}, {len(field)} elements>"
            else:
                shown[name] = plain(field, most, arrays)
        return shown
    if isinstance(value, str):
        return value if most is None or len(value) <= most else value[:most] + "..."
    if isinstance(value, bytes):
        return value[0] if len(value) == 1 else plain(list(value), most, arrays)
    if isinstance(value, (list, tuple, array.array, np.ndarray)):
        rest = most is not None and len(value) > most
        shown_items = [plain(v, most, arrays) for v in value[:most]]
        return [*shown_items, "..."] if rest else shown_items
    return value.item() if isinstance(value, np.generic) else value


def field(message: Any, path: str) -> Any:
    """An element of a message: pose.position.x, or names[0]."""
    found = message
    for part in path.replace("[", ".[").strip(".").split("."):
        try:
            index = part.startswith("[")
            found = found[int(part.strip("[]"))] if index else getattr(found, part)
        except (AttributeError, ValueError, IndexError, TypeError):
            known = found.get_fields_and_field_types() if hasattr(found, "SLOT_TYPES") else ()
            raise VlaError(f"there is no {part!r} in {path!r}", nearest(part, known)) from None
    return found


def show(value: Any) -> str:
    """YAML, as `plain` made it; short lists in one line."""
    if not isinstance(value, (dict, list)):
        return str(value)
    lines = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf")
    )
    return lines.rstrip()


class _Dumper(yaml.SafeDumper):
    """Lists of numbers and texts in one line."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
        flat = not any(isinstance(v, (dict, list)) for v in sequence)
        return super().represent_sequence(tag, sequence, flow_style=flat)
