"""Observation maps: which message key is which image or part of the state.

Each is a file in `maps/`. A server reads observations by it, a client writes them; the actions
that it says are the units and the gripper's polarity on the wire.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from vla_inference.errors import ObservationError, VlaError
from vla_inference.inputs.image_files import MAX_PIXELS, check_header, to_rgb
from vla_inference.policies.action_specs import spec_from_json
from vla_inference.policies.base import Needs
from vla_inference.serving.openpi.wire import WireError
from vla_inference.types import ActionSpec, Observation, check_image, check_instruction

FOLDER = Path(__file__).parent / "maps"
PROMPTS = ("prompt", "instruction")
PACKED = (b"\xff\xd8", b"\x89PNG\r\n\x1a\n")  # how JPEG and PNG begin
Key = tuple[str, ...]  # of a map in a map


@dataclass(frozen=True)
class ObservationMap:
    """images: keys in the policy's order; none: as received (map free).

    state: keys and how many numbers each has. layout: axes of the images, "hwc" or "chw".
    size: height and width that published servers want. chunk: steps that they answer with.
    execute: how many of them published clients execute before they ask again; 0: not said.
    mirrored: the model was trained with images that are mirrored left to right, as LIBERO's
        published ones are (turned by 180 degrees in OpenGL's order of rows). Who renders the
        images mirrors them; `read` and `write` leave them as they are.
    spec: of the actions on the wire; None: the policy's own.
    """

    name: str
    images: tuple[Key, ...] = ()
    state: tuple[tuple[Key, int], ...] = ()
    prompt: str = "prompt"
    layout: str = "hwc"
    size: tuple[int, int] | None = None
    chunk: int = 0
    execute: int = 0
    mirrored: bool = False
    spec: ActionSpec | None = None

    @classmethod
    def load(cls, name: str) -> ObservationMap:
        """A map in `map_names()`, or from a file in the same form."""
        path = FOLDER / f"{name}.yaml" if name in map_names() else Path(name)
        try:
            raw = yaml.safe_load(path.read_text())
        except (OSError, ValueError, yaml.YAMLError):
            raise VlaError(
                f"there is no observation map {name!r}",
                f"known: {', '.join(map_names())}, or a file in their form",
            ) from None
        try:
            return cls._read(path.stem, raw)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise VlaError(f"observation map {path} is wrong ({error})", "see maps/") from error

    @classmethod
    def _read(cls, name: str, raw: Mapping) -> ObservationMap:
        actions = raw.get("actions")
        return cls(
            name=name,
            images=tuple(map(tuple, raw.get("images", ()))),
            state=tuple((tuple(part["key"]), int(part["size"])) for part in raw.get("state", ())),
            prompt=raw["prompt"],
            layout=raw.get("layout", "hwc"),
            size=tuple(raw["size"]) if "size" in raw else None,
            chunk=raw.get("chunk", 0),
            execute=raw.get("execute", 0),
            mirrored=raw.get("mirrored", False),
            spec=spec_from_json(actions, f"map {name}") if actions else None,
        )

    @property
    def state_dim(self) -> int:
        return sum(size for _, size in self.state)

    def check(self, needs: Needs) -> None:
        """Refuses a policy that needs more inputs than this map provides."""
        if self.images and needs.history:
            raise VlaError(
                f"the model takes past images, map {self.name} has one of each camera",
                "choose another map, such as free, and send them as cameras of their own",
            )
        if self.images and needs.images > len(self.images):
            raise VlaError(
                f"the model takes {needs.images} images, map {self.name} has {len(self.images)}",
                "choose another map, such as free",
            )
        if self.images and needs.state not in (0, self.state_dim):
            raise VlaError(
                f"the model takes {needs.state} numbers of state, map {self.name} has "
                f"{self.state_dim}",
                "choose another map, such as free",
            )

    # -- a server reads -----------------------------------------------------------------------

    def read(self, message: Mapping[str, Any], needs: Needs, usual: str = "") -> Observation:
        """The observation in a message, for a policy with these needs; raises ObservationError.

        usual: instruction of a message that has none.
        """
        found = dict(_flat(message))
        images = self._images(found, needs)
        state = self._state(found, needs.state) if needs.state else None
        text = self._text(message) or usual
        return Observation(images, check_instruction(text), state)

    def _images(self, found: Mapping[Key, Any], needs: Needs) -> dict[str, np.ndarray]:
        keys = self.images or _image_keys(found)
        by_name = {key[-1]: key for key in keys}
        if needs.cameras and set(needs.cameras) <= set(by_name):
            keys = tuple(by_name[name] for name in needs.cameras)
        keys = keys[: needs.images]
        missing = [key for key in keys if key not in found]
        if missing or len(keys) < needs.images:
            named = f", {'/'.join(missing[0])} is missing" if missing else ""
            raise ObservationError(
                f"the model takes {needs.images} images, {len(keys) - len(missing)} came{named}",
                "send uint8 [H, W, 3] arrays, JPEG or PNG",
            )
        return {"/".join(key): read_image(found[key], "/".join(key)) for key in keys}

    def _state(self, found: Mapping[Key, Any], wanted: int) -> np.ndarray:
        """float32 [wanted]"""
        keys = [key for key, _ in self.state]
        if not self.images:
            keys = [key for key, value in found.items() if _is_vector(value)]
        missing = [key for key in keys if key not in found]
        if missing:
            raise ObservationError(f"{'/'.join(missing[0])} is missing", "send the robot's state")
        parts = [_numbers(found[key], "/".join(key)) for key in keys]
        state = np.concatenate([np.zeros(0, np.float32), *parts])
        if len(state) != wanted:
            raise ObservationError(
                f"the model takes {wanted} numbers of state, {len(state)} came",
                "send those that it was trained with",
            )
        return state

    def _text(self, message: Mapping[str, Any]) -> str:
        names = (self.prompt, *(() if self.images else PROMPTS))
        text = next((message[name] for name in names if name in message), "")
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        if isinstance(text, (list, tuple)) and len(text) == 1:
            (text,) = text
        if not isinstance(text, str):
            raise ObservationError(f"the prompt is a {type(text).__name__}", "send a sentence")
        return text

    # -- a client writes ----------------------------------------------------------------------

    def write(self, observation: Observation, size: tuple[int, int] | None) -> dict[str, Any]:
        """The message of an observation.

        size: height and width that images are brought to, keeping their aspect; None: as they
            are.
        """
        message: dict[str, Any] = {self.prompt: observation.instruction}
        keys = self.images or tuple(("images", name) for name in observation.images)
        if len(observation.images) > len(keys):
            raise ObservationError(
                f"{len(observation.images)} images are to be sent, map {self.name} has "
                f"{len(keys)}",
                "give fewer cameras",
            )
        for key, image in zip(keys, observation.images.values(), strict=False):
            image = check_image(image, "/".join(key))
            image = pad_to(image, size) if size else image
            _put(message, key, image.transpose(2, 0, 1) if self.layout == "chw" else image)
        if observation.state is not None:
            self._put_state(message, np.asarray(observation.state, np.float32))
        return message

    def _put_state(self, message: dict[str, Any], state: np.ndarray) -> None:
        parts = self.state if self.images else ((("state",), len(state)),)
        if sum(size for _, size in parts) != len(state):
            raise ObservationError(
                f"the state has {len(state)} numbers, map {self.name} takes {self.state_dim}",
                "name the parts of the state that it has",
            )
        for key, size in parts:
            _put(message, key, state[:size])
            state = state[size:]


def map_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def _flat(message: Mapping[str, Any], above: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Entries of a message and of the maps in it, by keys; no deeper."""
    for name, value in message.items():
        key = (*above, str(name))
        if isinstance(value, Mapping) and not above:
            yield from _flat(value, key)
        else:
            yield key, value


def _put(message: dict[str, Any], key: Key, value: Any) -> None:
    for name in key[:-1]:
        message = message.setdefault(name, {})
    message[key[-1]] = value


def _is_image(value: Any) -> bool:
    if isinstance(value, bytes):
        return value.startswith(PACKED)
    return isinstance(value, np.ndarray) and value.ndim >= 3


def _image_keys(found: Mapping[Key, Any]) -> tuple[Key, ...]:
    """Of all that look like images. Raises ObservationError where one was perhaps meant to be:
    another image must not take its place."""
    for key, value in found.items():
        strange = isinstance(value, bytes) and key[-1] not in PROMPTS
        strange |= isinstance(value, np.ndarray) and value.ndim == 2
        if strange and not _is_image(value):
            name = "/".join(key)
            raise ObservationError(f"{name} is neither image nor vector", "leave it out")
    return tuple(key for key, value in found.items() if _is_image(value))


def _is_vector(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 1


def _numbers(value: Any, name: str) -> np.ndarray:
    """float32 [n], finite"""
    try:
        with np.errstate(over="ignore"):  # what is too large is refused below
            numbers = np.atleast_1d(np.asarray(value, np.float32))
    except (TypeError, ValueError, OverflowError):
        raise ObservationError(f"{name} is not an array of numbers", "send one") from None
    if numbers.ndim != 1:
        raise ObservationError(f"{name} has shape {numbers.shape}", "send a vector")
    if not np.isfinite(numbers).all():
        raise ObservationError(f"{name} has numbers that are not finite", "check the sensor")
    return numbers


# -- images -----------------------------------------------------------------------------------


def read_image(value: Any, name: str) -> np.ndarray:
    """uint8 [H, W, 3] of what clients send: that, its axes CHW, floats 0 to 1, JPEG or PNG."""
    if isinstance(value, bytes):
        return _unpack_image(value, name)
    if not isinstance(value, np.ndarray):
        raise ObservationError(f"{name} is not an image", "send an array, JPEG or PNG")
    while value.ndim > 3 and value.shape[0] == 1:
        value = value[0]
    if value.size > 3 * MAX_PIXELS:
        raise ObservationError(f"{name} has shape {value.shape}", "send a smaller image")
    if value.ndim == 3 and value.shape[0] == 3 and value.shape[2] != 3:
        value = value.transpose(1, 2, 0)
    if value.dtype.kind == "f" and value.size:
        if not (np.isfinite(value).all() and value.min() >= 0 and value.max() <= 1):
            raise ObservationError(f"{name} has floats outside 0 to 1", "send uint8")
        value = (255 * value).astype(np.uint8)
    return check_image(np.ascontiguousarray(value), name)


def _unpack_image(data: bytes, name: str) -> np.ndarray:
    try:
        check_header(data, name)
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as opened:
            return check_image(to_rgb(opened, name), name)
    except ObservationError:
        raise
    except Exception as error:  # Pillow raises all kinds on broken data
        raise WireError(f"{name} is not an image", "send whole JPEG or PNG data") from error


def pad_to(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image scaled to fit and centred on black of this height and width, bilinear."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    scale = max(image.shape[1] / width, image.shape[0] / height)
    h, w = (min(int(n / scale), most) for n, most in zip(image.shape, size, strict=False))
    small = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))
    padded = np.zeros((height, width, 3), np.uint8)
    top, left = (height - h) // 2, (width - w) // 2
    padded[top : top + h, left : left + w] = small
    return padded
