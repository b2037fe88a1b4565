"""Observations from what people have at hand: arrays, Pillow images, paths of image files.

For calls from Python alone: code that takes images from a network must not open what they name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from vla_inference.errors import ObservationError
from vla_inference.inputs.image_files import read_image, to_rgb
from vla_inference.types import Observation

ImageLike: TypeAlias = "np.ndarray | Image.Image | str | os.PathLike[str]"
Seen: TypeAlias = "Observation | ImageLike | Mapping[str, Any]"


def as_observation(
    given: Seen, instruction: str | None = None, state: np.ndarray | None = None
) -> Observation:
    """An observation of one image, of several by camera name, or of what a Gymnasium
    environment of ours returns ("images", "instruction", "state").

    instruction, state: replace those of an `Observation` that was given.
    """
    if isinstance(given, Mapping) and isinstance(given.get("images"), Mapping):
        given = Observation(given["images"], given.get("instruction", ""), given.get("state"))
    if isinstance(given, Observation):
        if instruction is None and state is None:
            return given
        return replace(
            given,
            instruction=given.instruction if instruction is None else instruction,
            state=given.state if state is None else np.asarray(state, np.float32),
        )
    images = given if isinstance(given, Mapping) else {"image": given}
    return Observation(
        {name: as_image(image, name) for name, image in images.items()},
        instruction or "",
        None if state is None else np.asarray(state, np.float32),
    )


def as_image(given: ImageLike, name: str = "image") -> np.ndarray:
    """uint8 [H, W, 3] RGB of an image; arrays are returned unchanged, and checked by policies."""
    if isinstance(given, np.ndarray):
        return given
    if isinstance(given, Image.Image):
        return to_rgb(given, name)
    if isinstance(given, (str, os.PathLike)):
        return read_image(Path(given))
    raise ObservationError(
        f"{name} is a {type(given).__name__}",
        "give an Observation, a numpy array, a Pillow image or the path of an image file, or "
        "these by camera name",
    )
