"""Reads image files as uint8 [H, W, 3] RGB."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vla_inference.errors import ObservationError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
MODES = ("RGB", "RGBA", "L", "LA", "P", "1")
# A compressed image may claim any size; more than this is a mistake or an attack.
MAX_PIXELS = 64_000_000
START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # of JPEG


def check_size(width: int, height: int, name: str) -> None:
    """Refuses an image by the size in its header, before memory is allocated.

    Raises ObservationError.
    """
    if width * height > MAX_PIXELS:
        raise ObservationError(
            f"{name} claims {width}x{height} pixels",
            f"send at most {MAX_PIXELS // 1_000_000} megapixels",
        )


def check_header(data: bytes, name: str) -> None:
    """`check_size` of JPEG or PNG data from its header, before any decoder.

    Raises ObservationError; data of no known form, or cut in its header, is left to the decoder.
    """
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        check_size(width, height, name)
    elif data[:2] == b"\xff\xd8":
        at = 2
        while at + 9 <= len(data) and data[at] == 0xFF:
            marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
            if marker in START_OF_FRAME:
                height, width = struct.unpack(">HH", data[at + 5 : at + 9])
                check_size(width, height, name)
                return
            at += 1 if marker == 0xFF else 2 + length  # fill bytes may come before a marker


def to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """An opened image's pixels; drops transparency and refuses 16 bits, CMYK and huge images."""
    check_size(image.width, image.height, name)
    if image.mode not in MODES:
        raise ObservationError(f"{name}'s colour mode is {image.mode}", "send 8-bit RGB or grey")
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        image = image.convert("RGBA")  # so that transparency is dropped, not blended
    return np.array(image.convert("RGB"))


def read_image(path: Path) -> np.ndarray:
    """Reads an image file, rotated upright by its EXIF data."""
    try:
        with Image.open(path) as image:
            if image.mode not in MODES or image.width * image.height > MAX_PIXELS:
                return to_rgb(image, str(path))  # says why not
            return to_rgb(ImageOps.exif_transpose(image), str(path))
    except ObservationError:
        raise
    except FileNotFoundError:
        raise ObservationError(f"there is no image {path}", "check the path") from None
    except Exception as error:  # Pillow raises all kinds on broken data
        raise ObservationError(
            f"{path} cannot be read as an image ({type(error).__name__}: {error})",
            "give a whole JPEG or PNG file",
        ) from error
