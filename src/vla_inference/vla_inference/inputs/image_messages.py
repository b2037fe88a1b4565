"""Converts ROS image messages to uint8 [H, W, 3] RGB.

One table for the live node, the recorder and the bag reader, so that what one of them reads the
others read as well. Any object with the fields of sensor_msgs/Image or CompressedImage will do.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image as Pillow

from vla_inference.errors import ObservationError
from vla_inference.inputs.image_files import check_header, to_rgb


class RawImage(Protocol):
    """The fields of sensor_msgs/Image that are used. data: a buffer of bytes."""

    encoding: str
    height: int
    width: int
    step: int
    is_bigendian: int
    data: Any


class PackedImage(Protocol):
    """The fields of sensor_msgs/CompressedImage that are used. data: a buffer of bytes."""

    format: str
    data: Any


@dataclass(frozen=True)
class Encoding:
    """Memory layout of an encoding's pixels, and its conversion to RGB.

    samples: per pixel in a row. take: which of them are red, green and blue; else convert: name of
    OpenCV's conversion. wide: 16 bits a sample, of which the upper 8 are used. even: width and
    height must be even. planes: rows of data for two rows of pixels (3: colour in a half plane).
    """

    samples: int
    take: tuple[int, int, int] | None = None
    convert: str = ""
    wide: bool = False
    even: tuple[bool, bool] = (False, False)
    planes: int = 2


RGB, BGR, GREY = (0, 1, 2), (2, 1, 0), (0, 0, 0)
PAIRS, BLOCKS = (True, False), (True, True)
# Generic types (8UC3) are in OpenCV's order; OpenCV names a Bayer pattern by its second row.
ENCODINGS: dict[str, Encoding] = {
    "rgb8": Encoding(3, RGB),
    "bgr8": Encoding(3, BGR),
    "rgba8": Encoding(4, RGB),
    "bgra8": Encoding(4, BGR),
    "mono8": Encoding(1, GREY),
    "8UC1": Encoding(1, GREY),
    "8UC3": Encoding(3, BGR),
    "8UC4": Encoding(4, BGR),
    "rgb16": Encoding(3, RGB, wide=True),
    "bgr16": Encoding(3, BGR, wide=True),
    "rgba16": Encoding(4, RGB, wide=True),
    "bgra16": Encoding(4, BGR, wide=True),
    "bayer_rggb8": Encoding(1, convert="BayerBG2RGB", even=BLOCKS),
    "bayer_bggr8": Encoding(1, convert="BayerRG2RGB", even=BLOCKS),
    "bayer_gbrg8": Encoding(1, convert="BayerGR2RGB", even=BLOCKS),
    "bayer_grbg8": Encoding(1, convert="BayerGB2RGB", even=BLOCKS),
    "uyvy": Encoding(2, convert="YUV2RGB_UYVY", even=PAIRS),
    "yuv422": Encoding(2, convert="YUV2RGB_UYVY", even=PAIRS),
    "yuyv": Encoding(2, convert="YUV2RGB_YUY2", even=PAIRS),
    "yuv422_yuy2": Encoding(2, convert="YUV2RGB_YUY2", even=PAIRS),
    "nv12": Encoding(1, convert="YUV2RGB_NV12", even=BLOCKS, planes=3),
    "nv21": Encoding(1, convert="YUV2RGB_NV21", even=BLOCKS, planes=3),
}
# One number a pixel of more than 8 bits: a distance, or grey of unknown depth (infrared).
DEEP = ("mono16", "16UC1", "16SC1", "32SC1", "32FC1", "64FC1")
VIDEO = ("h264", "h265", "hevc", "vp9", "av1")
UNPACK_VIDEO = (
    "unpack it into images with `ros2 run image_transport republish` (input transport ffmpeg or "
    "foxglove) while the bag plays, and record those"
)


@dataclass
class _Plain:
    """An image without padding, as bytes."""

    encoding: str
    height: int
    width: int
    step: int
    data: np.ndarray
    is_bigendian: int = 0


def refusal(encoding: str) -> ObservationError | None:
    """Why images in an encoding cannot be read; None: they can."""
    if encoding in ENCODINGS:
        return None
    problem = f"the image's encoding is {encoding!r}"
    if encoding in DEEP:
        return ObservationError(
            f"{problem}: depth or infrared of more than 8 bits, no image that a model sees",
            f"take the colour camera, or publish one of {', '.join(ENCODINGS)}",
        )
    return ObservationError(
        problem,
        f"publish one of {', '.join(ENCODINGS)} (image_proc or the camera driver converts)",
    )


def packed_refusal(form: str) -> ObservationError | None:
    """Why images of a CompressedImage's `format` cannot be read; None: they may be."""
    kind = form.lower()
    if "compresseddepth" in kind:
        return ObservationError(f"the image is a depth image ({form!r})", "take the colour camera")
    source, _, rest = form.partition(";")
    if rest and source.strip() in DEEP:
        return refusal(source.strip())
    if any(name in kind.replace(".", "") for name in VIDEO):
        return ObservationError(f"the image is a packet of video ({form!r})", UNPACK_VIDEO)
    return None


def image_to_rgb(msg: RawImage) -> np.ndarray:
    """The pixels of a raw image, uint8 [H, W, 3]; may share the message's memory.

    Raises ObservationError for encodings that are not in the table, and for messages whose size
    does not fit their data.
    """
    refused = refusal(msg.encoding)
    if refused is not None:
        raise refused
    encoding = ENCODINGS[msg.encoding]
    pixels = _samples(msg, encoding)
    if encoding.wide:
        wide = np.ascontiguousarray(pixels).view(">u2" if msg.is_bigendian else "<u2")
        pixels = (wide >> 8).astype(np.uint8)
    if encoding.take is None:
        return _convert(pixels, encoding.convert, msg.encoding)
    if encoding.take == GREY:
        return np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3] if encoding.take == RGB else pixels[..., 2::-1])


def _samples(msg: RawImage, encoding: Encoding) -> np.ndarray:
    """uint8 [rows, W, bytes of a pixel]: the rows without their padding."""
    h, w, step = msg.height, msg.width, msg.step
    if not h or not w:
        raise ObservationError(f"the image is {w}x{h} pixels", "check the camera")
    if (encoding.even[0] and w % 2) or (encoding.even[1] and h % 2):
        raise ObservationError(
            f"an image of {w}x{h} pixels cannot be in {msg.encoding}", "fix the publisher"
        )
    size = encoding.samples * (2 if encoding.wide else 1)
    if step < w * size:
        raise ObservationError(
            f"a row of {w} {msg.encoding} pixels takes {w * size} bytes, `step` says {step}",
            "fix the publisher",
        )
    flat, rows = np.frombuffer(msg.data, np.uint8), h * encoding.planes // 2
    # The padding after the last row is left out by some drivers.
    if not step * (rows - 1) + w * size <= flat.size <= step * rows:
        raise ObservationError(
            f"a {w}x{h} image in {msg.encoding} with rows of {step} bytes has {step * rows} "
            f"bytes, this one {flat.size}",
            "fix the publisher",
        )
    return np.lib.stride_tricks.as_strided(flat, (rows, w, size), (step, size, 1), writeable=False)


def _convert(pixels: np.ndarray, code: str, encoding: str) -> np.ndarray:
    try:
        import cv2
    except ImportError as error:
        raise ObservationError(
            f"images in {encoding} need OpenCV", "install python3-opencv, or publish rgb8"
        ) from error
    pixels = np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return cv2.cvtColor(pixels, getattr(cv2, f"COLOR_{code}"))


def compressed_to_rgb(msg: PackedImage) -> np.ndarray:
    """The pixels of a compressed image (JPEG or PNG), uint8 [H, W, 3]; raises ObservationError."""
    refused = packed_refusal(msg.format)
    if refused is not None:
        raise refused
    try:
        data = bytes(msg.data)
        check_header(data, "the compressed image")
        opened = Pillow.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        found = to_rgb(opened, "the compressed image")
    except ObservationError:
        raise
    except Exception as error:  # Pillow raises all kinds on broken data
        raise ObservationError(
            f"the compressed image ({msg.format!r}, {len(msg.data)} bytes) cannot be decoded "
            f"({type(error).__name__}: {error})",
            "send whole JPEG or PNG data",
        ) from error
    source = msg.format.partition(";")[0].strip()
    if source.startswith("bayer_") and opened.mode == "L":
        # image_transport compresses what comes from the sensor as a grey image
        height, width = found.shape[:2]
        return image_to_rgb(_Plain(source, height, width, width, found[..., 0].ravel()))
    return found
