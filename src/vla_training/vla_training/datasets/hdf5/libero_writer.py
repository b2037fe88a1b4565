"""Writes LIBERO's own HDF5 layout: a file per task, named as the benchmark names it.

`SUITE/TASK_demo.hdf5`, as its published demonstrations lie below its datasets folder; images with
the bottom row first and not mirrored, actions in robosuite's [-1, 1], gripper -1 open. Unlike in
the published files, `obs` of a row is what was seen before that row's action, which is how
LIBERO's own loader pairs the two.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vla_inference.episodes.hdf5 import compress, takeover_columns, write_images
from vla_inference.episodes.language import with_cameras
from vla_inference.errors import DataError
from vla_inference.options import option
from vla_inference.types import Episode
from vla_training.datasets.action_form import convert_rotation
from vla_training.datasets.hdf5.convention import Convention, default_convention
from vla_training.datasets.hdf5.layout import sentence_of
from vla_training.datasets.hdf5.writer import Disk, robosuite_actions, stored_form
from vla_training.datasets.writers import DataForm, EpisodeWriter

CAMERAS = ("agentview", "eye_in_hand")
STATE = 8  # position m, axis angle rad, both fingers m
JOINTS = ("obs/robot0_joint_pos", "obs/joint_states")
CONTROLLER = {  # robosuite 1.4's OSC_POSE as LIBERO loads it
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_ratio_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "control_delta": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}


@dataclass(frozen=True)
class LiberoOptions:
    compression: str = option("gzip", "of images: gzip or none", choices=("gzip", "none"))
    mirrored: str = option(
        "auto",
        "whether the source's images are mirrored left to right: yes, no, or as it states",
        choices=("auto", "yes", "no"),
    )


@dataclass(frozen=True)
class TaskFile:
    """A task of the benchmark. text: its definition's sentence; problem: its class of scenes."""

    suite: str
    name: str
    problem: str
    text: str

    @classmethod
    def of(cls, metadata: Mapping[str, Any], instruction: str) -> TaskFile:
        """As `vla generate` noted it in `scene`; else named by the sentence, as LIBERO does.

        So is what was asked for in a scene of another task.
        """
        scene = scene_of(metadata)
        suite, problem = str(scene.get("suite", "")), str(scene.get("problem", ""))
        name, text = str(scene.get("name", "")), str(scene.get("in_file", ""))
        if not name or instruction not in (text, sentence_of(name)):
            name = re.sub(r"[^0-9a-z]+", "_", instruction.lower()).strip("_")
            text = instruction
        return cls(suite, name, problem, text)

    @property
    def path(self) -> Path:
        return Path(self.suite, f"{self.name}_demo.hdf5")


class LiberoWriter(EpisodeWriter):
    """Writes a folder. Images are compressed where they are encoded, one chunk per image."""

    Options = LiberoOptions
    columns = frozenset({"states", *JOINTS})

    def begin(self) -> None:
        spec, convention = stored_form(self.form.spec)
        if convention != default_convention():
            raise DataError(
                f"LIBERO's files hold end-effector deltas in m and rad, not {spec.names}",
                "write another format",
            )
        if self.form.state != STATE:
            raise DataError(
                f"LIBERO's files hold {STATE} numbers of state (position, axis angle, both "
                f"fingers), not {self.form.state}",
                "write another format",
            )
        self.cameras = name_cameras(self.form)
        self._left: set[str] = set()
        self._files: dict[Path, tuple[h5py.File, Disk]] = {}
        self._counts: Counter[Path] = Counter()
        self._totals: Counter[Path] = Counter()
        self.partial.mkdir()

    def encoder(self) -> LiberoEncoder:
        spec, convention = stored_form(self.form.spec)
        gzip = self.options.compression == "gzip"
        return LiberoEncoder(
            self.form, spec, convention, self.cameras, gzip, self.options.mirrored
        )

    def add(self, encoded: dict) -> None:
        task: TaskFile = encoded["task"]
        file, disk = self._files.get(task.path) or self._open(task)
        group = file["data"].create_group(f"demo_{self._counts[task.path]}")
        try:
            for key, value in encoded["columns"].items():
                group.create_dataset(key, data=value)
            length = len(encoded["columns"]["actions"])
            for camera, chunks in encoded["images"].items():
                shape = (*self.form.cameras[self.cameras[camera]], 3)
                write_images(
                    group, f"{camera}_rgb", chunks, length, shape, self.options.compression
                )
            for key, value in encoded["attributes"].items():
                group.attrs[key] = value
            file.flush()
        finally:
            disk.check()
        self._counts[task.path] += 1
        self._totals[task.path] += length
        self._left |= encoded["left"]

    def _open(self, task: TaskFile) -> tuple[h5py.File, Disk]:
        path = self.partial / task.path
        path.parent.mkdir(exist_ok=True)
        disk = Disk(path)
        file = h5py.File(disk, "w")
        self._files[task.path] = file, disk
        for key, value in header(task, self.form).items():
            file.require_group("data").attrs[key] = value
        return file, disk

    def finish(self) -> None:
        for path, (file, _) in self._files.items():
            file["data"].attrs["num_demos"] = self._counts[path]
            file["data"].attrs["total"] = self._totals[path]
        self.notes += sorted(self._left)
        self.notes.append("no model_file: LIBERO's replay of states needs its scenes' XML")

    def release(self) -> None:
        files, self._files = list(self._files.values()), {}
        for file, disk in files:
            file.close()
            disk.close()
            disk.check()


def name_cameras(form: DataForm) -> dict[str, str]:
    """LIBERO's name of each camera -> ours: the one that names the hand, and the first other."""
    hand = [c for c in form.cameras if "wrist" in c or "hand" in c]
    front = [c for c in form.cameras if c not in hand]
    if len(hand) != 1 or not front:
        raise DataError(
            f"LIBERO's files have a camera in front and one at the hand, this has "
            f"{', '.join(form.cameras) or 'none'}",
            "rename or drop some: --remap-keys OLD:agentview,OTHER:eye_in_hand,THIRD:None",
        )
    return {CAMERAS[0]: front[0], CAMERAS[1]: hand[0], **{c: c for c in front[1:]}}


def scene_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What `vla generate` noted of a scene of LIBERO; empty if it was not LIBERO's."""
    found = metadata.get("scene")
    found = json.loads(found) if isinstance(found, str) else found
    return dict(found) if isinstance(found, Mapping) and "suite" in found else {}


def header(task: TaskFile, form: DataForm) -> dict[str, Any]:
    """The attributes of `data`."""
    definition = str(Path("libero/libero/bddl_files", task.suite, f"{task.name}.bddl"))
    problem = {
        "problem_name": task.problem,
        "domain_name": "robosuite",
        "language_instruction": task.text,
    }
    height, width = form.cameras[next(iter(form.cameras))]
    settings = {
        "robots": ["Panda"],
        "controller_configs": CONTROLLER,
        "bddl_file_name": definition,
        "has_renderer": False,
        "has_offscreen_renderer": True,
        "ignore_done": True,
        "use_camera_obs": True,
        "camera_depths": False,
        "camera_names": ["robot0_eye_in_hand", "agentview"],
        "reward_shaping": True,
        "control_freq": round(1 / form.spacing, 6),
        "camera_heights": height,
        "camera_widths": width,
        "camera_segmentations": None,
    }
    env = {
        "type": 1,
        "env_name": task.problem.title(),
        "problem_name": task.problem,
        "bddl_file": definition,
        "env_kwargs": settings,
    }
    return {
        "bddl_file_name": definition,
        "env_name": env["env_name"],
        "env_args": json.dumps(env),
        "problem_info": json.dumps(problem),
        "macros_image_convention": "opengl",
        "tag": "libero-v1",
    }


@dataclass(frozen=True)
class LiberoEncoder:
    """Encodes an episode to its task, arrays by key, attributes, and images as finished chunks."""

    form: DataForm
    spec: Any
    convention: Convention
    cameras: Mapping[str, str]
    compress: bool
    mirrored: str

    def __call__(self, episode: Episode) -> dict:
        sentences = set(episode.instructions)
        if len(sentences) > 1:
            raise DataError(
                f"an episode has {len(sentences)} sentences, LIBERO's files have one a task",
                "give one with --instruction",
            )
        motion = convert_rotation(episode.actions, self.form.spec, self.spec)
        states = episode.states.astype(np.float64)
        columns = {
            "actions": robosuite_actions(motion, self.convention),
            "rewards": (episode.rewards > 0).astype(np.uint8),
            "dones": episode.terminal.astype(np.uint8),
            "robot_states": robot_states(states),
            "obs/ee_pos": states[:, :3],
            "obs/ee_ori": states[:, 3:6],
            "obs/ee_states": states[:, :6],
            "obs/gripper_states": states[:, 6:],
            **takeover_columns(replace(episode, metadata=self._language(episode.metadata))),
        }
        attributes: dict[str, Any] = {
            "num_samples": len(episode),
            "language_instruction": next(iter(sentences)),
        }
        left = set()
        joints = next((name for name in JOINTS if name in episode.columns), None)
        if joints is not None:
            columns["obs/joint_states"] = np.asarray(episode.columns[joints], np.float64)
        else:
            left.add("no joint_states, which LIBERO's own training reads")
        if "states" in episode.columns:
            columns["states"] = np.asarray(episode.columns["states"], np.float64)
            attributes["init_state"] = columns["states"][0]
        else:
            left.add("no states of the simulator: no replay there")
        if scene := scene_of(episode.metadata):
            attributes["scene"] = json.dumps({**scene, "mirrored": False})
        turn = self._turn(episode.metadata)
        images = {
            camera: [self._chunk(s.observation.images[ours][turn]) for s in episode.steps]
            for camera, ours in self.cameras.items()
        }
        return {
            "task": TaskFile.of(episode.metadata, attributes["language_instruction"]),
            "columns": columns,
            "attributes": attributes,
            "images": images,
            "left": left,
        }

    def _language(self, metadata: dict) -> dict:
        """With cameras under LIBERO's names."""
        return with_cameras(metadata, {ours: theirs for theirs, ours in self.cameras.items()})

    def _turn(self, metadata: Mapping[str, Any]) -> tuple[slice, slice]:
        """From ours, upright, to the bottom row first and not mirrored."""
        scene = scene_of(metadata)
        stated = metadata.get("mirrored", scene.get("mirrored", bool(scene)))
        mirrored = stated if self.mirrored == "auto" else self.mirrored == "yes"
        return slice(None, None, -1), slice(None, None, -1 if mirrored else 1)

    def _chunk(self, image: np.ndarray) -> bytes | bytearray:
        return compress(image) if self.compress else np.ascontiguousarray(image).tobytes()


def robot_states(states: np.ndarray) -> np.ndarray:
    """[T, 9] of LIBERO: both fingers, the hand's position and quaternion x y z w, of [T, 8].

    The quaternion keeps the sign of the axis angle, which goes up to 2 pi.
    """
    angle = np.linalg.norm(states[:, 3:6], axis=1, keepdims=True)
    axis = states[:, 3:6] / np.maximum(angle, 1e-12)
    quaternion = np.hstack([axis * np.sin(angle / 2), np.cos(angle / 2)])
    return np.hstack([states[:, 6:], states[:, :3], quaternion])
