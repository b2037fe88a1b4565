"""Picture files to what a model may see: uint8 [H, W, 3] RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vla_inference.errors import ObservationError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
MODES = ("RGB", "RGBA", "L", "LA", "P", "1")
# A compressed picture may claim any size; more than this is a mistake or an attack.
MAX_PIXELS = 64_000_000


def to_rgb(picture: Image.Image, name: str) -> np.ndarray:
    """An opened picture's pixels; transparency is dropped. Refuses 16 bits, CMYK and giants."""
    if picture.width * picture.height > MAX_PIXELS:
        raise ObservationError(
            f"{name} claims {picture.width}x{picture.height} pixels",
            f"send at most {MAX_PIXELS // 1_000_000} megapixels",
        )
    if picture.mode not in MODES:
        raise ObservationError(f"{name}'s colour mode is {picture.mode}", "send 8-bit RGB or grey")
    if picture.mode in ("RGBA", "LA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")  # so that transparency is dropped, not blended
    return np.array(picture.convert("RGB"))


def read_picture(path: Path) -> np.ndarray:
    """A picture file, turned upright as its EXIF data asks."""
    try:
        with Image.open(path) as picture:
            if picture.mode not in MODES or picture.width * picture.height > MAX_PIXELS:
                return to_rgb(picture, str(path))  # says why not
            return to_rgb(ImageOps.exif_transpose(picture), str(path))
    except ObservationError:
        raise
    except FileNotFoundError:
        raise ObservationError(f"there is no picture {path}", "check the path") from None
    except Exception as error:  # Pillow raises all kinds on broken data
        raise ObservationError(
            f"{path} cannot be read as a picture ({type(error).__name__}: {error})",
            "give a whole JPEG or PNG file",
        ) from error
