"""Names of images and instructions in HDF5 files of robomimic's layout.

robomimic, MimicGen, RoboCasa: `obs/NAME_image`, upright. LIBERO: `obs/NAME_rgb`, bottom row first.
Isaac Lab: any name. Sentences stand in one of many places, or nowhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
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
    if set(demo.get("obs", {})) >= LIBERO_CAMERAS:
        return True, (
            "the cameras are LIBERO's and nothing states which row is first: taken for the bottom "
            "one, and turned upright (else give --read upside_down=false)"
        )
    return False, ""


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
    """The first place that contains an instruction, and its content."""
    for where, value in _stated(data, demo):
        texts = [_text(v) for v in np.asarray(value, object).ravel()]
        if any(t.strip() for t in texts):
            return where, texts
    file = data.file.filename
    libero = set(demo.get("obs", {})) >= LIBERO_CAMERAS
    return file, _by_filename(Path(file)) if libero else []


def _stated(data: h5py.Group, demo: h5py.Group) -> Iterator[tuple[str, Any]]:
    """Place and value of every possible instruction, the most specific first."""
    file = data.file.filename
    places = (demo, demo.get("obs"), data, data.file)
    for group in (g for g in places if isinstance(g, h5py.Group)):
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
    """LIBERO's files are named by their instruction:
    KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5."""
    if not path.stem.endswith("_demo"):
        return []
    words = SCENE.sub("", path.stem).removesuffix("_demo").replace("_", " ").strip()
    return [words] if " " in words else []


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
