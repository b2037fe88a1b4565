"""Images as LeRobot's flow-matching policies see them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def to_tensor(image: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 [H, W, 3] -> float32 [3, H, W] in 0 to 1, on the device"""
    bytes_ = torch.from_numpy(np.ascontiguousarray(image)).to(device)
    return bytes_.permute(2, 0, 1).float() / 255


def resize_with_pad(
    image: Tensor, height: int, width: int, side: Literal["left_top", "centre"]
) -> Tensor:
    """Brings [3, H, W] to [3, height, width]: its aspect is kept, the rest is 0.

    Bilinear without antialiasing, sizes by truncation. An image of that size stays as it is.

    side: where the padding goes.
    """
    h, w = image.shape[1:]
    if (h, w) == (height, width):
        return image
    ratio = max(w / width, h / height)
    new_h, new_w = int(h / ratio), int(w / ratio)
    sized = F.interpolate(image[None], (new_h, new_w), mode="bilinear", align_corners=False)[0]
    more_w, more_h = width - new_w, height - new_h
    if side == "left_top":
        return F.pad(sized, (more_w, 0, more_h, 0))
    left, top = more_w // 2, more_h // 2
    return F.pad(sized.clamp(0, 1), (left, more_w - left, top, more_h - top))
