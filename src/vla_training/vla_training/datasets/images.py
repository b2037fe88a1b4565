"""Images that are decoded on first access."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from vla_inference.errors import DataError, ObservationError
from vla_inference.inputs.image_files import check_header, check_size


def decode_image(data: bytes, what: str) -> np.ndarray:
    """JPEG or PNG -> uint8 [H, W, 3]; grey images get three equal channels.

    JPEGs come out as TensorFlow decodes them (fast integer DCT, smooth upsampling), because that
    is what published models were trained on; Pillow's differ by up to 16 of 255.
    what: names the image in the DataError that anything else raises.
    """
    try:
        check_header(data, what)
        if data[:2] == b"\xff\xd8":
            height, width, mode, _ = simplejpeg.decode_jpeg_header(data)
            check_size(width, height, what)  # as the decoder reads it
            if mode not in ("CMYK", "YCCK"):
                return simplejpeg.decode_jpeg(data, "RGB", fastdct=True)
            raise DataError(f"{what} has colour mode {mode}", "store 8-bit RGB")
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.mode in ("RGB", "L", "P", "RGBA"):
                return np.array(image if image.mode == "RGB" else image.convert("RGB"))
            mode = image.mode
    except ObservationError as error:
        raise DataError(error.problem, "store images of a camera's size") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(
            f"{what} is not a readable JPEG or PNG ({error})", "the data is damaged: copy it again"
        ) from error
    raise DataError(f"{what} has colour mode {mode}", "store 8-bit RGB")


HALF_COLOURS = 192  # pixels; of smaller images colours are stored at full resolution


def encode_image(image: np.ndarray, encoding: str = "jpeg", quality: int = 95) -> bytes:
    """uint8 [H, W, 3] -> JPEG or PNG.

    JPEGs halve the resolution of colours, as TFDS's do, but for small images, whose coloured
    edges would lose too much.
    """
    if encoding == "jpeg":
        image = np.ascontiguousarray(image)
        colours = "420" if min(image.shape[:2]) >= HALF_COLOURS else "444"
        return simplejpeg.encode_jpeg(image, quality, "RGB", colours, fastdct=False)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def image_encoding(data: bytes) -> str:
    """ "jpeg" or "png", from the first bytes."""
    return "jpeg" if data[:2] == b"\xff\xd8" else "png"


class StoredImages(Mapping[str, np.ndarray]):
    """Camera name -> image; names are known without decoding."""

    __slots__ = ("_stored",)

    def __init__(self, stored: Mapping[str, Any]):
        self._stored = stored

    def __contains__(self, camera: object) -> bool:
        return camera in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


class LazyImages(StoredImages):
    """Camera name -> image of one step, decoded on each access; arrays are returned as they
    are.

    seen: what the steps of an episode share, so that an image which stays the same byte for byte
        (that of a camera which isn't there) is decoded twice at most.
    """

    __slots__ = ("_seen", "_where")

    def __init__(
        self, encoded: Mapping[str, bytes | np.ndarray], where: str, seen: dict | None = None
    ):
        super().__init__(encoded)
        self._where = where
        self._seen = {} if seen is None else seen

    def __getitem__(self, camera: str) -> np.ndarray:
        data = self._stored[camera]
        if isinstance(data, np.ndarray):
            return data
        before, kept = self._seen.get(camera, (b"", None))
        if data == before and kept is not None:
            return kept.copy()
        image = decode_image(data, f"{self._where}, image {camera!r}")
        self._seen[camera] = (data, image.copy() if data == before else None)
        return image

    def encoded(self, camera: str) -> bytes | None:
        """The stored JPEG or PNG; None for an array."""
        data = self._stored[camera]
        return None if isinstance(data, np.ndarray) else data
