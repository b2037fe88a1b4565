"""Types that every package shares: observations, actions, episodes.

Conventions outside the simulator: SI units, rotations as rotation vectors unless the `ActionSpec`
says otherwise, gripper 1 = open and 0 = closed, images uint8 RGB height x width x 3, upright.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vla_inference.errors import ObservationError, VlaError


@dataclass(frozen=True)
class DimSpec:
    """One dimension of an action: name, unit ("m", "rad", "1") and polarity, if any."""

    name: str
    unit: str
    polarity: str = ""


@dataclass(frozen=True)
class ActionSpec:
    """The meaning of each dimension of an action.

    frame: the axes a delta is expressed in ("base" or "tool").
    rotation: "rotvec" (rotation vector, applied from the left in `frame`) or "rpy"
        (fixed-axis roll, pitch, yaw, as the Open X-Embodiment sets have it).
    dt: seconds one step is held for.
    """

    dims: tuple[DimSpec, ...]
    frame: str = "base"
    rotation: str = "rotvec"
    dt: float = 0.05

    def __len__(self) -> int:
        return len(self.dims)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(d.name for d in self.dims)


def eef_delta_spec(rotation: str = "rotvec", frame: str = "base", dt: float = 0.05) -> ActionSpec:
    """The 7 numbers of an end-effector delta: x y z (m), three angles (rad), gripper (1 open)."""
    angles = {"rotvec": ("rx", "ry", "rz"), "rpy": ("roll", "pitch", "yaw")}
    if rotation not in angles:
        raise VlaError(f"unknown rotation convention {rotation!r}", "use 'rotvec' or 'rpy'")
    dims = [DimSpec(n, "m") for n in ("x", "y", "z")]
    dims += [DimSpec(n, "rad") for n in angles[rotation]]
    dims.append(DimSpec("gripper", "1", "1 open, 0 closed"))
    return ActionSpec(tuple(dims), frame, rotation, dt)


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


@dataclass
class ActionChunk:
    """T consecutive actions, `spec.dt` seconds each.

    actions: float32 [T, D] in the units of `spec`; a tensor where a policy was asked for one.
    tokens: the action tokens it was decoded from [T, D], where the model speaks in tokens.
    unrestricted: number of tokens that would have been another one, had all of the vocabulary
        been allowed; None where it wasn't counted.
    timing: milliseconds by stage: "preprocess", "vision", then "prefill" and "decode" of a model
        that speaks token by token or "language" of any other, and "total".
    """

    actions: np.ndarray
    spec: ActionSpec
    tokens: np.ndarray | None = None
    timing: dict[str, float] = field(default_factory=dict)
    unrestricted: int | None = None

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
    def instructions(self) -> list[str]:
        return [s.observation.instruction for s in self.steps]


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
