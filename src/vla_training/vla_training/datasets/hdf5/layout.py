"""Names of images and instructions in HDF5 files of robomimic's layout.

robomimic, MimicGen, RoboCasa: `obs/NAME_image`, upright. LIBERO: `obs/NAME_rgb`, bottom row first,
its published files with the observation that followed an action beside it. Isaac Lab: any name.
Sentences stand in one of many places, or nowhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vla_inference.errors import DataError

SUFFIXES = ("_image", "_rgb")
# Of a demonstration or of all, as datasets or attributes.
SENTENCES = (
    "instructions",
    "language_instruction",
    "language_instructions",
    "instruction",
    "natural_language_instruction",
    "language_raw",
    "language",
    "lang",
    "task_description",
)
JSON_SENTENCES = (("ep_meta", "lang"), ("problem_info", "language_instruction"))
LIBERO_CAMERAS = {"agentview_rgb", "eye_in_hand_rgb"}
SCENE = re.compile(r"^.*SCENE\d+_")
PERTURBED = re.compile(r"libero_(spatial|object|goal|10)_")  # LIBERO-PRO's suites


def find_cameras(demo: h5py.Group) -> dict[str, str]:
    """Key of each camera in the demonstration; robosuite's third-person views first.

    A camera is what its name says to be one, and any uint8 [T, H, W, 3].
    """
    found: dict[str, str] = {}
    for key, data in demo.get("obs", {}).items():
        if not isinstance(data, h5py.Dataset):
            continue
        suffix = next((s for s in SUFFIXES if key.endswith(s)), "")
        images = data.dtype == np.uint8 and data.ndim == 4 and data.shape[-1] == 3
        if images or suffix == SUFFIXES[0]:
            name = key.removesuffix(suffix)
            found[key if name in found else name] = f"obs/{key}"
    order = sorted(found, key=lambda name: (name != "agentview", "agentview" not in name, name))
    return {name: found[name] for name in order}


def find_upside_down(data: h5py.Group, demo: h5py.Group) -> tuple[bool, str]:
    """Whether images are upside down, and a note if that is not stated.

    LIBERO states it. What was made of LIBERO's files often has lost the statement.
    """
    stated = data.attrs.get("macros_image_convention")
    if stated is not None:
        return _text(stated) == "opengl", ""
    if is_libero(demo):
        return True, (
            "the cameras are LIBERO's and nothing states which row is first: taken for the bottom "
            "one, and turned upright (else give --read upside_down=false)"
        )
    return False, ""


def observed_late(demo: h5py.Group) -> bool:
    """Whether a row of LIBERO's `obs` was seen after that row's action, as in its published files.

    Told by the arm's joints, which also stand in the simulator's `states`, from before the action:
    time, positions (the arm's seven first), velocities.
    """
    joints, states = demo.get("obs/joint_states"), demo.get("states")
    if not is_libero(demo) or not (
        isinstance(joints, h5py.Dataset) and isinstance(states, h5py.Dataset)
    ):
        return False
    seen, before = joints[:], states[:, 1:8]
    if seen.shape != before.shape or len(seen) < 2:
        return False
    same, next_one = np.abs(seen - before), np.abs(seen[:-1] - before[1:])
    return bool(next_one.mean() < same.mean())


def is_libero(demo: h5py.Group) -> bool:
    return set(demo.get("obs", {})) >= LIBERO_CAMERAS


def find_instructions(data: h5py.Group, demo: h5py.Group, length: int) -> list[str] | None:
    """An instruction for each step; None if there are none. Raises DataError for another
    number."""
    where, texts = _find_texts(data, demo)
    if texts and len(texts) not in (1, length):
        raise DataError(
            f"{where} has {len(texts)} entries for {length} actions",
            "give one sentence for all steps, or one for each",
        )
    return (texts * length if len(texts) == 1 else texts) or None


def has_instructions(data: h5py.Group, demo: h5py.Group) -> bool:
    return bool(_find_texts(data, demo)[1])


def _find_texts(data: h5py.Group, demo: h5py.Group) -> tuple[str, list[str]]:
    """The first place that contains an instruction, and its content.

    LIBERO's files state the sentence of the task's definition; models are trained and tested with
    that of the file's name, except in LIBERO-PRO, which keeps the names.
    """
    places = [g for g in (demo, demo.get("obs"), data, data.file) if isinstance(g, h5py.Group)]
    file = data.file.filename
    named = _by_filename(Path(file)) if is_libero(demo) else []
    if named and not _perturbed(data):
        found = [*_stated(places[:1]), (file, named)]
    else:
        found = [*_stated(places), (file, named)]
    for where, value in found:
        texts = [_text(v) for v in np.asarray(value, object).ravel()]
        if any(t.strip() for t in texts):
            return where, texts
    return file, []


def _perturbed(data: h5py.Group) -> bool:
    """Whether the file names a suite whose sentences differ from its tasks' names."""
    definition = Path(_text(data.attrs.get("bddl_file_name", "")))
    return PERTURBED.match(definition.parent.name) is not None


def _stated(places: Sequence[h5py.Group]) -> Iterator[tuple[str, Any]]:
    """Place and value of every possible instruction, the most specific first."""
    for group in places:
        file = group.file.filename
        for name in SENTENCES:
            item = group.get(name)
            if isinstance(item, h5py.Dataset) and _is_text(item.dtype):
                yield f"{file}: {item.name}", item[()]
            if name in group.attrs and _is_text(np.asarray(group.attrs[name]).dtype):
                yield f"{file}: attribute {name} of {group.name}", group.attrs[name]
        for name, key in JSON_SENTENCES:
            if name in group.attrs:
                yield f"{file}: attribute {name} of {group.name}", _member(group, name, key)


def _member(group: h5py.Group, name: str, key: str) -> str:
    """A text in a JSON object in an attribute; LIBERO's own readers parse it as well."""
    text = _text(group.attrs[name])
    try:
        found = json.loads(text)[key]
    except (ValueError, TypeError, KeyError):
        return ""
    return " ".join(found) if isinstance(found, list) else str(found)


def _by_filename(path: Path) -> list[str]:
    if not path.stem.endswith("_demo"):
        return []
    words = sentence_of(path.stem.removesuffix("_demo"))
    return [words] if " " in words else []


def sentence_of(name: str) -> str:
    """LIBERO's tasks are named by their instruction: KITCHEN_SCENE3_turn_on_the_stove."""
    return SCENE.sub("", name).replace("_", " ").strip()


def find_embeddings(demo: h5py.Group) -> list[str]:
    """Names of data that contain instructions only as numbers, which cannot be read back."""
    found: list[str] = []

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and "lang" in name.lower() and item.dtype.kind == "f":
            found.append(name)

    demo.visititems(visit)
    return found


def _is_text(dtype: np.dtype) -> bool:
    return dtype.kind in "SUO"


def _text(value: Any) -> str:
    return value.decode("utf-8").rstrip("\0") if isinstance(value, bytes) else str(value)
