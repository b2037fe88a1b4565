"""What a model that reasons is to write before it acts, from what the simulator knew.

The fields are those of `vla_inference.policies.reasoning`: the task in plain words, the objects'
boxes, the subtask, the next move and where the gripper is in the image. All of it follows from
poses, so that the same image has a text for the opposite instruction as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_inference.errors import DataError
from vla_inference.policies.reasoning import Reasoning
from vla_sim_bridge.tasks import TASKS, Scene, Task
from vla_training.small_model.auxiliary_targets import colours_of, other_order, recorded_scene

# robosuite's camera "agentview" on its table: position in m, rotation w x y z.
USUAL_VIEW = (0.5, 0.0, 1.35), (0.653, 0.271, 0.271, 0.653)
FOVY = np.deg2rad(45)
SIDE = 256  # pixels that boxes and positions are said in, whatever the image's size
HALF = 0.0225  # m, of a block
NEAR = 0.02  # m
AXES = (("forward", "back"), ("left", "right"), ("up", "down"))
MOST = 192  # tokens of a text


class View:
    """Where things are in the image of a camera. position: m; rotation: quaternion w x y z."""

    def __init__(self, position: Sequence[float], rotation: Sequence[float]):
        self.position = np.array(position)
        w, x, y, z = np.array(rotation) / np.linalg.norm(rotation)
        self.axes = np.array(  # of the camera in the world: right, up, back
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)],
                [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)],
                [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)],
            ]
        )

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Points in the world [..., 3] m -> column and row [..., 2], 0 to 255."""
        right, up, back = np.moveaxis((points - self.position) @ self.axes.T, -1, 0)
        scale = SIDE / 2 / np.tan(FOVY / 2) / np.maximum(-back, 1e-3)
        seen = np.stack([SIDE / 2 + scale * right, SIDE / 2 - scale * up], -1)
        return np.clip(np.round(seen), 0, SIDE - 1).astype(int)

    def box(self, place: np.ndarray) -> np.ndarray:
        """A block's centre [T, 3] -> left, top, right, bottom [T, 4]."""
        corners = np.stack(np.meshgrid(*[[-HALF, HALF]] * 3), -1).reshape(8, 1, 3)
        seen = self.pixels(place + corners)
        return np.concatenate([seen.min(0), seen.max(0)], -1)


def view_of(task: Task) -> View:
    """The task's agentview, as long as nobody moves it."""
    return View(*task.camera_poses.get("agentview", USUAL_VIEW))


def direction(way: np.ndarray) -> str:
    """The way still to go [3] m, in words: its largest parts; empty: there."""
    far = np.abs(way) > np.maximum(NEAR, 0.4 * np.abs(way).max())
    return ", ".join(
        words[int(part < 0)] for part, words, is_far in zip(way, AXES, far, strict=True) if is_far
    )


def thoughts_of(group) -> tuple[list[str], list[str] | None]:
    """A text for each step of a demonstration in HDF5, and for the opposite instruction, if there
    is one. DataError where the simulator's record lacks what they say."""
    scene, info = recorded_scene(group), group.get("datagen_info")
    task = TASKS.get(group.attrs.get("task", ""))
    told = None if task is None or scene is None or scene.words else colours_of(task, scene)
    if task is None or scene is None or info is None or told is None:
        raise DataError(
            f"{group.name} lacks the poses or colours that a reasoning is made of",
            "generate two-block tasks with `vla generate`, such as Stack_L",
        )
    if "camera" in group.attrs.get("randomized", ""):
        raise DataError(
            f"{group.name} was seen by a camera that was moved at random",
            "generate without --randomize camera, or train without --reasoning",
        )
    ends = [s.object for s in task.subtasks[:2]]
    if missing := set(ends) - set(info["object_poses"]):
        raise DataError(f"{group.name} lacks the pose of {missing.pop()}", "generate it anew")
    own = _texts(group, task, scene, ends, taken=True)
    if other_order(scene) is None:
        return own, None
    return own, _texts(group, task, scene, ends[::-1], taken=False)


def _texts(group, task: Task, scene: Scene, ends: Sequence[str], taken: bool) -> list[str]:
    """ends: what is lifted, and on what it goes. taken: whether the recorded arm takes it."""
    info = group["datagen_info"]
    poses = {name: pose[:, :3, 3] for name, pose in info["object_poses"].items()}
    first, second = ends
    colours = {name: scene.colours.get(scene.roles.get(name, name)) for name in poses}
    names = {name: f"{colour} block" if colour else name for name, colour in colours.items()}
    eef, n = info["eef_pose"][:, :3, 3], len(info["eef_pose"])
    signals = info["subtask_term_signals"][task.subtasks[0].signal][:].astype(bool)
    held = np.maximum.accumulate(signals) & taken
    view = view_of(task)
    hand, boxes = view.pixels(eef), {name: view.box(pose) for name, pose in poses.items()}
    texts = []
    for t in range(n):
        goal = poses[second][t] + [0, 0, 2 * HALF] if held[t] else poses[first][t]
        move = direction(goal - eef[t]) or ("open" if held[t] else "close")
        does = "carry it to" if held[t] else "reach"
        reasoning = Reasoning(
            task=f"put the {names[first]} on the {names[second]}",
            visible_objects=", ".join(f"{names[o]} {b[t].tolist()}" for o, b in boxes.items()),
            subtask=f"{does} the {names[second if held[t] else first]}",
            move=move,
            gripper_position=str(hand[t].tolist()),
        )
        texts.append(reasoning.text())
    return texts
