"""Auxiliary training targets from the simulator: object poses, sentences, the opposite order.

Where only the sentence says which object is lifted, the arm gives the answer away as soon as it
moves, and a model that follows its own arm need not read. So the same image is asked about in
the other order as well: then nothing but the sentence tells the answers apart. A rover is asked
about other objects than the one that it drives to, and told what its expert would do.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np

from vla_sim_bridge.libero.language import paraphrases
from vla_sim_bridge.tasks import TASKS, Scene, Task
from vla_sim_bridge.tasks.stack import PALETTE

COLOURS = tuple(PALETTE)
NUMBERS = 9 + 3 * len(COLOURS)  # of a scene; behind them
NAMED = 2  # indices of colours, of what is lifted and of where it goes
SIZE = NUMBERS + NAMED
HALF_VIEW = np.deg2rad(33)  # of a rover's camera


def scene_numbers(
    eef: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    fingers: np.ndarray,
    colours: Sequence[str] | None = None,
) -> np.ndarray:
    """Targets for a stacking policy from image and instruction [T, SIZE], roughly unit scale.

    Gripper to the object to lift and from there to where it goes (each 3, in decimetres), the
    angle of the former in the gripper (cosine and sine of 4 times it), the opening of the
    fingers. Then the parts that this is put together from: for each colour from the gripper to
    what has it (3 each, NaN where nothing has), and the indices of the two objects' colours.

    eef, first, second: poses [T, 4, 4] in m; fingers: m, the mean of both [T]; colours: names in
    `COLOURS` of first and second, None where they have none.
    """

    def yaw(pose):
        return np.arctan2(pose[:, 1, 0], pose[:, 0, 0])

    turn = 4 * (yaw(first) - yaw(eef))
    ways = [10 * (pose[:, :3, 3] - eef[:, :3, 3]) for pose in (first, second)]
    numbers = np.full((len(eef), SIZE), np.nan, np.float32)
    numbers[:, :9] = np.column_stack(
        [ways[0], ways[1] - ways[0], np.cos(turn), np.sin(turn), 50 * fingers]
    )
    for i, colour in enumerate(colours or ()):
        index = COLOURS.index(colour)
        numbers[:, 9 + 3 * index : 12 + 3 * index] = ways[i]
        numbers[:, NUMBERS + i] = index
    return numbers


def colours_of(task: Task | None, scene: Scene | None) -> tuple[str, ...] | None:
    """Colours of the lifted object and of its goal, if they are constant."""
    if task is None or scene is None or task.colours != "episode" or len(task.subtasks) != 2:
        return None
    names = [scene.roles.get(s.object, s.object) for s in task.subtasks]
    found = tuple(scene.colours[name] for name in names if name in scene.colours)
    return found if len(found) == 2 else None


def scene_of(group, states: np.ndarray | None) -> np.ndarray | None:
    """The targets of every step [T, SIZE] of a demonstration, None if not recorded.

    Which objects it is about is the task's: by role, where only the sentence decides it.
    """
    info = group.get("datagen_info")
    if info is not None and "base_pose" in info:
        return _from_a_base(recorded_scene(group), recorded_places(group), info["base_pose"][:])
    if info is None or states is None or not len(info["object_poses"]):
        return None
    poses = {name: pose[:] for name, pose in info["object_poses"].items()}
    if goal := recorded_goal(group):
        return _placed(goal, poses, info["eef_pose"][:], states)
    first, second = _under_way(group, poses, info.get("subtask_term_signals", {}))
    colours = colours_of(TASKS.get(group.attrs.get("task", "")), recorded_scene(group))
    fingers = np.abs(states[:, 6:8]).mean(1)
    return scene_numbers(info["eef_pose"][:], first, second, fingers, colours)


def other_scene_of(group, states: np.ndarray | None) -> np.ndarray | None:
    """The targets of every step for an instruction with the opposite order [T, SIZE].

    NaN once the first object has been taken; None where there is no other order.
    """
    task, scene = TASKS.get(group.attrs.get("task", "")), recorded_scene(group)
    other = scene and other_order(scene)
    info = group.get("datagen_info")
    if task is None or other is None or info is None or states is None:
        return None
    if not set(other.roles) <= set(info.get("object_poses", ())):
        return None
    lifted, under = (info["object_poses"][s.object][:] for s in task.subtasks[:2])
    fingers = np.abs(states[:, 6:8]).mean(1)
    colours = colours_of(task, other)
    numbers = scene_numbers(info["eef_pose"][:], under, lifted, fingers, colours)
    taken = info["subtask_term_signals"][task.subtasks[0].signal][:].astype(bool)
    numbers[np.maximum.accumulate(taken)] = np.nan
    return numbers


def other_answers(group, count: int) -> dict[str, list | np.ndarray] | None:
    """What a rover's expert does from each frame on if another object is named, if recorded.

    text: T times `count` sentences; scene: targets [T, SIZE]; actions: [T, steps, 2].
    """
    info, drawn = group.get("datagen_info"), recorded_scene(group)
    if drawn is None or info is None or "other_actions" not in info:
        return None
    asked, poses, places = info["other_target"][:], info["base_pose"][:], recorded_places(group)
    said, numbers = {}, np.full((len(asked), SIZE), np.nan, np.float32)
    for i in np.unique(asked).tolist():
        scene = Scene(drawn.colours, {"target": list(drawn.colours)[i]})
        said[i] = wordings(group.attrs["task"], scene, count)
        here = asked == i
        numbers[here] = _from_a_base(scene, places, poses[here])
    return {
        "text": [said[i] for i in asked.tolist()],
        "scene": numbers,
        "actions": info["other_actions"][:],
    }


def recorded_goal(group) -> tuple[str, str] | None:
    """What is moved and the object it goes to, of a demonstration in LIBERO's scenes."""
    goals = json.loads(group.attrs.get("scene", "{}")).get("goal")
    if not goals:
        return None
    _, moved, target = goals[0]
    there = [name for name in group["datagen_info/object_poses"] if target.startswith(name)]
    return (moved, there[0]) if there else None


def _placed(goal: tuple[str, str], poses: dict, eef: np.ndarray, states: np.ndarray) -> np.ndarray:
    """As `scene_numbers`, without turns: grips depend on more than the object's."""
    moved, target = (poses[name] for name in goal)
    numbers = scene_numbers(eef, moved, target, np.abs(states[:, 6:8]).mean(1))
    numbers[:, 6:8] = np.nan
    return numbers


def recorded_places(group) -> dict[str, tuple[float, float]]:
    """Where each object of a rover's arena stands [2] m."""
    scene = json.loads(group.attrs["scene"])
    return {} if scene.get("walk") else scene["places"]  # who walks stands nowhere


def _from_a_base(scene: Scene | None, places: dict, poses: np.ndarray) -> np.ndarray | None:
    """As `scene_numbers`, of what a base that drives sees: x and y in its axes, in m.

    The first object is the target; NaN for what is out of sight. poses: m, m, rad [T, 3]. None
    where there is no target.
    """
    if scene is None or scene.roles.get("target") not in places:
        return None
    numbers = np.full((len(poses), SIZE), np.nan, np.float32)
    target = scene.roles["target"]
    numbers[:, :2] = _in_sight(places[target], poses)
    numbers[:, 2] = 0 * numbers[:, 0]  # on the floor; unknown where the target is out of sight
    numbers[:, NUMBERS] = COLOURS.index(scene.colours[target])
    for name, colour in scene.colours.items():
        if list(scene.colours.values()).count(colour) == 1:
            at = 9 + 3 * COLOURS.index(colour)
            numbers[:, at : at + 2] = _in_sight(places[name], poses)
    return numbers


def _in_sight(place: Sequence[float], poses: np.ndarray) -> np.ndarray:
    """[T, 2] m, from poses [T, 3]; NaN outside of the camera's field of view."""
    way, heading = np.asarray(place) - poses[:, :2], poses[:, 2]
    cos, sin = np.cos(heading), np.sin(heading)
    seen = np.column_stack([cos * way[:, 0] + sin * way[:, 1], cos * way[:, 1] - sin * way[:, 0]])
    seen[np.abs(np.arctan2(seen[:, 1], seen[:, 0])) > HALF_VIEW] = np.nan
    return seen


def recorded_scene(group) -> Scene | None:
    """Colours, roles and words from a demonstration's attributes."""
    if "scene" not in group.attrs:
        return None
    record = json.loads(group.attrs["scene"])
    return Scene(*(record.get(name, {}) for name in ("colours", "roles", "words")))


def other_order(scene: Scene) -> Scene | None:
    """The same scene with its two roles exchanged; None if it has no two, or if what is asked
    means nothing then."""
    if len(scene.roles) != 2 or scene.words:
        return None
    (one, first), (other, second) = scene.roles.items()
    return Scene(scene.colours, {one: second, other: first})


def wordings(task: str, scene: Scene | None, count: int, told: str = "") -> tuple[str, ...] | None:
    """`count` instructions for a scene, from the training grammar.

    told: the recorded one, which LIBERO's grammar goes by.
    Always the same for the same arguments. None where the scene was not recorded, or where a
    recorded sentence is not for a whole episode.
    """
    if task.startswith("libero"):
        return paraphrases(told, count)
    known = TASKS.get(task)
    if scene is None or known is None or known.language != "episode" or known.colours == "step":
        return None
    return _draw(task, *(tuple(part.items()) for part in vars(scene).values()), count=count)


@cache
def _draw(task: str, colours: tuple, roles: tuple, words: tuple, count: int) -> tuple[str, ...]:
    key = json.dumps([task, sorted(colours), sorted(roles), *([sorted(words)] if words else [])])
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    scene = Scene(dict(colours), dict(roles), dict(words))
    return tuple(TASKS[task].instruct(rng, scene, "train") for _ in range(count))


def _under_way(group, poses: dict[str, np.ndarray], signals) -> tuple[np.ndarray, np.ndarray]:
    """Poses [T, 4, 4] of each step's objects: the lifted one and its goal.

    A task's subtasks come in such pairs; the next pair begins when the one before has been done.
    """
    task = TASKS.get(group.attrs.get("task", ""))
    subtasks = task.subtasks if task else ()
    names = [s.object for s in subtasks] or sorted(poses)[:2]
    if not set(names) <= set(poses):
        names = sorted(poses)[:2]
    if len(names) < 2:
        names *= 2
    first, second = poses[names[0]].copy(), poses[names[1]].copy()
    for i in range(2, len(names) - 1, 2):
        done = signals.get(subtasks[i - 1].signal)
        if done is not None:
            later = np.maximum.accumulate(done[:].astype(bool))
            first[later], second[later] = poses[names[i]][later], poses[names[i + 1]][later]
    return first, second
