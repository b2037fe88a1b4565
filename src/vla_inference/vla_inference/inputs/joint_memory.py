"""The last known position of each joint, from messages that may name only some of them.

A JointState speaks of the joints it names and of no others: the arm's driver and the gripper's may
share a topic, each with messages of its own joints, and two arms may share one as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from vla_inference.errors import ObservationError

# Seconds by which joints of one state may be apart: a slower one means that its driver is gone.
MAX_APART = 0.5
SET_BACK = 1.0  # seconds by which a stamp must be older for the clock to have been set back


class Joint(NamedTuple):
    """position: rad or m; stamp: when it was measured, s."""

    position: float
    stamp: float


class JointMemory:
    """The last state of each joint. wanted: the only joints to keep; None: all."""

    def __init__(self, wanted: Collection[str] | None = None):
        self._wanted = None if wanted is None else frozenset(wanted)
        self._known: dict[str, Joint] = {}

    def put(
        self, names: Sequence[str], positions: Sequence[float], stamp: float
    ) -> Mapping[str, Joint]:
        """A copy of what is known after this message; empty if it names no wanted joint.

        Without positions it says nothing: JointState allows that. One that comes late does not
        replace what is newer; one that is older by more than `SET_BACK` starts again. Raises
        ObservationError where names and positions are not of one length, or a name comes twice.
        """
        check_joints(names, positions)
        said = [
            (name, Joint(float(position), stamp))
            for name, position in zip(names, positions, strict=False)
            if self._wanted is None or name in self._wanted
        ]
        if not said:
            return {}
        if any(stamp < joint.stamp - SET_BACK for joint in self._known.values()):
            self._known.clear()
        for name, joint in said:
            if name not in self._known or stamp >= self._known[name].stamp:
                self._known[name] = joint
        return dict(self._known)


def check_joints(names: Sequence[str], positions: Sequence[float]) -> None:
    """Raises ObservationError if a JointState is ambiguous about joints and positions."""
    if len(positions) and len(names) != len(positions):
        raise ObservationError(
            f"the joint states name {len(names)} joints and give {len(positions)} positions",
            "fix their publisher",
        )
    if len(set(names)) < len(names):
        twice = sorted({n for n in names if list(names).count(n) > 1})
        raise ObservationError(
            f"the joint states name {', '.join(twice)} twice", "give each joint a name of its own"
        )


def stale_joints(known: Mapping[str, Joint], names: Iterable[str], at: float) -> dict[str, float]:
    """The joints in `names` last measured more than `MAX_APART` before `at`, and how long
    before."""
    ages = {n: at - known[n].stamp for n in names if n in known}
    return {n: age for n, age in ages.items() if age > MAX_APART}


def positions_at(known: Mapping[str, Joint], names: Iterable[str], at: float) -> dict[str, float]:
    """Positions of the known joints in `names`. Raises ObservationError if one is too old."""
    names = list(names)
    for name, age in stale_joints(known, names, at).items():
        raise ObservationError(
            f"joint {name} was last heard of {age:.2f} s before the image (at most {MAX_APART:g})",
            "check the driver that publishes it",
        )
    return {n: known[n].position for n in names if n in known}
