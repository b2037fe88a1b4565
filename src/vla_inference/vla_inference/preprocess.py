"""Pictures and sentences made ready for the model, without torchvision or timm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vla_inference.model.config import ModelConfig
from vla_inference.types import check_image, check_instruction


class PicturePreprocessor:
    """uint8 RGB pictures -> normalised float32 [images * towers * 3, S, S].

    Resizing is Pillow's antialiased bicubic, which is what the original's torchvision does on PIL
    pictures. Mean and standard deviation are the bf16-rounded ones of the released files.
    """

    def __init__(self, config: ModelConfig):
        self.config = config
        self.mean = [np.array(t.mean, np.float32)[:, None, None] for t in config.towers]
        self.std = [np.array(t.std, np.float32)[:, None, None] for t in config.towers]

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([self._picture(image) for image in images])

    def _picture(self, image: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(check_image(image))
        if self.config.center_crop:
            picture = center_crop(picture, 0.9)
        towers = []
        for tower, mean, std in zip(self.config.towers, self.mean, self.std, strict=True):
            sized = self._resize(picture, tower.image_size, tower.mean)
            pixels = np.asarray(sized, np.float32).transpose(2, 0, 1) / np.float32(255)
            towers.append((pixels - mean) / std)
        return np.concatenate(towers)

    def _resize(self, picture: Image.Image, size: int, mean: Sequence[float]) -> Image.Image:
        strategy = self.config.image_resize_strategy
        if strategy == "letterbox":
            side = max(picture.size)
            canvas = Image.new("RGB", (side, side), tuple(int(m * 255) for m in mean))
            canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
            picture = canvas
        elif strategy == "resize-crop":
            scale = size / min(picture.size)
            width, height = (max(size, int(s * scale)) for s in picture.size)
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
            left, top = round((width - size) / 2), round((height - size) / 2)
            return picture.crop((left, top, left + size, top + size))
        if picture.size == (size, size):
            return picture
        return picture.resize((size, size), Image.Resampling.BICUBIC)


def center_crop(picture: Image.Image, area: float) -> Image.Image:
    """The central part with that share of the area, brought back to the full size (bilinear)."""
    share = math.sqrt(area)
    w, h = picture.size
    box = ((w - w * share) / 2, (h - h * share) / 2, (w + w * share) / 2, (h + h * share) / 2)
    return picture.resize((w, h), Image.Resampling.BILINEAR, box=box)


class PromptTokenizer:
    """A sentence -> token ids, in the prompt form the model was trained with."""

    def __init__(self, config: ModelConfig, tokenizer):
        self.config, self.tokenizer = config, tokenizer

    def __call__(self, instruction: str) -> list[int]:
        text = self.config.prompt.format(instruction=check_instruction(instruction).lower())
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return self.finish([self.config.bos_token_id, *ids])

    def finish(self, ids: Sequence[int]) -> list[int]:
        """Append the empty token that stood before the actions in training, if it is missing."""
        empty = self.config.empty_token_id
        return list(ids) if empty is None or ids[-1] == empty else [*ids, empty]
