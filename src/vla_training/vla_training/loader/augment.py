"""Image augmentation on the device, from parameters drawn per sample.

Everything but the change itself is inference's (`ImagePreprocessor`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vla_inference.openvla.config import TRAINED_CROP, ModelConfig
from vla_inference.openvla.preprocessing import ImagePreprocessor, unit_scaled

NUMBERS = 12  # per sample, see `augment`
NEUTRAL = 0.5  # of each of them: the central crop and no other change


@dataclass(frozen=True)
class Augmentation:
    """Ranges of random changes in both directions; those left out are off.

    shift: pixels, edges repeated. lift: added to all channels. gain: factor of all channels, and
    `channel` of each by itself. contrast, saturation: factors. hue: turns of the colour circle.
    """

    shift: int = 0
    lift: float = 0.0
    gain: float = 0.0
    channel: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0


# vla-scripts/finetune.py and prismatic/vla/datasets/datasets.py of openvla/openvla (facts)
OPENVLA = Augmentation(lift=0.2, contrast=0.2, saturation=0.2, hue=0.05)


def draw(rng: np.random.Generator) -> np.ndarray:
    """The random parameters of `augment` for one sample: float32 [NUMBERS]"""
    return rng.random(NUMBERS, np.float32)


def augment(
    images: Tensor, numbers: Tensor, by: Augmentation = OPENVLA, area: float = TRAINED_CROP
) -> Tensor:
    """Crops, shifts and recolours: [B, 3, H, W] in [0, 1] and [B, NUMBERS] -> the same shape.

    area: share of the image that the crop keeps.
    numbers: evenly in [0, 1), in this order: left, top, down, right, lift, gain, three channels,
        contrast, saturation, hue. All cameras of a sample share them.
    """
    u = [n[:, None, None, None] for n in numbers.T]
    left, top, down, right = u[:4]
    lift, gain, red, green, blue, contrast, saturation, hue = (2 * n - 1 for n in u[4:])
    x = images
    if area < 1:
        x = crop(x, left, top, area**0.5)
    if by.shift:
        x = shift(x, _whole(down, by.shift), _whole(right, by.shift))
    factor = 1 + by.gain * gain + by.channel * torch.cat([red, green, blue], 1)
    x = (x * factor + by.lift * lift).clamp(0, 1)
    if by.contrast:
        mean = x.mean((2, 3), keepdim=True)
        x = ((x - mean) * (1 + by.contrast * contrast) + mean).clamp(0, 1)
    if by.saturation or by.hue:
        x = turn_colours(x, 1 + by.saturation * saturation, by.hue * hue)
    return x


def _whole(u: Tensor, most: int) -> Tensor:
    """[0, 1) -> whole numbers from -most to most, each as often."""
    return (u.flatten() * (2 * most + 1)).long().clamp(max=2 * most) - most


def shift(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Shifts by whole pixels, int64 [B] each; edges are repeated."""
    b, _, h, w = images.shape
    rows = (torch.arange(h, device=images.device) - down[:, None]).clamp(0, h - 1)
    columns = (torch.arange(w, device=images.device) - right[:, None]).clamp(0, w - 1)
    which = torch.arange(b, device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def crop(images: Tensor, left: Tensor, top: Tensor, side: float) -> Tensor:
    """A square of `side` (share of the image's) brought back to full size, bilinear between
    pixel centres whose outermost ones lie on the edges of the crop (as `center_crop` does it)."""
    h, w = images.shape[2:]
    grids = []
    for size, begin in ((h, top), (w, left)):
        steps = torch.linspace(0, 1, size, device=images.device)
        grids.append(2 * (begin.flatten()[:, None] * (1 - side) + steps * side) - 1)
    rows, columns = grids
    grid = torch.stack(
        [columns[:, None, :].expand(-1, h, -1), rows[:, :, None].expand(-1, -1, w)], dim=-1
    )
    return F.grid_sample(images, grid.to(images.dtype), align_corners=True)


def turn_colours(x: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Saturation and hue (turns of the colour circle) in HSV: [B, 3, H, W] in [0, 1]"""
    value, least = x.amax(1), x.amin(1)
    span = value - least
    safe = torch.where(span > 0, span, 1.0)
    r, g, b = x.unbind(1)
    where = torch.where(
        value == r,
        ((g - b) / safe) % 6,
        torch.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4),
    )
    h = (where / 6 + hue[:, 0]) % 1.0
    s = (span / torch.where(value > 0, value, 1.0) * saturation[:, 0]).clamp(0, 1)
    chroma = value * s

    def channel(n: int) -> Tensor:
        k = (n + h * 6) % 6
        return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)

    return torch.stack([channel(5), channel(3), channel(1)], dim=1)


class Pixels:
    """uint8 images -> what the vision encoders take, on the device.

    Without numbers that is what inference sees, but for rounding: of a model that crops, the crop
    is taken of floats here and of bytes there.
    """

    def __init__(self, config: ModelConfig, by: Augmentation = OPENVLA):
        self.by, self.area = by, config.center_crop or 1.0
        self.preprocess = ImagePreprocessor(config)

    @torch.no_grad()
    def __call__(self, images: Tensor, numbers: Tensor | None, dtype: torch.dtype) -> Tensor:
        """[B, cameras, S, S, 3] and [B, NUMBERS] -> [B, cameras * vision encoders * 3, S, S]"""
        b, cameras, size = images.shape[:3]
        x = unit_scaled(images.flatten(0, 1))
        if numbers is None and self.area < 1:
            numbers = torch.full((b, NUMBERS), NEUTRAL, device=x.device)
        if numbers is not None:
            x = augment(x, numbers.repeat_interleave(cameras, 0), self.by, self.area)
        return self.preprocess.standardise(x).to(dtype).reshape(b, -1, size, size)
