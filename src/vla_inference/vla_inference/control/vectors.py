"""Vectors and unit quaternions (x, y, z, w) as plain tuples.

A command period deals with a handful of these; NumPy's calls would cost ten times as much.
"""

from __future__ import annotations

import math

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]

ZERO: Vector = (0.0, 0.0, 0.0)
IDENTITY: Quaternion = (0.0, 0.0, 0.0, 1.0)


def norm(a: Vector) -> float:
    return math.hypot(*a)


def add(a: Vector, b: Vector) -> Vector:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def subtract(a: Vector, b: Vector) -> Vector:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def scale(a: Vector, s: float) -> Vector:
    return a[0] * s, a[1] * s, a[2] * s


def shorten(a: Vector, longest: float) -> Vector:
    """`a`, shortened to length `longest` if longer."""
    length = norm(a)
    return scale(a, longest / length) if length > longest else a


def cross(a: Vector, b: Vector) -> Vector:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def rotate(q: Quaternion, a: Vector) -> Vector:
    """The vector `a`, turned by `q`."""
    axis = q[:3]
    twice = scale(cross(axis, a), 2.0)
    return add(add(a, scale(twice, q[3])), cross(axis, twice))


def conjugate(q: Quaternion) -> Quaternion:
    return -q[0], -q[1], -q[2], q[3]


def multiply(p: Quaternion, q: Quaternion) -> Quaternion:
    """Rotation by `q`, then by `p`, both about fixed axes; normalised."""
    x = p[3] * q[0] + p[0] * q[3] + p[1] * q[2] - p[2] * q[1]
    y = p[3] * q[1] - p[0] * q[2] + p[1] * q[3] + p[2] * q[0]
    z = p[3] * q[2] + p[0] * q[1] - p[1] * q[0] + p[2] * q[3]
    w = p[3] * q[3] - p[0] * q[0] - p[1] * q[1] - p[2] * q[2]
    length = math.hypot(x, y, z, w)
    return x / length, y / length, z / length, w / length


def from_rotation_vector(r: Vector) -> Quaternion:
    angle = norm(r)
    if angle < 1e-12:
        return multiply((r[0] / 2, r[1] / 2, r[2] / 2, 1.0), IDENTITY)
    s = math.sin(angle / 2) / angle
    return r[0] * s, r[1] * s, r[2] * s, math.cos(angle / 2)


def angle_between(p: Quaternion, q: Quaternion) -> float:
    """rad, 0 to pi"""
    r = multiply(p, conjugate(q))
    return 2 * math.atan2(math.hypot(*r[:3]), abs(r[3]))


def towards(a: Vector, b: Vector, longest: float) -> Vector:
    """What is `longest` from `a` on the way to `b`, or `b` where that is nearer."""
    return b if norm(subtract(b, a)) <= longest else add(a, shorten(subtract(b, a), longest))


def rotation_vector(q: Quaternion) -> Vector:
    """The rotation vector in rad, by the shorter way round."""
    x, y, z, w = q if q[3] >= 0 else (-q[0], -q[1], -q[2], -q[3])
    s = math.hypot(x, y, z)
    return scale((x, y, z), 2 * math.atan2(s, w) / s) if s > 1e-12 else (2 * x, 2 * y, 2 * z)


def turned_towards(p: Quaternion, q: Quaternion, most: float) -> Quaternion:
    """`p`, turned by at most `most` rad towards `q`."""
    if angle_between(p, q) <= most:
        return q
    rest = shorten(rotation_vector(multiply(q, conjugate(p))), most)
    return multiply(from_rotation_vector(rest), p)
