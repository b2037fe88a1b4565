"""Types that every package shares: observations, actions, episodes.

Conventions outside the simulator: SI units, rotations as rotation vectors unless the `ActionSpec`
says otherwise, gripper 1 = open and 0 = closed, images uint8 RGB height x width x 3, upright.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from vla_inference.errors import ObservationError, VlaError

if TYPE_CHECKING:
    from vla_inference.policies.reasoning import Reasoning


@dataclass(frozen=True)
class DimSpec:
    """One dimension of an action: name, unit ("m", "rad", "1") and polarity, if any."""

    name: str
    unit: str
    polarity: str = ""


Slice = slice  # `ActionSpec.slice` hides the name in its class

# Kind of a part -> the units its numbers have once they are in SI.
KINDS: dict[str, tuple[str, ...]] = {
    "eef_delta": ("m", "rad"),  # of x y z, and of three angles
    "eef_pose": ("m", "rad"),
    "joint_position": ("rad", "m"),  # m: prismatic
    "joint_delta": ("rad", "m"),
    "joint_velocity": ("rad/s", "m/s"),
    "base_twist": ("m/s", "rad/s"),
    "gripper": ("1",),  # 1 open, 0 closed
    "unknown": (),  # what nothing states; never sent to a robot
}
EEF = ("eef_delta", "eef_pose")
ANGLES = {"rotvec": ("rx", "ry", "rz"), "rpy": ("roll", "pitch", "yaw")}
UNSTATED = ("1", "unknown")  # of a model's own -1 to 1; of a dataset that does not say
OPEN = "1 open, 0 closed"


@dataclass(frozen=True)
class ActionPart:
    """The numbers of an action for one part of a robot: kind, units, frame.

    name: "arm", "left_arm", "gripper", "base" ...
    kind: one of KINDS. A delta is relative to where the part is when the step begins.
    dims: the numbers in their order. Their units are those of the kind, a multiple of them
        ("0.05 m") or one of UNSTATED.
    frame: the axes of an end effector's or a base's numbers, such as "base" or "tool"; else "".
    rotation: an end effector's angles, "rotvec" (rotation vector, a delta's applied from the left
        in `frame`) or "rpy" (fixed-axis roll, pitch, yaw, as the Open X-Embodiment sets have it);
        else "".
    """

    name: str
    kind: str
    dims: tuple[DimSpec, ...]
    frame: str = ""
    rotation: str = ""

    def __post_init__(self) -> None:
        self._check(bool(self.name), "it has no name", "name it, such as 'arm'")
        self._check(self.kind in KINDS, f"unknown kind {self.kind!r}", f"use {_either(KINDS)}")
        names = [d.name for d in self.dims]
        self._check(
            0 < len(names) == len(set(names)),
            f"its dimensions are {', '.join(names) or 'none'}",
            "name each number once",
        )
        self._check_frame()
        for i, dim in enumerate(self.dims):
            units = self.si_units(i)
            self._check(
                not units or dim.unit in UNSTATED or _is_multiple(dim.unit, units),
                f"dimension {dim.name!r} is in unit {dim.unit!r}",
                f"{self.kind} is in {_either(units)}",
            )

    def _check_frame(self) -> None:
        wanted = ("x", "y", "z", *ANGLES.get(self.rotation, ()))
        if self.kind in EEF:
            self._check(
                self.rotation in ANGLES,
                f"unknown rotation convention {self.rotation!r}",
                f"use {_either(ANGLES)}",
            )
            self._check(
                tuple(d.name for d in self.dims) == wanted,
                f"its dimensions are {', '.join(d.name for d in self.dims)}",
                f"an end effector's are {', '.join(wanted)}",
            )
        elif self.kind != "unknown":
            self._check(
                not self.rotation, f"it has rotation {self.rotation!r}", "leave it empty here"
            )
        if self.kind in (*EEF, "base_twist"):
            self._check(bool(self.frame), "its frame_id is empty", "name it, such as 'base'")
        elif self.kind != "unknown":
            self._check(not self.frame, f"it has frame {self.frame!r}", "leave it empty here")

    def _check(self, condition: bool, problem: str, remedy: str) -> None:
        if not condition:
            raise VlaError(f"action part {self.name!r}: {problem}", remedy)

    def __len__(self) -> int:
        return len(self.dims)

    def __str__(self) -> str:
        angles = f", angles as {self.rotation}" if self.rotation else ""
        frame = f", in the {self.frame} frame" if self.frame else ""
        return f"{self.name}: {self.kind.replace('_', ' ')}{angles}{frame}"

    def si_units(self, index: int) -> tuple[str, ...]:
        """Units that a dimension may have in SI."""
        units = KINDS[self.kind]
        return (units[0 if index < 3 else 1],) if self.kind in EEF else units


@dataclass(frozen=True)
class ActionSpec:
    """What each number of an action means: those of the first part, then those of the next.

    dt: seconds one step is held for.
    """

    parts: tuple[ActionPart, ...]
    dt: float = 0.05

    def __post_init__(self) -> None:
        names = [p.name for p in self.parts]
        if not names or len(set(names)) < len(names):
            raise VlaError(
                f"an action has the parts {', '.join(names) or 'none'}", "name each part once"
            )

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def dims(self) -> tuple[DimSpec, ...]:
        return tuple(d for p in self.parts for d in p.dims)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the dimensions; with the part's ("left_arm.x") where two parts have the same."""
        plain = tuple(d.name for d in self.dims)
        if len(set(plain)) == len(plain):
            return plain
        return tuple(f"{p.name}.{d.name}" for p in self.parts for d in p.dims)

    @property
    def eef(self) -> ActionPart | None:
        """The end effector, where there is exactly one."""
        found = [p for p in self.parts if p.kind in EEF]
        return found[0] if len(found) == 1 else None

    @property
    def frame(self) -> str:
        """The end effector's; empty where there is none or more than one."""
        return self.eef.frame if self.eef else ""

    @property
    def rotation(self) -> str:
        """The end effector's; empty where there is none or more than one."""
        return self.eef.rotation if self.eef else ""

    def part(self, name: str) -> ActionPart:
        for part in self.parts:
            if part.name == name:
                return part
        raise VlaError(
            f"an action has no part {name!r}",
            f"its parts: {', '.join(p.name for p in self.parts)}",
        )

    def slice(self, name: str) -> Slice:
        """Where a part's numbers stand in an action."""
        self.part(name)
        begin = 0
        for part in self.parts:
            if part.name == name:
                break
            begin += len(part)
        return slice(begin, begin + len(part))

    def split(self, actions: np.ndarray) -> dict[str, np.ndarray]:
        """Actions [..., D] -> by part [..., its own]; views."""
        return {p.name: actions[..., self.slice(p.name)] for p in self.parts}

    def join(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """Undoes `split`."""
        return np.concatenate([parts[p.name] for p in self.parts], axis=-1)

    def with_dims(self, dims: Iterable[DimSpec]) -> ActionSpec:
        """The same parts with other dimensions [D]."""
        given = iter(dims)
        parts = [replace(p, dims=tuple(islice(given, len(p)))) for p in self.parts]
        return replace(self, parts=tuple(parts))

    def with_units(self, units: Iterable[str]) -> ActionSpec:
        """The same dimensions in other units [D]."""
        return self.with_dims(
            replace(d, unit=unit) for d, unit in zip(self.dims, units, strict=True)
        )


def split_unit(unit: str) -> tuple[float, str]:
    """ "0.05 m" -> 0.05, "m"; "m" -> 1.0, "m"; what has no factor above 0 stays as it is."""
    number, space, name = unit.rpartition(" ")
    if not space:
        return 1.0, unit
    try:
        factor = float(number)
    except ValueError:
        return 1.0, unit
    return (factor, name) if 0 < factor < math.inf else (1.0, unit)


def _is_multiple(unit: str, units: Sequence[str]) -> bool:
    number, name = split_unit(unit)
    try:
        return name in units and 0 < float(number or 1) < math.inf
    except ValueError:
        return False


def eef_part(
    name: str = "arm", kind: str = "eef_delta", rotation: str = "rotvec", frame: str = "base"
) -> ActionPart:
    """An end effector: x y z (m), three angles (rad)."""
    names = (*"xyz", *ANGLES.get(rotation, ()))
    dims = tuple(DimSpec(n, "m" if n in "xyz" else "rad") for n in names)
    return ActionPart(name, kind, dims, frame, rotation)


def joint_part(
    name: str, joints: Sequence[str], kind: str = "joint_position", unit: str = ""
) -> ActionPart:
    """Named joints, rad or rad/s where no unit is given."""
    unit = unit or KINDS[kind][0]
    return ActionPart(name, kind, tuple(DimSpec(j, unit) for j in joints))


def gripper_part(name: str = "gripper") -> ActionPart:
    return ActionPart(name, "gripper", (DimSpec(name, "1", OPEN),))


def eef_delta_spec(rotation: str = "rotvec", frame: str = "base", dt: float = 0.05) -> ActionSpec:
    """The 7 numbers of an end-effector delta: x y z (m), three angles (rad), gripper (1 open)."""
    return ActionSpec((eef_part("arm", "eef_delta", rotation, frame), gripper_part()), dt)


def base_twist_spec(frame: str = "base_link", dt: float = 0.05) -> ActionSpec:
    """The 2 numbers of a base with driven wheels: forwards (m/s) and turning left (rad/s)."""
    dims = DimSpec("linear", "m/s"), DimSpec("angular", "rad/s")
    return ActionSpec((ActionPart("base", "base_twist", dims, frame),), dt)


def joint_spec(
    joints: Mapping[str, Sequence[str]],
    grippers: Sequence[str] = (),
    kind: str = "joint_position",
    dt: float = 0.05,
) -> ActionSpec:
    """Named joints of each arm ("arm", "left_arm" ...), each followed by its gripper.

    grippers: "gripper" of "arm", "left_gripper" of "left_arm" ..., of the arms that have one.
    """
    parts, left = [], list(grippers)
    for name, names in joints.items():
        parts.append(joint_part(name, names, kind))
        gripper = name.replace("arm", "gripper")
        if gripper in left:
            left.remove(gripper)
            parts.append(gripper_part(gripper))
    if left:
        raise VlaError(
            f"grippers {', '.join(left)} belong to none of {', '.join(joints)}",
            "name them 'gripper' of 'arm', 'left_gripper' of 'left_arm'",
        )
    return ActionSpec(tuple(parts), dt)


def _either(names: Iterable[str]) -> str:
    return " or ".join(map(repr, names))


@dataclass
class Observation:
    """The input of a policy at one time.

    images: camera name -> uint8 [H, W, 3] RGB; the first is the model's primary camera.
    state: float32 [S] proprioception, or None where there is none.
    stamp: seconds, by whichever clock the caller uses; 0.0 means "now".
    """

    images: Mapping[str, np.ndarray]
    instruction: str = ""
    state: np.ndarray | None = None
    stamp: float = 0.0

    def __repr__(self) -> str:
        seen = [f"{name} {_size(image)}" for name, image in self.images.items()]
        state = [] if self.state is None else [f"state of {len(self.state)}"]
        return f"<Observation {self.instruction!r}: {', '.join([*seen, *state]) or 'no image'}>"


@dataclass
class ActionChunk:
    """T consecutive actions, `spec.dt` seconds each.

    actions: float32 [T, D] in the units of `spec`; a tensor where a policy was asked for one.
    tokens: the action tokens it was decoded from [T, D], where the model speaks in tokens.
    unrestricted: number of tokens that would have been another one, had all of the vocabulary
        been allowed; None where it wasn't counted.
    reasoning: what the model thought before it acted, of one that does.
    timing: milliseconds by stage: "preprocess", "vision", then "prefill" and "decode" of a model
        that speaks token by token or "language" of any other, and "total".
    """

    actions: np.ndarray
    spec: ActionSpec
    tokens: np.ndarray | None = None
    timing: dict[str, float] = field(default_factory=dict)
    unrestricted: int | None = None
    reasoning: Reasoning | None = None

    def __post_init__(self) -> None:
        if not hasattr(self.actions, "detach"):  # PyTorch's stay what they are
            self.actions = np.asarray(self.actions, np.float32)
        if self.actions.ndim != 2 or self.actions.shape[1] != len(self.spec):
            raise VlaError(
                f"actions have shape {self.actions.shape}, the spec names {len(self.spec)} "
                f"dimensions ({', '.join(self.spec.names)})",
                "give an array of shape [T, D]",
            )

    def __len__(self) -> int:
        return len(self.actions)

    def __repr__(self) -> str:
        steps = f"{len(self)} step{'s' * (len(self) != 1)} of {self.spec.dt:g} s"
        return f"<ActionChunk {steps}: {', '.join(self.spec.names)}>"


@dataclass
class Step:
    """One step of an episode: observation, action, reward."""

    observation: Observation
    action: np.ndarray
    reward: float = 0.0
    is_first: bool = False
    is_last: bool = False
    is_terminal: bool = False


@dataclass
class Episode:
    """A run from reset to end. `metadata` has task, seed, source, outcome: plain JSON values.

    columns: what else was recorded of the steps, by name ("states", "obs/robot0_joint_pos",
        "datagen_info/eef_pose"): [T, ...] each. A dataset that is read leaves them on disk.
    """

    steps: Sequence[Step]
    spec: ActionSpec
    metadata: dict = field(default_factory=dict)
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def actions(self) -> np.ndarray:
        """float32 [T, D]"""
        return np.stack([s.action for s in self.steps]).astype(np.float32)

    @property
    def states(self) -> np.ndarray:
        """float32 [T, S], of an episode whose steps have a state."""
        return np.stack([np.asarray(s.observation.state, np.float32) for s in self.steps])

    @property
    def rewards(self) -> np.ndarray:
        """float64 [T]"""
        return np.array([s.reward for s in self.steps], np.float64)

    @property
    def terminal(self) -> np.ndarray:
        """bool [T]"""
        return np.array([s.is_terminal for s in self.steps], bool)

    @property
    def instructions(self) -> list[str]:
        return [s.observation.instruction for s in self.steps]


def make_steps(
    images: Iterable[Mapping[str, np.ndarray]],
    texts: Sequence[str],
    state: Sequence | np.ndarray | None,
    actions: np.ndarray,
    rewards: Sequence[float] | np.ndarray,
    terminal: Sequence[bool] | np.ndarray,
) -> list[Step]:
    """The steps of an episode of length T from its columns: actions [T, D], state [T, S]."""
    last = len(actions) - 1
    return [
        Step(
            Observation(shown, texts[t], None if state is None else state[t]),
            actions[t],
            float(rewards[t]),
            t == 0,
            t == last,
            bool(terminal[t]),
        )
        for t, shown in enumerate(images)
    ]


def _size(image: np.ndarray) -> str:
    """Width x height, or what is no image."""
    shape: tuple[int, ...] = getattr(image, "shape", ())
    return f"{shape[1]}x{shape[0]}" if len(shape) == 3 else type(image).__name__


def check_image(image: np.ndarray, name: str = "image") -> np.ndarray:
    """Returns `image` if it is valid, else raises ObservationError."""
    if not isinstance(image, np.ndarray):
        raise ObservationError(f"{name} is a {type(image).__name__}", "give a numpy array")
    if image.dtype != np.uint8:
        raise ObservationError(f"{name} has dtype {image.dtype}", "convert it to 8-bit RGB")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ObservationError(f"{name} has shape {image.shape}", "give height x width x 3 (RGB)")
    if min(image.shape[:2]) < 16:
        raise ObservationError(
            f"{name} is {image.shape[1]}x{image.shape[0]} pixels", "give at least 16x16"
        )
    return image


def check_instruction(text: str, limit: int = 1000) -> str:
    """Returns the instruction without outer white space; refuses one that is not text, empty or
    too long."""
    try:
        text.encode()
    except UnicodeEncodeError:  # a command line's bytes that are no UTF-8
        raise ObservationError(
            f"the instruction is not UTF-8: {text!r:.60}", "give it in that encoding"
        ) from None
    text = " ".join(text.split())
    if not text:
        raise ObservationError("the instruction is empty", "publish or pass a sentence")
    if len(text) > limit:
        raise ObservationError(
            f"the instruction has {len(text)} characters", f"keep it under {limit}"
        )
    return text
