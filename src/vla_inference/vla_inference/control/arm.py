"""Arm kinematics from a URDF or MJCF file: forward kinematics and the Jacobian of a frame.

MuJoCo reads both and computes; nothing is simulated. Poses are in the axes of the base body.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from vla_inference.errors import VlaError

# MuJoCo drops links without mass and fuses fixed ones, tool frames among them, unless told not to.
URDF_COMPILER = {
    "fusestatic": "false",
    "balanceinertia": "true",
    "boundmass": "0.001",
    "boundinertia": "0.000001",
}


class Arm:
    """The joints between a model's root and `frame` (a site, body or link).

    base: body whose axes poses are in; empty: the model's root.
    names, lower, upper: of the joints, from the root on; rad, or m of sliding ones; infinite
        where unlimited.
    velocity: what the URDF allows [rad/s, m/s]; infinite where it says nothing.
    """

    def __init__(self, path: str | Path, frame: str, base: str = ""):
        try:
            import mujoco
        except ImportError as error:
            raise VlaError(f"mujoco cannot be imported ({error})", "pip install mujoco") from None
        self._mujoco = mujoco
        path = Path(path)
        if not path.is_file():
            raise VlaError(f"there is no robot description {str(path)!r}", "give a URDF or MJCF")
        try:
            root = ElementTree.parse(path).getroot()
            urdf = root.tag == "robot"
            if urdf:
                self.model = mujoco.MjModel.from_xml_string(_kinematics_of_urdf(root))
            else:
                self.model = mujoco.MjModel.from_xml_path(str(path))
        except (ElementTree.ParseError, ValueError, OSError) as error:
            raise VlaError(f"cannot read {path}: {error}", "give a valid URDF or MJCF") from None
        self.data = mujoco.MjData(self.model)
        self._find_frame(frame)
        self._base = self._body(base) if base else 0
        self._find_joints()
        limits = _urdf_velocities(root) if urdf else {}
        self.velocity = np.array([limits.get(n, np.inf) for n in self.names])

    def _names(self, kind: str, count: int) -> list[str]:
        return [getattr(self.model, kind)(i).name for i in range(count)]

    def _body(self, name: str) -> int:
        bodies = self._names("body", self.model.nbody)
        if name not in bodies:
            known = ", ".join(b for b in bodies if b)
            raise VlaError(f"the robot has no body or link {name!r}", f"it has {known}")
        return bodies.index(name)

    def _find_frame(self, frame: str) -> None:
        sites = self._names("site", self.model.nsite)
        self._site = sites.index(frame) if frame in sites else -1
        at = self.model.site_bodyid[self._site] if self._site >= 0 else self._body(frame)
        self._frame_body = int(at)

    def _find_joints(self) -> None:
        m, mj, body = self.model, self._mujoco, self._frame_body
        found: list[int] = []
        while body:
            first = m.body_jntadr[body]
            found = [*range(first, first + m.body_jntnum[body]), *found]
            if body == self._base:
                break
            body = m.body_parentid[body]
        moving = (int(mj.mjtJoint.mjJNT_HINGE), int(mj.mjtJoint.mjJNT_SLIDE))
        if not found or any(m.jnt_type[j] not in moving for j in found):
            raise VlaError(
                "no chain of hinges and slides leads to the frame", "name one that the arm moves"
            )
        self.names = tuple(m.joint(j).name for j in found)
        self._q, self._v = m.jnt_qposadr[found], m.jnt_dofadr[found]
        limited = m.jnt_limited[found].astype(bool)
        self.lower = np.where(limited, m.jnt_range[found, 0], -np.inf)
        self.upper = np.where(limited, m.jnt_range[found, 1], np.inf)

    def __len__(self) -> int:
        return len(self.names)

    def _place(self, positions: np.ndarray) -> None:
        self.data.qpos[self._q] = positions
        self._mujoco.mj_kinematics(self.model, self.data)
        self._mujoco.mj_comPos(self.model, self.data)

    def _axes(self) -> np.ndarray:
        return self.data.xmat[self._base].reshape(3, 3)

    def pose(self, positions: np.ndarray) -> np.ndarray:
        """4 x 4 of the frame at these joint positions."""
        self._place(positions)
        data, site = self.data, self._site
        rotation = data.site_xmat[site] if site >= 0 else data.xmat[self._frame_body]
        position = data.site_xpos[site] if site >= 0 else data.xpos[self._frame_body]
        pose, base = np.eye(4), self._axes()
        pose[:3, :3] = base.T @ rotation.reshape(3, 3)
        pose[:3, 3] = base.T @ (position - data.xpos[self._base])
        return pose

    def jacobian(self, positions: np.ndarray) -> np.ndarray:
        """[6, n]: the frame's velocity (m/s, rad/s; base axes) per joint velocity."""
        self._place(positions)
        whole = np.zeros((2, 3, self.model.nv))
        if self._site >= 0:
            self._mujoco.mj_jacSite(self.model, self.data, *whole, self._site)
        else:
            self._mujoco.mj_jacBody(self.model, self.data, *whole, self._frame_body)
        return (self._axes().T @ whole[:, :, self._v]).reshape(6, -1)


def _kinematics_of_urdf(root: ElementTree.Element) -> str:
    """Loads a URDF without meshes, since package:// paths cannot be resolved."""
    for link in root.iter("link"):
        for part in [*link.findall("visual"), *link.findall("collision")]:
            link.remove(part)
    for old in root.findall("mujoco"):
        root.remove(old)
    ElementTree.SubElement(ElementTree.SubElement(root, "mujoco"), "compiler", URDF_COMPILER)
    return ElementTree.tostring(root, "unicode")


def _urdf_velocities(root: ElementTree.Element) -> dict[str, float]:
    found = {}
    for joint in root.iter("joint"):
        limit = joint.find("limit")
        if limit is not None and limit.get("velocity"):
            found[joint.get("name", "")] = float(limit.get("velocity", "inf"))
    return found
