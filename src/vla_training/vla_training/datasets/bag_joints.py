"""Poses of an end effector from joint states, by a robot's MJCF or URDF (MuJoCo computes them)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vla_inference.errors import DataError


class ForwardKinematics:
    """Poses of one body or site in the frame of the model's world.

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
        self.kind, self.tip = next(
            ((k, i) for k, o in kinds.items()
             if tip and (i := mujoco.mj_name2id(self.model, o, tip)) >= 0), (None, -1),
        )  # fmt: skip
        if self.kind is None:
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

    def pose(self, msg: Any) -> list[float]:
        """x y z (m), quaternion x y z w for a JointState; joints it does not name stay at 0."""
        known = 0
        for name, position in zip(msg.name, msg.position, strict=False):
            address = self.addresses.get(name)
            if address is not None:
                self.data.qpos[address] = position
                known += 1
        if not known:
            raise DataError(
                f"no joint of the joint states ({', '.join(msg.name)}) is in the robot model",
                f"it has {', '.join(n for n in self.addresses if n)}",
            )
        self.mujoco.mj_kinematics(self.model, self.data)
        if self.kind == "site":
            matrix, place = self.data.site_xmat[self.tip], self.data.site_xpos[self.tip]
        else:
            matrix, place = self.data.xmat[self.tip], self.data.xpos[self.tip]
        quaternion = np.zeros(4)
        self.mujoco.mju_mat2Quat(quaternion, matrix)
        w, x, y, z = quaternion
        return [*place.tolist(), x, y, z, w]
