"""Mappings of devices, as YAML files: what keys, buttons, axes and joints mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from vla_inference.errors import VlaError
from vla_inference.system.prefixes import share_folders
from vla_inference.teleop.wish import ACTS, AXES, HANDING

HOLD = "hold"  # a key that is the dead man's switch of another device
MOST = 64  # axes, and buttons, of a device
Read = TypeVar("Read")


@dataclass(frozen=True)
class KeyMapping:
    """What the keys of a keyboard mean.

    motions: axis and sign by key. acts: of ACTS by key. holds: keys that are a switch.
    """

    motions: Mapping[str, tuple[int, float]]
    acts: Mapping[str, str]
    holds: frozenset[str] = frozenset()

    def beside(self) -> KeyMapping:
        """Of keys that say who commands, and are a switch, while another device moves."""
        handing = {key: act for key, act in self.acts.items() if act in HANDING}
        return KeyMapping({}, handing, self.holds)


@dataclass(frozen=True)
class JoyAxis:
    """One axis of a joystick, or two buttons that serve as one.

    axis: its index; or plus and minus, two buttons. sign: 1 or -1.
    """

    axis: int = -1
    plus: int = -1
    minus: int = -1
    sign: float = 1.0


@dataclass(frozen=True)
class JoyMapping:
    """Of a sensor_msgs/Joy.

    button: the dead man's switch; None: any deflection of more than `motion` is.
    deadzone: deflections up to this count as none; the rest reaches 1 all the same.
    """

    button: int | None
    motion: float = 0.0
    deadzone: float = 0.1
    axes: Mapping[int, JoyAxis] = field(default_factory=dict)
    acts: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LeaderJoint:
    """A joint of the leader; the follower's position is scale * position + offset [rad, m]."""

    name: str
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class LeaderMapping:
    """Which joint of a leader arm moves which joint of the follower.

    joints: by the follower's. gripper: the leader's joint that is one, scaled to 1 open, 0
    closed. pedal: of topic joy, the switch and what else it has."""

    joints: Mapping[str, LeaderJoint]
    gripper: LeaderJoint | None = None
    pedal: JoyMapping | None = None


def mapping_folder() -> Path | None:
    """Where the shipped mappings are installed."""
    return next(iter(share_folders("vla_bringup", "config", "teleop")), None)


def load_keys(name: str = "") -> KeyMapping:
    return _load(name or "keyboard", _keys)


def load_joy(name: str) -> JoyMapping:
    return _load(name, _joy)


def load_leader(name: str) -> LeaderMapping:
    if not name:
        raise VlaError("a leader arm needs a mapping", "name its joints in a file: mapping")
    return _load(name, _leader)


def _load(name: str, read: Callable[[Any], Read]) -> Read:
    """What `read` makes of a file, or of the shipped mapping of that name.

    Raises VlaError where there is none, or it says what no mapping does.
    """
    own = mapping_folder()
    path = Path(name).expanduser()
    if not path.is_file() and own is not None:
        path = own / f"{name}.yaml"
    try:
        return read(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError:
        known = ", ".join(sorted(p.stem for p in own.glob("*.yaml"))) if own else "none"
        raise VlaError(f"there is no mapping {name}", f"give a file, or one of: {known}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise VlaError(f"mapping {path} cannot be used ({reason})", "correct the file") from None


def _keys(given: Any) -> KeyMapping:
    keys = _table(_only(given, {"keys"}), "keys")
    motions, acts, holds = {}, {}, set()
    for key, meaning in keys.items():
        if not isinstance(key, str) or not isinstance(meaning, str):
            raise ValueError(f"keys: {key!r} is no text; quote it")
        if meaning[:1] in ("+", "-") and meaning[1:] in AXES:
            motions[key] = AXES.index(meaning[1:]), float(meaning[0] + "1")
        elif meaning in ACTS:
            acts[key] = meaning
        elif meaning == HOLD:
            holds.add(key)
        else:
            signed = [f"{sign}{axis}" for axis in AXES for sign in "+-"]
            known = ", ".join([*signed, *ACTS, HOLD])
            raise ValueError(f"key {key!r} is {meaning!r}, which is none of {known}")
    return KeyMapping(motions, acts, frozenset(holds))


def _joy(given: Any) -> JoyMapping:
    _only(given, {"deadman", "deadzone", "axes", "buttons"})
    deadman = _only(given.get("deadman"), {"button", "motion"}, "deadman")
    if len(deadman) != 1:
        raise ValueError("deadman: one of button and motion")
    axes = {}
    for name, about in _table(given, "axes").items():
        if name not in AXES:
            raise ValueError(f"axis {name!r} is none of {', '.join(AXES)}")
        axes[AXES.index(name)] = _joy_axis(about, name)
    acts = {}
    for act, button in _table(given, "buttons").items():
        if act not in ACTS:
            raise ValueError(f"button {act!r} is none of {', '.join(ACTS)}")
        acts[_index(button, act)] = act
    return JoyMapping(
        _index(deadman["button"], "deadman") if "button" in deadman else None,
        _number(deadman.get("motion", 0.0), "motion", 0, 0.9),
        _number(given.get("deadzone", 0.1), "deadzone", 0, 0.9),
        axes,
        acts,
    )


def _joy_axis(given: Any, name: str) -> JoyAxis:
    about = _only(given, {"axis", "plus", "minus", "invert"}, name)
    sign = -1.0 if about.get("invert", False) is True else 1.0
    if set(about) - {"invert"} == {"axis"}:
        return JoyAxis(axis=_index(about["axis"], name), sign=sign)
    if set(about) - {"invert"} == {"plus", "minus"}:
        plus, minus = (_index(about[way], name) for way in ("plus", "minus"))
        return JoyAxis(plus=plus, minus=minus, sign=sign)
    raise ValueError(f"{name}: give axis, or the buttons plus and minus")


def _leader(given: Any) -> LeaderMapping:
    _only(given, {"joints", "gripper", "pedal"})
    joints = {}
    for name, about in _table(given, "joints").items():
        about = {"joint": about} if isinstance(about, str) else about
        _only(about, {"joint", "scale", "offset"}, name)
        scale = _number(about.get("scale", 1.0), "scale", -100, 100)
        offset = _number(about.get("offset", 0.0), "offset", -100, 100)
        joints[_text(name)] = LeaderJoint(_text(about.get("joint")), scale, offset)
    names = [joint.name for joint in joints.values()]
    if not joints or len(set(names)) < len(names):
        raise ValueError("joints: name each joint of the follower, with one of the leader's")
    gripper = _gripper(given["gripper"]) if "gripper" in given else None
    pedal = _joy(given["pedal"]) if "pedal" in given else None
    return LeaderMapping(joints, gripper, pedal)


def _gripper(given: Any) -> LeaderJoint:
    about = _only(given, {"joint", "open", "closed"}, "gripper")
    opened, closed = (_number(about.get(w), w, -100, 100) for w in ("open", "closed"))
    if opened == closed:
        raise ValueError("gripper: open and closed are the same")
    scale = 1 / (opened - closed)
    return LeaderJoint(_text(about.get("joint")), scale, -closed * scale)


def _only(given: Any, known: set[str], what: str = "it") -> dict[str, Any]:
    if not isinstance(given, dict) or set(given) - known:
        raise ValueError(f"{what} has {', '.join(sorted(known))}")
    return given


def _table(given: dict[str, Any], name: str) -> dict[Any, Any]:
    found = given.get(name) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{name}: NAME: VALUE on each line")
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is no joint's name")
    return value


def _index(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value < MOST:
        raise ValueError(f"{name}: {value!r} is no index from 0 to {MOST - 1}")
    return value


def _number(value: Any, name: str, low: float, high: float) -> float:
    number = isinstance(value, (int, float)) and type(value) is not bool
    if not number or not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{name}: a number from {low:g} to {high:g}")
    return float(value)
