"""Image preprocessing and prompts, without torchvision or timm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from vla_inference.openvla.config import ModelConfig
from vla_inference.types import check_image, check_instruction


class ImagePreprocessor:
    """uint8 RGB images -> normalised float32 [images * encoders * 3, S, S].

    Resizing is Pillow's antialiased bicubic, which is what the original's torchvision does on PIL
    images. Mean and standard deviation are the bf16-rounded ones of the released files.
    Source: openvla/openvla prismatic/extern/hf/processing_prismatic.py (behaviour).
    """

    def __init__(self, config: ModelConfig):
        self.config = config
        self.mean = torch.tensor([t.mean for t in config.encoders])[:, :, None, None]
        self.std = torch.tensor([t.std for t in config.encoders])[:, :, None, None]

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return self.normalise(torch.from_numpy(self.sized(images))).numpy()

    def sized(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Cropped and resized images as bytes: uint8 [images, S, S, 3]"""
        return np.stack([self._sized(image) for image in images])

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [images, S, S, 3] on any device -> float32 [images * encoders * 3, S, S] there"""
        return self.standardise(unit_scaled(images)).flatten(0, 2)

    def standardise(self, images: torch.Tensor) -> torch.Tensor:
        """[images, 3, S, S] in [0, 1] -> each encoder's normalisation: [images, encoders, 3, S,
        S]"""
        if self.mean.device != images.device:
            self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        return (images[:, None] - self.mean) / self.std

    def uncropped(self, image: np.ndarray) -> np.ndarray:
        """uint8 [S, S, 3]: all steps except the centre crop; the input of training."""
        size = self.config.encoders[0].image_size
        if self.config.center_crop:
            return squash(image, size)
        if image.shape[:2] == (size, size):
            return image
        pixels = Image.fromarray(image)
        if self.config.image_resize_strategy == "letterbox":
            # The original fills with the mean of the last vision encoder, for all of them.
            pixels = letterbox(pixels, self.config.encoders[-1].mean)
        return np.asarray(self._resize(pixels, size))

    def _sized(self, image: np.ndarray) -> np.ndarray:
        image = self.uncropped(check_image(image))
        area = self.config.center_crop
        return center_crop(image, area, len(image)) if area else image

    def _resize(self, image: Image.Image, size: int) -> Image.Image:
        if self.config.image_resize_strategy == "resize-naive":
            return resize(image, (size, size))
        return crop(resize(image, shortest_edge(image.size, size)), size)


def unit_scaled(images: torch.Tensor) -> torch.Tensor:
    """uint8 [images, H, W, 3] -> float32 [images, 3, H, W] in [0, 1]"""
    return images.permute(0, 3, 1, 2).float() / 255


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.size == size:
        return image
    return image.resize(size, Image.Resampling.BICUBIC)


def shortest_edge(size: tuple[int, int], shortest: int) -> tuple[int, int]:
    """Width and height with the shorter one given, the longer one cut off to a whole number."""
    width, height = size
    if width <= height:
        return shortest, int(shortest * height / width)
    return int(shortest * width / height), shortest


def crop(image: Image.Image, size: int) -> Image.Image:
    """The central square; half pixels are rounded to even, as in Python."""
    left = round((image.width - size) / 2)
    top = round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def letterbox(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """Pads to a square with bars of the mean colour.

    Both bars have the same whole width: where the sides differ by an odd number the result is
    one pixel short of a square, which the cropping after it evens out.
    """
    side = max(image.size)
    left, top = int((side - image.width) / 2), int((side - image.height) / 2)
    size = (image.width + 2 * left, image.height + 2 * top)
    canvas = Image.new("RGB", size, tuple(int(m * 255) for m in mean))
    canvas.paste(image, (left, top))
    return canvas


def squash(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [size, size, 3], Lanczos with antialiasing: the resize of models that use a centre
    crop."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def center_crop(image: np.ndarray, area: float, size: int) -> np.ndarray:
    """The central part with this share of the area, as uint8 [size, size, 3].

    Two steps, as in training with augmentation: the whole image is brought to `size`, then the
    part of it is sampled by TensorFlow's `crop_and_resize`: bilinear between pixel centres whose
    outermost ones lie on the edges of the part.
    """
    image = squash(image, size)
    side = np.sqrt(np.float32(area))
    begin = (np.float32(1) - side) / np.float32(2)
    last = np.float32(size - 1)
    step = ((begin + side) - begin) * last / np.float32(size - 1)
    where = begin * last + np.arange(size, dtype=np.float32) * step
    low = np.floor(where).astype(int)
    high = np.minimum(np.ceil(where).astype(int), size - 1)
    share = (where - low).astype(np.float32)
    x = image.astype(np.float32) * np.float32(1 / 255)
    x = x[:, low] + (x[:, high] - x[:, low]) * share[None, :, None]
    x = x[low] + (x[high] - x[low]) * share[:, None, None]
    # TensorFlow's way from [0, 1] back to bytes: 256 equal bins, all but.
    return np.minimum(np.clip(x, 0, 1) * np.float32(255.5), 255).astype(np.uint8)


class PromptTokenizer:
    """Converts an instruction to token ids, in the prompt format of training."""

    def __init__(self, config: ModelConfig, tokenizer: Any) -> None:
        """tokenizer: of the tokenizers library."""
        self.config, self.tokenizer = config, tokenizer

    def __call__(self, instruction: str) -> list[int]:
        words = check_instruction(instruction).lower()
        text = self.config.prompt.replace("{instruction}", words)
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        first = self.config.bos_token_id
        ids = ids if first is None else [first, *ids]
        return ids if self.config.reasoning_tokens else self.finish(ids)

    def finish(self, ids: Sequence[int]) -> list[int]:
        """Appends the empty token that preceded the actions in training, if it is missing."""
        empty = self.config.empty_token_id
        return list(ids) if empty is None or ids[-1] == empty else [*ids, empty]
