"""New demonstrations from a few, after MimicGen (Mandlekar et al., arXiv 2310.17596).

A source demonstration is cut into subtasks, each tied to one object. In a new scene every segment
is moved along with its object (T' = T_now . T_source^-1 . T), joined to where the arm is by a
short interpolation, and executed in closed loop with a little noise. What is recorded is the
action without the noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from vla_inference.episodes.robosuite import ACTION_SCALE
from vla_sim_bridge.envs.poses import delta_between, interpolate, invert, rotation_angle, turn_z
from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.mimicgen.source_demos import SourceDemo
from vla_sim_bridge.tasks import Subtask

FINGER_REACH = 0.05  # m from the grip site to the middle of an open finger, along its x axis
Selection = Literal["random", "nearest_neighbor_object", "nearest_neighbor_robot_distance"]
SELECTIONS: tuple[str, ...] = get_args(Selection)


@dataclass(frozen=True)
class MimicGenConfig:
    """The method's settings; defaults are the paper's where given.

    noise: standard deviation of executed actions in full actions (0.05 m, 0.5 rad).
    step_length: m; joining two segments takes at least this many steps more, so that the arm can
        follow (0: `interpolation_steps` alone, as in the paper).
    clearance: m; how high a join rises in its middle, at most as far as it goes sideways. A
        straight one carries one block through the other (0: straight, as in the paper).
    prune_idle: leave out source steps that ask for no motion and no gripper change.
    tolerance, turn_tolerance: m, rad; a source step waits, at most `patience` steps (`waits` in a
        segment), until the arm is where the source's arm was. A quick source would else run ahead
        of it. 0 for no waiting, as in the paper. Before the gripper changes, `precise` times that.
    finger_room: m; of the object's symmetric sides one is taken where the fingers come down no
        nearer than this to the middle of another object (0: whatever stands there).
    reach: m; likewise a side, and among the sources one, where the arm is not stretched further
        than this: with its elbow straight it gets stuck (0: however far).
    """

    selection: Selection = "nearest_neighbor_object"
    nearest: int = 3
    interpolation_steps: int = 5
    noise: float = 0.05
    prune_idle: bool = True
    step_length: float = 0.012
    clearance: float = 0.08
    tolerance: float = 0.015
    turn_tolerance: float = 0.12
    precise: float = 0.4
    patience: int = 12
    waits: int = 60
    finger_room: float = 0.04
    reach: float = 0.7


def mimicgen_policy(
    sim: Simulation,
    sources: list[SourceDemo],
    rng: np.random.Generator,
    config: MimicGenConfig | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Runs one attempt: yields (action to record, action to execute), both SI [7].

    The caller executes each action before asking for the next.
    """
    config = config or MimicGenConfig()
    subtasks = sim.task.subtasks
    cuts = [_randomised(s, s.boundaries(subtasks), subtasks, rng) for s in sources]
    last_target = None
    for i, subtask in enumerate(subtasks):
        source, begin, end, carry = _select(sim, sources, cuts, i, subtask, rng, config)
        steps = list(range(begin, end))
        if config.prune_idle:
            steps = [t for t in steps if not _idle(source, t)] or steps[-1:]
        # The first segment begins where the source's arm was, not where it was told to go.
        first = carry @ (source.eef_pose if i == 0 else source.target_pose)[steps[0]]
        start = sim.eef_pose() if last_target is None else last_target
        for pose in _join(start, first, config):
            action = _action(sim, pose, source.gripper[steps[0]])
            yield action, action
        gripper, waited = source.gripper[steps[0]], 0
        for t in steps:
            there, change = carry @ source.eef_pose[t], source.gripper[t] != gripper
            for _ in range(min(config.patience, config.waits - waited)):
                if _reached(sim, there, config, config.precise if change else 1.0):
                    break
                waited += 1
                action = _action(sim, there, gripper)
                yield action, _disturb(action, rng, config)
            gripper = source.gripper[t]
            action = _action(sim, carry @ source.target_pose[t], gripper)
            yield action, _disturb(action, rng, config)
        last_target = carry @ source.target_pose[steps[-1]]


def _reached(sim: Simulation, pose: np.ndarray, config: MimicGenConfig, share: float) -> bool:
    if not config.tolerance:
        return True
    error = delta_between(sim.eef_pose(), pose)
    return bool(
        np.linalg.norm(error[:3]) <= share * config.tolerance
        and np.linalg.norm(error[3:]) <= share * config.turn_tolerance
    )


def _disturb(action: np.ndarray, rng: np.random.Generator, config: MimicGenConfig) -> np.ndarray:
    executed = action.copy()
    executed[:6] += config.noise * rng.standard_normal(6) * ACTION_SCALE
    executed[:6] = np.clip(executed[:6], -ACTION_SCALE, ACTION_SCALE)
    return executed


def _join(start: np.ndarray, goal: np.ndarray, config: MimicGenConfig) -> np.ndarray:
    """Poses strictly between two segments, as many as the distance needs, passing above
    obstacles."""
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


def _randomised(source: SourceDemo, ends: list[int], subtasks, rng) -> list[tuple[int, int]]:
    """Segments [begin, end) with inner boundaries moved by a random offset, never empty.

    A quick demonstration may open the gripper within the offset: the boundary goes at most half
    the way there, so that the next segment still has an approach of its own.
    """
    moved: list[tuple[int, int]] = []
    for i, (end, subtask) in enumerate(zip(ends, subtasks, strict=True)):
        if i < len(ends) - 1:
            low, high = subtask.offset
            change = np.flatnonzero(source.gripper[end:] != source.gripper[end - 1])
            limit = end + (int(change[0]) // 2 if len(change) else len(source))
            last = ends[-1] - (len(ends) - 1 - i)
            end = min(end + int(rng.integers(low, high + 1)), limit, last)
        begin = moved[-1][1] if moved else 0
        moved.append((begin, max(end, begin + 1)))
    return moved


def _select(sim, sources, cuts, i, subtask, rng, config):
    """A source demonstration for subtask `i`, its segment, and the transform that adapts it.

    Distances count 1 m as much as 1 rad, among the `nearest` chance decides: as in the paper.
    """
    objects, eef, base = sim.object_poses(), sim.eef_pose(), sim.base_position()
    options, beyond = [], []
    for source, cut in zip(sources, cuts, strict=True):
        begin, end = cut[i]
        carry = _carry(subtask, objects, eef, source, begin, end, config, base)
        options.append((source, begin, end, carry))
        beyond.append(_beyond_reach(carry, source, begin, end, config, base))
    options = [o for o, far in zip(options, beyond, strict=True) if far <= min(beyond)]
    if config.selection == "random":
        return options[rng.integers(len(options))]

    def distance(option) -> float:
        source, begin, _, carry = option
        if config.selection == "nearest_neighbor_robot_distance":
            a, b = carry @ source.eef_pose[begin], eef
        else:  # with the object as it looks turned by its symmetry: the way it will be carried
            b = source.object_poses[subtask.object][begin]
            a = carry @ b
        return float(np.linalg.norm(a[:3, 3] - b[:3, 3])) + rotation_angle(a, b)

    nearest = sorted(options, key=distance)[: config.nearest]
    return nearest[rng.integers(len(nearest))]


def _carry(
    subtask: Subtask, objects, eef, source: SourceDemo, begin, end, config, base
) -> np.ndarray:
    """The transform from the source segment [begin, end) to the object's current pose.

    Among the object's rotational symmetries the nearest to the gripper is taken (1 rad counts as
    much as 0.2 m), unless a finger would come down on another object there, or the way leads
    further from the robot's base ([3], m) than its arm goes.
    """
    now, then = objects[subtask.object], source.object_poses[subtask.object][begin]
    closing = np.flatnonzero(source.gripper[begin:end] < source.gripper[begin])
    # A role is another name of an object: what stands at the very same place is no other.
    others = [p[:2, 3] for p in objects.values() if not np.array_equal(p, now)]

    def cost(carry: np.ndarray) -> float:
        goal = carry @ source.target_pose[begin]
        cost = rotation_angle(goal, eef) + 5 * float(np.linalg.norm(goal[:3, 3] - eef[:3, 3]))
        cost += 20 * _beyond_reach(carry, source, begin, end, config, base)
        if len(closing) and others and config.finger_room:
            grip = carry @ source.eef_pose[begin + closing[0]]
            for side in (-FINGER_REACH, FINGER_REACH):
                finger = grip[:2, 3] + side * grip[:2, 0]
                room = min(float(np.linalg.norm(finger - o)) for o in others)
                cost += 100 * max(0.0, config.finger_room - room)
        return cost

    turns = [turn_z(2 * np.pi * k / subtask.symmetry) for k in range(subtask.symmetry)]
    return min((now @ turn @ invert(then) for turn in turns), key=cost)


def _beyond_reach(carry, source: SourceDemo, begin, end, config, base) -> float:
    """How far the adapted segment exceeds `reach` from the robot's base [m]."""
    if not config.reach:
        return 0.0
    way = (carry @ source.eef_pose[begin:end])[:, :2, 3]
    return max(0.0, float(np.linalg.norm(way - base[:2], axis=1).max()) - config.reach)


def _idle(source: SourceDemo, t: int) -> bool:
    if t and source.gripper[t] != source.gripper[t - 1]:
        return False
    delta = delta_between(source.eef_pose[t], source.target_pose[t])
    moving = np.abs(delta[:3]).max() > 1e-4 or np.abs(delta[3:]).max() > 1e-3
    closing = t and (source.gripper[max(0, t - 12) : t + 1] != source.gripper[t]).any()
    return not moving and not closing
