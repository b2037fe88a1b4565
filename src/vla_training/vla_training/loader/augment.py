"""Images as training sees them, computed on the device from numbers drawn per sample.

The changes and their ranges are OpenVLA's (vla-scripts/finetune.py and
prismatic/vla/datasets/datasets.py, facts): a crop of 90 % of the area, then brightness 0.2,
contrast and saturation 0.8 to 1.2, hue 0.05.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vla_inference.policies.openvla.config import TRAINED_CROP, ModelConfig

NUMBERS = 6  # per sample: left, top, brightness, contrast, saturation, hue
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.2, 0.2, 0.2, 0.05
NEUTRAL = (0.5, 0.5, 0.0, 1.0, 1.0, 0.0)  # the central crop, which evaluation uses


def draw(rng: np.random.Generator) -> np.ndarray:
    """float32 [6]: where the crop lies (0 to 1 of the play it has) and how colours change."""
    u = rng.random(NUMBERS)
    spread = 2 * u - 1
    return np.array(
        [
            u[0],
            u[1],
            BRIGHTNESS * spread[2],
            1 + CONTRAST * spread[3],
            1 + SATURATION * spread[4],
            HUE * spread[5],
        ],
        np.float32,
    )


def augment(images: Tensor, numbers: Tensor, area: float = TRAINED_CROP) -> Tensor:
    """Crop and recolour: [B, 3, H, W] in [0, 1] and [B, 6] -> the same shape.

    All cameras of a sample share its numbers.
    """
    left, top, brightness, contrast, saturation, hue = (n[:, None, None, None] for n in numbers.T)
    x = crop(images, left, top, area**0.5)
    x = (x + brightness).clamp(0, 1)
    mean = x.mean((2, 3), keepdim=True)
    x = ((x - mean) * contrast + mean).clamp(0, 1)
    return turn_colours(x, saturation, hue)


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
    """uint8 images -> what the vision encoders take, on the device."""

    def __init__(self, config: ModelConfig, device: str | torch.device, augmented: bool):
        self.augmented = augmented
        shape = (1, 3, 1, 1)
        self.mean = [torch.tensor(t.mean, device=device).view(shape) for t in config.encoders]
        self.std = [torch.tensor(t.std, device=device).view(shape) for t in config.encoders]

    @torch.no_grad()
    def __call__(self, images: Tensor, numbers: Tensor | None, dtype: torch.dtype) -> Tensor:
        """[B, cameras, S, S, 3] and [B, 6] -> [B, cameras * vision encoders * 3, S, S]

        numbers: None takes the central crop where the model was trained on crops.
        """
        b, cameras, size = images.shape[:3]
        x = images.permute(0, 1, 4, 2, 3).reshape(b * cameras, 3, size, size).float() / 255
        if self.augmented:
            if numbers is None:
                numbers = torch.tensor([NEUTRAL], device=x.device).expand(b, -1)
            x = augment(x, numbers.repeat_interleave(cameras, 0))
        encoders = [(x - m) / s for m, s in zip(self.mean, self.std, strict=True)]
        return torch.cat(encoders, 1).to(dtype).reshape(b, -1, size, size)
