"""Converts uint8 [H, W, 3] RGB arrays to ROS image messages; `image_messages.py` reads them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Pillow

from vla_inference.errors import ObservationError

if TYPE_CHECKING:
    from sensor_msgs.msg import CompressedImage, Image


def rgb_to_image(image: np.ndarray, stamp=None, frame_id: str = "") -> Image:
    """A sensor_msgs/Image in rgb8 from uint8 [H, W, 3].

    stamp: builtin_interfaces/Time.
    """
    from sensor_msgs.msg import Image

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ObservationError(
            f"an image has dtype {image.dtype} and shape {image.shape}",
            "give uint8 height x width x 3",
        )
    msg = Image(encoding="rgb8", height=image.shape[0], width=image.shape[1])
    msg.step = image.shape[1] * 3
    msg.header.frame_id = frame_id
    if stamp is not None:
        msg.header.stamp = stamp
    # Ten times faster than assigning an array or bytes, which rclpy converts item by item.
    msg.data.frombytes(np.ascontiguousarray(image).data.cast("B"))
    return msg


def rgb_to_compressed(
    image: np.ndarray, stamp=None, frame_id: str = "", quality: int | None = 90
) -> CompressedImage:
    """A sensor_msgs/CompressedImage: JPEG with this quality, or PNG if it is None."""
    from sensor_msgs.msg import CompressedImage

    kind = "png" if quality is None else "jpeg"
    buffer = io.BytesIO()
    options = {} if quality is None else {"quality": quality}
    Pillow.fromarray(image).save(buffer, kind, **options)
    msg = CompressedImage(format=f"rgb8; {kind} compressed bgr8")
    msg.header.frame_id = frame_id
    if stamp is not None:
        msg.header.stamp = stamp
    msg.data.frombytes(buffer.getvalue())
    return msg
