"""A six-axis arm as a URDF, for tests, with missing meshes, a mount and a tool frame."""

from __future__ import annotations

import numpy as np

AXES = ("0 0 1", "0 1 0", "0 1 0", "1 0 0", "0 1 0", "1 0 0")
LENGTHS = (0.3, 0.3, 0.25, 0.1, 0.1, 0.05)
LIMITS = (2.8, 2.0, 2.5, 2.8, 2.0, 3.0)
HOME = np.array([0.2, 0.5, 0.9, 0.1, 0.4, -0.2])


def urdf() -> str:
    """A six-axis arm with a tool frame and, beside it, a finger that doesn't count."""
    links, joints = ['<link name="world"/>', '<link name="base_link"/>'], []
    joints.append(_joint("fixed", "mount", "world", "base_link", "0.4 0 0", 'rpy="0 0 1.5708"'))
    parent, height = "base_link", 0.0
    for i, (axis, length, limit) in enumerate(zip(AXES, LENGTHS, LIMITS, strict=True)):
        mesh = f'<visual><geometry><mesh filename="package://no/{i}.dae"/></geometry></visual>'
        links.append(f'<link name="link{i}">{mesh}</link>')
        more = f'<axis xyz="{axis}"/><limit lower="-{limit}" upper="{limit}" effort="1" '
        more += f'velocity="{0.5 if i == 5 else 2.0}"/>'
        joints.append(_joint("revolute", f"j{i}", parent, f"link{i}", f"0 0 {height}", "", more))
        parent, height = f"link{i}", length
    links += ['<link name="tool0"/>', '<link name="finger"/>']
    joints.append(_joint("fixed", "flange", parent, "tool0", f"0 0 {height}"))
    more = '<axis xyz="1 0 0"/><limit lower="0" upper="0.04" effort="1" velocity="1"/>'
    joints.append(_joint("prismatic", "finger", "tool0", "finger", "0 0 0", "", more))
    return f'<robot name="six">{"".join(links + joints)}</robot>'


def _joint(kind, name, parent, child, xyz, rpy="", more=""):
    return (
        f'<joint type="{kind}" name="{name}"><parent link="{parent}"/><child link="{child}"/>'
        f'<origin xyz="{xyz}" {rpy}/>{more}</joint>'
    )
