"""New demonstrations from a few, after MimicGen (Mandlekar et al., arXiv 2310.17596).

A source demonstration is cut into subtasks, each tied to one object. In a new scene every segment
is moved along with its object (T' = T_now . T_source^-1 . T), joined to where the arm is by a
short interpolation, and executed in closed loop with a little noise. What is recorded is the
action without the noise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from vla_inference.errors import DataError, VlaError
from vla_sim_bridge.poses import (
    apply_delta,
    delta_between,
    interpolate,
    invert,
    rotation_angle,
    turn_z,
)
from vla_sim_bridge.simulation import ACTION_SCALE, Simulation, from_robosuite
from vla_sim_bridge.tasks import Subtask

Selection = Literal["random", "nearest_neighbor_object", "nearest_neighbor_robot_distance"]


@dataclass(frozen=True)
class MimicGenConfig:
    """The method's settings; defaults are the paper's where it has one.

    noise: standard deviation of executed actions in full actions (0.05 m, 0.5 rad).
    step_length: m; joining two segments takes at least this many steps more, so that the arm can
        follow (0: `interpolation_steps` alone, as in the paper).
    clearance: m; how high a join rises in its middle, at most as far as it goes sideways. A
        straight one carries one block through the other (0: straight, as in the paper).
    prune_idle: leave out source steps that ask for no motion and no gripper change.
    """

    selection: Selection = "nearest_neighbor_object"
    nearest: int = 3
    interpolation_steps: int = 5
    noise: float = 0.05
    prune_idle: bool = True
    step_length: float = 0.012
    clearance: float = 0.08


@dataclass
class SourceDemo:
    """T steps of a demonstration, as the method needs them (poses: [T, 4, 4], world, m)."""

    eef_pose: np.ndarray
    target_pose: np.ndarray
    gripper: np.ndarray  # [T], 1 open
    object_poses: dict[str, np.ndarray]
    signals: dict[str, np.ndarray]  # [T], bool

    def __len__(self) -> int:
        return len(self.gripper)

    def boundaries(self, subtasks: tuple[Subtask, ...]) -> list[int]:
        """End index of each subtask: one past the step where its signal rose."""
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


DEMONSTRATIONS = Path(__file__).parent / "demonstrations"


def load_sources(sim: Simulation, path: str | None) -> list[SourceDemo]:
    """Read source demonstrations (`states` and `actions`) from HDF5, by posing the simulation.

    path: None takes the human demonstration that ships for the task.
    """
    if path is None and not sim.task.human:
        raise VlaError(
            f"no demonstration of {sim.task.name} ships here",
            "give --source FILE, which may be one that `vla generate` made",
        )
    path = path or str(DEMONSTRATIONS / sim.task.human)
    try:
        with h5py.File(path, "r") as file:
            groups = sorted(file["data"], key=lambda d: int(d.rsplit("_", 1)[1]))
            raw = []
            for name in groups:
                demo = file["data"][name]
                for key in ("states", "actions"):
                    if key not in demo:
                        raise DataError(f"{path}: {name} has no {key!r}", "record it with states")
                scene = json.loads(demo.attrs.get("scene", "{}"))
                raw.append((demo["states"][:], demo["actions"][:], scene))
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})", "check the path") from error
    sim.reset(np.random.default_rng(0))
    sources = []
    for states, actions, scene in raw:
        sim.set_scene({"roles": sim.task.roles, **scene})
        sources.append(source_from_states(sim, states, actions))
    return sources


def source_from_states(sim: Simulation, states: np.ndarray, actions: np.ndarray) -> SourceDemo:
    """Pose the simulation in every recorded state and read what the method needs."""
    if actions.ndim != 2 or actions.shape[1] != 7:
        raise DataError(f"actions have shape {actions.shape}", "7 numbers per step are needed")
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


def mimicgen_policy(
    sim: Simulation,
    sources: list[SourceDemo],
    rng: np.random.Generator,
    config: MimicGenConfig | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One attempt: yields (action to record, action to execute), both SI [7], until it ends.

    The caller executes each action before asking for the next.
    """
    config = config or MimicGenConfig()
    subtasks = sim.task.subtasks
    cuts = [_randomised(s.boundaries(subtasks), subtasks, rng) for s in sources]
    last_target = None
    for i, subtask in enumerate(subtasks):
        now = sim.object_poses()[subtask.object]
        source, begin, end = _select(sim, sources, cuts, i, subtask, now, rng, config)
        carry = _carry(subtask, now, source.object_poses[subtask.object][begin], sim.eef_pose(),
                       source.target_pose[begin])  # fmt: skip
        steps = range(begin, end)
        if config.prune_idle:
            steps = [t for t in steps if not _idle(source, t)]
        poses = [carry @ source.target_pose[t] for t in steps]
        grips = [source.gripper[t] for t in steps]
        if i == 0:
            poses.insert(0, carry @ source.eef_pose[begin])
            grips.insert(0, grips[0])
        start = sim.eef_pose() if last_target is None else last_target
        for pose in _join(start, poses[0], config):
            action = _action(sim, pose, grips[0])
            yield action, action
        for pose, grip in zip(poses, grips, strict=True):
            action = _action(sim, pose, grip)
            executed = action.copy()
            executed[:6] += config.noise * rng.standard_normal(6) * ACTION_SCALE
            executed[:6] = np.clip(executed[:6], -ACTION_SCALE, ACTION_SCALE)
            yield action, executed
        last_target = poses[-1]


def _join(start: np.ndarray, goal: np.ndarray, config: MimicGenConfig) -> np.ndarray:
    """Poses strictly between two segments: as many as the way needs, over what may stand there."""
    away = float(np.linalg.norm(goal[:3, 3] - start[:3, 3]))
    steps = config.interpolation_steps
    if config.step_length:
        steps = max(steps, int(np.ceil(away / config.step_length)))
    poses = interpolate(start, goal, steps)
    aside = float(np.linalg.norm(goal[:2, 3] - start[:2, 3]))
    arc = np.sin(np.pi * np.arange(1, steps + 1) / (steps + 1))
    poses[:, 2, 3] += min(config.clearance, aside) * arc
    return poses


def _action(sim: Simulation, pose: np.ndarray, gripper: float) -> np.ndarray:
    delta = np.clip(delta_between(sim.eef_pose(), pose), -ACTION_SCALE, ACTION_SCALE)
    return np.append(delta, gripper)


def _randomised(ends: list[int], subtasks, rng) -> list[tuple[int, int]]:
    """Segments [begin, end), inner boundaries moved by a random offset, never empty."""
    moved = []
    for i, (end, subtask) in enumerate(zip(ends, subtasks, strict=True)):
        if i < len(ends) - 1:
            low, high = subtask.offset
            end = min(end + int(rng.integers(low, high + 1)), ends[-1] - (len(ends) - 1 - i))
        begin = moved[-1][1] if moved else 0
        moved.append((begin, max(end, begin + 1)))
    return moved


def _select(sim, sources, cuts, i, subtask, now, rng, config):
    """A source demonstration for subtask `i`, and its segment."""
    segments = [(s, *cut[i]) for s, cut in zip(sources, cuts, strict=True)]
    if config.selection == "random":
        return segments[rng.integers(len(segments))]
    eef = sim.eef_pose()

    def distance(segment) -> float:
        source, begin, _ = segment
        then = source.object_poses[subtask.object][begin]
        if config.selection == "nearest_neighbor_robot_distance":
            first = now @ invert(then) @ source.eef_pose[begin]
            return float(np.linalg.norm(first[:3, 3] - eef[:3, 3])) + rotation_angle(first, eef)
        return float(np.linalg.norm(now[:3, 3] - then[:3, 3])) + rotation_angle(now, then)

    nearest = sorted(segments, key=distance)[: config.nearest]
    return nearest[rng.integers(len(nearest))]


def _carry(subtask: Subtask, now, then, eef, target) -> np.ndarray:
    """What moves the source segment to the object's present pose.

    Among the object's rotational symmetries the nearest to the gripper is taken (1 rad counts as
    much as 0.2 m).
    """

    def cost(carry: np.ndarray) -> float:
        goal = carry @ target
        return rotation_angle(goal, eef) + 5 * float(np.linalg.norm(goal[:3, 3] - eef[:3, 3]))

    turns = [turn_z(2 * np.pi * k / subtask.symmetry) for k in range(subtask.symmetry)]
    options = [now @ turn @ invert(then) for turn in turns]
    return min(options, key=cost)


def _idle(source: SourceDemo, t: int) -> bool:
    if t and source.gripper[t] != source.gripper[t - 1]:
        return False
    delta = delta_between(source.eef_pose[t], source.target_pose[t])
    moving = np.abs(delta[:3]).max() > 1e-4 or np.abs(delta[3:]).max() > 1e-3
    closing = t and (source.gripper[max(0, t - 12) : t + 1] != source.gripper[t]).any()
    return not moving and not closing
