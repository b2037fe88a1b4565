"""Reads joint states: end-effector pose by forward kinematics, gripper, state vector.

A message speaks of the joints it names alone; what belongs together is the last known of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vla_inference.errors import DataError, ObservationError
from vla_inference.inputs.joint_memory import MAX_APART, JointMemory, check_joints, stale_joints
from vla_training.datasets.bag.streams import NS, Stream, nearest


class Joints(NamedTuple):
    """A JointState: joint -> position (rad, m). fault: why it is left out."""

    positions: dict[str, float]
    fault: str = ""


def read_joints(msg: Any) -> Joints:
    try:
        check_joints(msg.name, msg.position)
    except ObservationError as error:
        return Joints({}, error.problem)
    return Joints({n: float(p) for n, p in zip(msg.name, msg.position, strict=False)})


class JointStream:
    """Joint states of a topic over time. stream: of Joints. faults: why messages are left out."""

    def __init__(self, topic: str, stream: Stream):
        self.topic, self._stream = topic, stream
        self.faults = Counter(v.fault for v in stream.values if v.fault)
        sets = Counter(tuple(v.positions) for v in stream.values if v.positions)
        # Of several publishers the one with the most joints first, in any order of recording.
        order = sorted(sets, key=lambda names: (-len(names), sorted(names)))
        self.names = list(dict.fromkeys(n for names in order for n in names))
        self.partial = len({frozenset(names) for names in sets}) > 1

    def position(self, joint: str) -> Stream:
        """Positions of one joint, from the messages that name it."""
        if joint not in self.names:
            raise DataError(
                f"{self.topic}: there is no joint {joint!r}", f"joints: {', '.join(self.names)}"
            )
        keep = [i for i, v in enumerate(self._stream.values) if joint in v.positions]
        return self._pick(keep, [self._stream.values[i].positions[joint] for i in keep])

    def vectors(self, names: Iterable[str]) -> tuple[Stream, Counter[str]]:
        """Positions of `names` in that order, as the inference node would have them: messages
        at which one is too old are left out, and counted by the joint."""
        names = list(names)
        if missing := [n for n in names if n not in self.names]:
            raise DataError(
                f"{self.topic}: there is no joint {', '.join(missing)}",
                f"joints: {', '.join(self.names)}",
            )
        memory = JointMemory(names)
        stale: Counter[str] = Counter()
        keep, rows = [], []
        for i, (time, value) in enumerate(
            zip(self._stream.times, self._stream.values, strict=True)
        ):
            said = value.positions
            known = memory.put(list(said), list(said.values()), time / NS)
            if len(known) < len(names):  # it speaks of others, or some are not known yet
                continue
            old = stale_joints(known, names, time / NS)
            stale.update(old.keys())
            if not old:
                keep.append(i)
                rows.append([known[n].position for n in names])
        return self._pick(keep, rows), stale

    def poses(self, arm: ForwardKinematics) -> Stream:
        """Of the arm's tip: x y z, quaternion x y z w, whenever a joint of it is named; joints of
        other messages are interpolated, over at most `MAX_APART`."""
        names = arm.names(self.names)
        keep = [i for i, v in enumerate(self._stream.values) if v.positions.keys() & set(names)]
        at = self._stream.times[keep]
        rows, near = np.zeros((len(keep), len(names))), np.ones(len(keep), bool)
        for column, name in enumerate(names):
            own = self.position(name)
            rows[:, column] = np.interp(at, own.times, own.values)
            near &= nearest(own.times, at)[1] <= round(MAX_APART * NS)
            near &= (at >= own.times[0]) & (at <= own.times[-1])
        poses = [arm.pose(dict(zip(names, row.tolist(), strict=True))) for row in rows[near]]
        return self._pick([i for i, good in zip(keep, near, strict=True) if good], poses)

    def _pick(self, keep: list[int], values: list[Any]) -> Stream:
        s = self._stream
        return replace(s, stamps=s.stamps[keep], logs=s.logs[keep], values=values)


class ForwardKinematics:
    """Poses of a body or site in the world frame of the robot model.

    model: MJCF or URDF file; tip: name of the body or site. Raises DataError.
    """

    def __init__(self, model: str, tip: str | None):
        import mujoco

        self.mujoco = mujoco
        if not Path(model).is_file():
            raise DataError(f"there is no robot model {model}", "give an MJCF or URDF file")
        try:
            self.model = mujoco.MjModel.from_xml_path(str(model))
        except (ValueError, mujoco.FatalError) as error:
            raise DataError(
                f"the robot model {model} cannot be loaded ({' '.join(str(error).split())})",
                "give a whole MJCF or URDF; its meshes must be beside it",
            ) from error
        self.data = mujoco.MjData(self.model)
        kinds = {"site": mujoco.mjtObj.mjOBJ_SITE, "body": mujoco.mjtObj.mjOBJ_BODY}
        found = (
            (k, i)
            for k, o in kinds.items()
            if tip and (i := mujoco.mj_name2id(self.model, o, tip)) >= 0
        )
        self.kind: str
        self.tip: int
        self.kind, self.tip = next(found, ("", -1))
        if not self.kind:
            names = [
                mujoco.mj_id2name(self.model, o, i)
                for o, n in zip(kinds.values(), (self.model.nsite, self.model.nbody), strict=True)
                for i in range(n)
            ]
            raise DataError(
                f"the robot model {model} has no site or body {tip!r}",
                f"name one with --robot-tip: {', '.join(n for n in names if n)}",
            )
        self.addresses = {
            mujoco.mj_id2name(self.model, mujoco.mjtObj.mjOBJ_JOINT, i): self.model.jnt_qposadr[i]
            for i in range(self.model.njnt)
        }

    def chain(self) -> list[str]:
        """Names of the joints that move the tip."""
        body = self.tip if self.kind == "body" else int(self.model.site_bodyid[self.tip])
        numbers: list[int] = []
        while body > 0:
            first = int(self.model.body_jntadr[body])
            numbers += range(first, first + int(self.model.body_jntnum[body]))
            body = int(self.model.body_parentid[body])
        joint = self.mujoco.mjtObj.mjOBJ_JOINT
        return [self.mujoco.mj_id2name(self.model, joint, i) for i in sorted(numbers)]

    def names(self, given: Iterable[str]) -> list[str]:
        """The joints that the model has; raises DataError if there are none."""
        given = list(given)
        known = [n for n in given if n in self.addresses]
        if not known:
            raise DataError(
                f"no joint of the joint states ({', '.join(given)}) is in the robot model",
                f"it has {', '.join(n for n in self.addresses if n)}",
            )
        return known

    def pose(self, positions: Mapping[str, float]) -> list[float]:
        """x y z (m), quaternion x y z w; joints that are not named are 0."""
        for name, position in positions.items():
            self.data.qpos[self.addresses[name]] = position
        self.mujoco.mj_kinematics(self.model, self.data)
        if self.kind == "site":
            matrix, place = self.data.site_xmat[self.tip], self.data.site_xpos[self.tip]
        else:
            matrix, place = self.data.xmat[self.tip], self.data.xpos[self.tip]
        quaternion = np.zeros(4)
        self.mujoco.mju_mat2Quat(quaternion, matrix)
        w, x, y, z = quaternion
        return [*place.tolist(), x, y, z, w]
