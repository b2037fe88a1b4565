"""Domain randomisation of looks and dynamics, per episode or per frame.

Each draw starts from the model as it was built, so draws do not add up. All chance comes from the
generator handed in. The ranges of camera and light are robosuite's own (DomainRandomizationWrapper
of 1.5.2) where it has one; its code cannot recolour on the MuJoCo it needs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from vla_inference.errors import VlaError

PARTS = ("colours", "camera", "light", "dynamics")
Every = Literal["episode", "frame"]


@dataclass(frozen=True)
class Ranges:
    """The range of each quantity: a pair bounds a factor, a number is the maximum deviation to
    either side.

    tint: factor of each colour channel of table, floor and walls (objects keep the colours that
    sentences name). camera_*: m, rad, degrees. light_position: m; light: factor of diffuse and
    specular light; ambient: factor. friction, mass: factors for the task's objects, inertia goes
    with mass; damping: factor for the arm's joints.
    """

    tint: tuple[float, float] = (0.4, 1.0)
    camera_position: float = 0.01
    camera_rotation: float = 0.087
    camera_fovy: float = 5.0
    light_position: float = 0.3
    light: tuple[float, float] = (0.6, 1.4)
    ambient: tuple[float, float] = (0.6, 1.4)
    friction: tuple[float, float] = (0.8, 1.25)
    mass: tuple[float, float] = (0.7, 1.4)
    damping: tuple[float, float] = (0.8, 1.25)

    @classmethod
    def make(cls, given: Mapping[str, Any]) -> Ranges:
        """From plain data, as in a YAML file; errors name a wrong name or value."""
        known = {f.name: f.default for f in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise VlaError(f"there is no range {name!r}", f"{hint}known: {', '.join(known)}")
            pair = isinstance(known[name], tuple)
            try:
                values[name] = tuple(map(float, value)) if pair else float(value)
                low, high = values[name] if pair else (0.0, values[name])
            except (TypeError, ValueError):
                low, high = 1.0, 0.0
            if not 0 <= low <= high < np.inf:
                what = "two factors, the smaller first" if pair else "a number of 0 or more"
                raise VlaError(f"range {name} is {value!r}", f"give {what}")
        return cls(**values)


@dataclass(frozen=True)
class Randomize:
    """What to vary: any of `PARTS`. Dynamics change per episode regardless of `every`."""

    parts: tuple[str, ...] = ()
    every: Every = "episode"
    ranges: Ranges = Ranges()

    def __post_init__(self):
        for part in self.parts:
            if part not in PARTS:
                raise VlaError(f"{part!r} cannot be randomised", f"use {', '.join(PARTS)}")
        if self.every not in ("episode", "frame"):
            raise VlaError(f"randomising every {self.every!r}", "use 'episode' or 'frame'")


class Randomizer:
    """Applies random values to one MuJoCo model.

    cameras: names of those that are moved. bodies: ids of the objects. dofs: of the arm.
    """

    def __init__(
        self, model, config: Randomize, cameras: Iterable[str], bodies: Iterable[int], dofs
    ):
        self.model, self.config = model, config
        self.cameras = [model.camera(name).id for name in cameras]
        roots = {int(model.body_rootid[b]) for b in bodies}
        self.bodies = [b for b in range(model.nbody) if int(model.body_rootid[b]) in roots - {0}]
        self.geoms = [g for g in range(model.ngeom) if model.geom_bodyid[g] in self.bodies]
        self.dofs = np.asarray(dofs)
        self.materials = self._background()
        light = model.vis.headlight
        self._arrays = {
            "mat_rgba": model.mat_rgba,
            "cam_pos": model.cam_pos,
            "cam_quat": model.cam_quat,
            "cam_fovy": model.cam_fovy,
            "light_pos": model.light_pos,
            "light_diffuse": model.light_diffuse,
            "light_specular": model.light_specular,
            "light_ambient": model.light_ambient,
            "head_diffuse": light.diffuse,
            "head_ambient": light.ambient,
            "geom_friction": model.geom_friction,
            "body_mass": model.body_mass,
            "body_inertia": model.body_inertia,
            "dof_damping": model.dof_damping,
        }
        self._nominal = {name: array.copy() for name, array in self._arrays.items()}

    def _background(self) -> list[int]:
        """Materials of fixed things that are not objects: table, floor, walls."""
        model = self.model
        fixed = [g for g in range(model.ngeom) if model.body_weldid[model.geom_bodyid[g]] == 0]
        moving = {int(model.geom_matid[g]) for g in range(model.ngeom) if g not in fixed}
        robot = [g for g in fixed if model.body(model.geom_bodyid[g]).name.startswith("robot")]
        moving |= {int(model.geom_matid[g]) for g in robot}
        used = {int(model.geom_matid[g]) for g in fixed if g not in self.geoms}
        return sorted(used - moving - {-1})

    def episode(self, rng: np.random.Generator) -> dict:
        """Randomises all parts for a new episode; returns the values as plain data."""
        for name, array in self._arrays.items():
            array[:] = self._nominal[name]
        drawn = self.frame(rng)
        if "dynamics" in self.config.parts:
            drawn["dynamics"] = self._dynamics(rng)
        return drawn

    def frame(self, rng: np.random.Generator) -> dict:
        """Randomises the parts that may change between frames."""
        parts = self.config.parts
        drawn = {}
        for name in ("colours", "camera", "light"):
            if name in parts:
                drawn[name] = getattr(self, f"_{name}")(rng)
        return drawn

    def _colours(self, rng) -> dict:
        tints = rng.uniform(*self.config.ranges.tint, (len(self.materials), 3))
        nominal = self._nominal["mat_rgba"][self.materials]
        self._arrays["mat_rgba"][self.materials, :3] = nominal[:, :3] * tints
        names = (self.model.mat(m).name for m in self.materials)
        return dict(zip(names, tints.tolist(), strict=True))

    def _camera(self, rng) -> dict:
        from scipy.spatial.transform import Rotation  # half of the start-up time of HDF5 readers

        ranges, drawn = self.config.ranges, {}
        for camera in self.cameras:
            moved = rng.uniform(-1, 1, 3) * ranges.camera_position
            axis = rng.standard_normal(3)
            turn = axis / np.linalg.norm(axis) * rng.uniform(0, ranges.camera_rotation)
            fovy = rng.uniform(-1, 1) * ranges.camera_fovy
            now = Rotation.from_quat(np.roll(self._nominal["cam_quat"][camera], -1))
            turned = (now * Rotation.from_rotvec(turn)).as_quat()
            self._arrays["cam_pos"][camera] = self._nominal["cam_pos"][camera] + moved
            self._arrays["cam_quat"][camera] = np.roll(turned, 1)
            self._arrays["cam_fovy"][camera] = self._nominal["cam_fovy"][camera] + fovy
            name = self.model.camera(camera).name
            drawn[name] = {"moved": moved.tolist(), "turned": turn.tolist(), "fovy": float(fovy)}
        return drawn

    def _light(self, rng) -> dict:
        ranges = self.config.ranges
        moved = rng.uniform(-1, 1, self.model.light_pos.shape) * ranges.light_position
        light, ambient = rng.uniform(*ranges.light), rng.uniform(*ranges.ambient)
        self._arrays["light_pos"][:] = self._nominal["light_pos"] + moved
        for name in ("light_diffuse", "light_specular", "head_diffuse"):
            self._arrays[name][:] = np.clip(self._nominal[name] * light, 0, 1)
        for name in ("light_ambient", "head_ambient"):
            self._arrays[name][:] = np.clip(self._nominal[name] * ambient, 0, 1)
        return {"moved": moved.tolist(), "light": float(light), "ambient": float(ambient)}

    def _dynamics(self, rng) -> dict:
        ranges = self.config.ranges
        friction, mass = rng.uniform(*ranges.friction), rng.uniform(*ranges.mass)
        damping = rng.uniform(*ranges.damping)
        for name, rows, factor in (
            ("geom_friction", self.geoms, friction),
            ("body_mass", self.bodies, mass),
            ("body_inertia", self.bodies, mass),
            ("dof_damping", self.dofs, damping),
        ):
            self._arrays[name][rows] = self._nominal[name][rows] * factor
        return {"friction": float(friction), "mass": float(mass), "damping": float(damping)}
