"""Source demonstrations for MimicGen: read from HDF5, replayed in the simulation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from vla_inference.episodes.hdf5 import Demonstrations
from vla_inference.episodes.robosuite import ACTION_SCALE, from_robosuite
from vla_inference.errors import DataError, VlaError
from vla_sim_bridge.envs.poses import apply_delta
from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.tasks import Subtask, Task

DEMONSTRATIONS = Path(__file__).parent / "demonstrations"
Recorded = tuple[np.ndarray, np.ndarray, dict]  # states, actions, scene


@dataclass
class SourceDemo:
    """T steps of a demonstration in the form the method needs (poses: [T, 4, 4], world, m)."""

    eef_pose: np.ndarray
    target_pose: np.ndarray
    gripper: np.ndarray  # [T], 1 open
    object_poses: dict[str, np.ndarray]
    signals: dict[str, np.ndarray]  # [T], bool

    def __len__(self) -> int:
        return len(self.gripper)

    def boundaries(self, subtasks: tuple[Subtask, ...]) -> list[int]:
        """End index of each subtask: one past the step where its signal appeared."""
        ends, at = [], 0
        for i, subtask in enumerate(subtasks):
            if subtask.signal is None:
                ends.append(len(self))
                continue
            signal = self.signals[subtask.signal]
            risen = np.flatnonzero(signal[1:] & ~signal[:-1]) + 1
            risen = risen[risen >= at]
            if not len(risen):
                raise DataError(
                    f"the demonstration never gives signal {subtask.signal!r} of subtask {i + 1}",
                    "use a demonstration that completes the task",
                )
            at = int(risen[0]) + 1
            ends.append(at)
        return ends


def load_sources(sim: Simulation, path: str | None) -> list[SourceDemo]:
    """Source demonstrations from a file; None: the human one shipped for the task."""
    return pose_sources(sim, read_sources(sim.task, path))


def read_sources(task: Task, path: str | None) -> list[Recorded]:
    """Read `states` and `actions` of every demonstration in an HDF5 file.

    path: None takes the human demonstration that ships for the task.
    """
    if path is None and not task.human:
        raise VlaError(
            f"no demonstration of {task.name} ships here",
            "give --source FILE, which may be one that `vla generate` made",
        )
    data = Demonstrations(path or DEMONSTRATIONS / task.human)
    try:
        return [_read(data.where(i), data.group(i)) for i in range(len(data))]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"{data.path} cannot be read ({error})",
            "it may be truncated; give a robomimic HDF5 file",
        ) from error


def _read(where: str, demo: h5py.Group) -> Recorded:
    for key in ("states", "actions"):
        if key not in demo:
            raise DataError(f"{where} has no {key!r}", "record it with states")
    states, actions = demo["states"][:], demo["actions"][:]
    if actions.ndim != 2 or actions.shape[1] != 7 or not len(actions):
        raise DataError(
            f"{where}: actions have shape {actions.shape}",
            "steps of 7 numbers are needed",
        )
    if states.ndim != 2 or len(states) != len(actions):
        raise DataError(
            f"{where} has {len(actions)} actions and states of shape {states.shape}",
            "one state per action is needed",
        )
    if not (np.isfinite(states).all() and np.isfinite(actions).all()):
        raise DataError(f"{where} has numbers that are not finite", "record it again")
    return states, actions, json.loads(demo.attrs.get("scene", "{}"))


def pose_sources(sim: Simulation, recorded: list[Recorded]) -> list[SourceDemo]:
    sim.reset(np.random.default_rng(0))
    sources = []
    for states, actions, scene in recorded:
        sim.set_scene({"roles": sim.task.roles, **scene})
        sources.append(source_from_states(sim, states, actions))
    return sources


def source_from_states(sim: Simulation, states: np.ndarray, actions: np.ndarray) -> SourceDemo:
    """Sets the simulation to every recorded state and reads what the method needs."""
    si = from_robosuite(actions)
    eef, target, objects, signals = [], [], [], []
    for state, action in zip(states, si, strict=True):
        sim.set_mujoco_state(state)
        eef.append(sim.eef_pose())
        target.append(apply_delta(eef[-1], np.clip(action[:6], -ACTION_SCALE, ACTION_SCALE)))
        objects.append(sim.object_poses())
        signals.append(sim.signals())
    return SourceDemo(
        np.stack(eef),
        np.stack(target),
        (si[:, 6] > 0.5).astype(float),
        {n: np.stack([o[n] for o in objects]) for n in objects[0]},
        {n: np.array([s[n] for s in signals]) for n in signals[0]},
    )
