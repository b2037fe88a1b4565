"""ROS image messages <-> numpy pictures (uint8 [H, W, 3] RGB), without cv_bridge."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Pillow

from vla_inference.errors import ObservationError
from vla_inference.pictures import to_rgb

if TYPE_CHECKING:
    from sensor_msgs.msg import CompressedImage, Image

# encoding -> channels, and which of them are red, green and blue
ENCODINGS: dict[str, tuple[int, tuple[int, int, int]]] = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
}


def image_to_rgb(msg: Image) -> np.ndarray:
    """The picture of a sensor_msgs/Image, uint8 [H, W, 3]; may share the message's memory.

    Raises ObservationError for encodings other than 8-bit colour or grey, and for messages whose
    size does not fit their data.
    """
    if msg.encoding not in ENCODINGS:
        raise ObservationError(
            f"the picture's encoding is {msg.encoding!r}",
            f"publish one of {', '.join(ENCODINGS)} (image_proc or the camera driver converts)",
        )
    channels, order = ENCODINGS[msg.encoding]
    h, w, step = msg.height, msg.width, msg.step
    if not h or not w:
        raise ObservationError(f"the picture is {w}x{h} pixels", "check the camera")
    if step < w * channels:
        raise ObservationError(
            f"a row of {w} {msg.encoding} pixels takes {w * channels} bytes, `step` says {step}",
            "mend the publisher",
        )
    flat = np.frombuffer(msg.data, np.uint8)
    # The padding after the last row is left out by some drivers.
    shortest = step * (h - 1) + w * channels
    if not shortest <= flat.size <= step * h:
        raise ObservationError(
            f"a {w}x{h} picture with rows of {step} bytes has {step * h} bytes, "
            f"this one {flat.size}",
            "mend the publisher",
        )
    pixels = np.lib.stride_tricks.as_strided(
        flat, (h, w, channels), (step, channels, 1), writeable=False
    )
    if channels == 1:
        return np.repeat(pixels, 3, axis=2)
    pixels = pixels[..., :3] if order == (0, 1, 2) else pixels[..., 2::-1]
    return np.ascontiguousarray(pixels)


def compressed_to_rgb(msg: CompressedImage) -> np.ndarray:
    """The picture of a sensor_msgs/CompressedImage in JPEG or PNG, uint8 [H, W, 3]."""
    if "compresseddepth" in msg.format.lower():
        raise ObservationError(
            f"the picture is a depth picture ({msg.format!r})", "subscribe to the colour camera"
        )
    try:
        picture = Pillow.open(io.BytesIO(bytes(msg.data)), formats=("JPEG", "PNG"))
        return to_rgb(picture, "the compressed picture")
    except ObservationError:
        raise
    except Exception as error:  # Pillow raises all kinds on broken data
        raise ObservationError(
            f"the compressed picture ({msg.format!r}, {len(msg.data)} bytes) cannot be decoded "
            f"({type(error).__name__}: {error})",
            "send whole JPEG or PNG data",
        ) from error


def rgb_to_image(picture: np.ndarray, stamp=None, frame_id: str = "") -> Image:
    """A sensor_msgs/Image in rgb8 from uint8 [H, W, 3].

    stamp: builtin_interfaces/Time.
    """
    from sensor_msgs.msg import Image

    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ObservationError(
            f"a picture has dtype {picture.dtype} and shape {picture.shape}",
            "give uint8 height x width x 3",
        )
    msg = Image(encoding="rgb8", height=picture.shape[0], width=picture.shape[1])
    msg.step = picture.shape[1] * 3
    msg.header.frame_id = frame_id
    if stamp is not None:
        msg.header.stamp = stamp
    # Ten times faster than assigning an array or bytes, which rclpy converts item by item.
    msg.data.frombytes(memoryview(np.ascontiguousarray(picture)).cast("B"))
    return msg


def rgb_to_compressed(
    picture: np.ndarray, stamp=None, frame_id: str = "", quality: int | None = 90
) -> CompressedImage:
    """A sensor_msgs/CompressedImage: JPEG of that quality, or PNG where it is None."""
    from sensor_msgs.msg import CompressedImage

    kind = "png" if quality is None else "jpeg"
    buffer = io.BytesIO()
    options = {} if quality is None else {"quality": quality}
    Pillow.fromarray(picture).save(buffer, kind, **options)
    msg = CompressedImage(format=f"rgb8; {kind} compressed bgr8")
    msg.header.frame_id = frame_id
    if stamp is not None:
        msg.header.stamp = stamp
    msg.data.frombytes(buffer.getvalue())
    return msg
