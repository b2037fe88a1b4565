"""Demonstrations as flat arrays of frames, ready for batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from vla_inference.errors import DataError
from vla_inference.types import ActionSpec, eef_delta_spec
from vla_sim_bridge.hdf5 import Hdf5Episodes
from vla_sim_bridge.tasks import TASKS
from vla_training.datasets.base import action_statistics as dataset_statistics


@dataclass
class Frames:
    """All steps of all episodes, one after the other.

    pictures: uint8 [N, H, W, 3]; actions: float32 [N, 7], SI; text: index of each frame's
    instruction in `sentences` [N]; end: index one past the last frame of its episode [N];
    episode: number of its episode [N]; scene: what the simulator knew [N, 9] (see `scene_of`), or
    None where a data set does not tell; name: of the action space that a model learns from them;
    spec: what the actions mean.
    """

    pictures: torch.Tensor
    actions: torch.Tensor
    text: torch.Tensor
    end: torch.Tensor
    episode: torch.Tensor
    sentences: list[str]
    scene: torch.Tensor | None = None
    name: str = "generated"
    spec: ActionSpec = field(default_factory=eef_delta_spec)

    def __len__(self) -> int:
        return len(self.actions)


def load_frames(
    paths: Sequence[str | Path],
    camera: str = "agentview",
    device: str = "cpu",
    report: Callable[[str], None] = lambda _: None,
) -> Frames:
    """Read HDF5 data sets into memory, the pictures straight onto `device`."""
    sets = [Hdf5Episodes(p) for p in paths]
    lengths = [len(s.group(i)["actions"]) for s in sets for i in range(len(s))]
    total = sum(lengths)
    first = sets[0].images(0, camera)
    pictures = torch.empty((total, *first.shape[1:]), dtype=torch.uint8, device=device)
    actions = np.empty((total, 7), np.float32)
    text, end = np.empty(total, np.int64), np.empty(total, np.int64)
    episode = np.empty(total, np.int64)
    scene = np.zeros((total, 9), np.float32)
    known = True
    sentences: dict[str, int] = {}
    at = number = 0
    for data, path in zip(sets, paths, strict=True):
        for i in range(len(data)):
            images = data.images(i, camera)
            if images.shape[1:] != first.shape[1:]:
                raise DataError(
                    f"{path} has pictures of {images.shape[1:3]}, the first of {first.shape[1:3]}",
                    "generate both with one size",
                )
            values = data.actions(i)
            if not np.isfinite(values).all():
                raise DataError(f"{path}: demonstration {i} has actions that are not finite")
            n = len(values)
            pictures[at : at + n] = torch.from_numpy(images).to(device)
            actions[at : at + n] = values
            text[at : at + n] = [
                sentences.setdefault(t, len(sentences)) for t in data.instructions(i)
            ]
            end[at : at + n], episode[at : at + n] = at + n, number
            seen = scene_of(data.group(i), data.states(i))
            known = known and seen is not None
            if known:
                scene[at : at + n] = seen
            at, number = at + n, number + 1
        report(f"{path}: {len(data)} episodes, {at} frames so far")
    as_tensor = torch.from_numpy
    return Frames(
        pictures, as_tensor(actions), as_tensor(text), as_tensor(end), as_tensor(episode),
        list(sentences), as_tensor(scene) if known else None,
    )  # fmt: skip


def scene_of(group, states: np.ndarray | None) -> np.ndarray | None:
    """What a picture must tell a policy that stacks, as numbers of about unit size [T, 9].

    Gripper to the object to lift and from there to where it goes (each 3, in decimetres), the
    angle of the former in the gripper (cosine and sine of 4 times it) and the opening of the
    fingers. Which objects these are is the task's: by role, where only the sentence decides it.
    """
    info = group.get("datagen_info")
    if info is None or states is None or not len(info["object_poses"]):
        return None
    eef = info["eef_pose"][:]
    poses = {name: pose[:] for name, pose in info["object_poses"].items()}
    first, second = _under_way(group, poses, info.get("subtask_term_signals", {}))

    def yaw(pose):
        return np.arctan2(pose[:, 1, 0], pose[:, 0, 0])

    turn = 4 * (yaw(first) - yaw(eef))
    return np.column_stack(
        [
            10 * (first[:, :3, 3] - eef[:, :3, 3]),
            10 * (second[:, :3, 3] - first[:, :3, 3]),
            np.cos(turn),
            np.sin(turn),
            50 * np.abs(states[:, 6:8]).mean(1),
        ]
    ).astype(np.float32)


def _under_way(group, poses: dict[str, np.ndarray], signals) -> tuple[np.ndarray, np.ndarray]:
    """Poses [T, 4, 4] of the objects that each step is about: what is lifted, where it goes.

    A task's subtasks come in such pairs; the next pair begins when the one before has been done.
    """
    task = TASKS.get(group.attrs.get("task", ""))
    names = [s.object for s in task.subtasks] if task else sorted(poses)[:2]
    if not set(names) <= set(poses):
        names = sorted(poses)[:2]
    if len(names) < 2:
        names *= 2
    first, second = poses[names[0]].copy(), poses[names[1]].copy()
    for i in range(2, len(names) - 1, 2):
        done = signals.get(task.subtasks[i - 1].signal)
        if done is not None:
            later = np.maximum.accumulate(done[:].astype(bool))
            first[later], second[later] = poses[names[i]][later], poses[names[i + 1]][later]
    return first, second


def action_statistics(frames: Frames) -> dict:
    """The dataset_statistics.json entry of these frames: q01/q99 bounds, gripper left as it is."""
    statistics = dataset_statistics([frames.actions.numpy()], frames.spec, frames.name)
    return {**statistics, "num_trajectories": int(frames.episode.max()) + 1}
