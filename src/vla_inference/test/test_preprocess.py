"""Tests of preprocessing: the pixels equal those of torchvision and TensorFlow."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vla_inference.checkpoints.random_weights import TINY
from vla_inference.openvla.config import ModelConfig
from vla_inference.openvla.preprocessing import (
    ImagePreprocessor,
    center_crop,
    letterbox,
    shortest_edge,
)

RNG = np.random.default_rng(0)
sides = st.integers(16, 200)


def noise(width: int, height: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def pixels(image: np.ndarray, strategy: str, **changes) -> np.ndarray:
    """uint8 [64, 64, 3] as it is before normalisation."""
    config = ModelConfig.from_json({**TINY, "image_resize_strategy": strategy, **changes})
    encoder = dataclasses.replace(config.encoders[0], mean=(0.0,) * 3, std=(1.0,) * 3)
    config = dataclasses.replace(config, encoders=(encoder,))
    return np.rint(ImagePreprocessor(config)([image]) * 255).astype(np.uint8).transpose(1, 2, 0)


@pytest.mark.parametrize("strategy", ["resize-naive", "resize-crop", "letterbox"])
def test_an_image_of_the_right_size_stays_as_it_is(strategy):
    image = noise(64, 64)
    np.testing.assert_array_equal(pixels(image, strategy), image)


@given(sides, sides, st.sampled_from(["resize-naive", "resize-crop", "letterbox"]))
@settings(max_examples=30, deadline=None)
def test_any_shape_becomes_a_square(width, height, strategy):
    assert pixels(noise(width, height), strategy).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (298, 224)),  # 298.67 is cut off
        ((480, 640), (224, 298)),
        ((224, 224), (224, 224)),
        ((300, 299), (224, 224)),
        ((1920, 1080), (398, 224)),
        # 224 * 57 / 19 is 672, 57 * (224 / 19) in floating point is 671.99...
        ((19, 57), (224, 672)),
    ],
)
def test_the_shorter_side_rules(size, expected):
    assert shortest_edge(size, 224) == expected


def test_resize_crop_keeps_the_middle():
    image = noise(100, 64)
    np.testing.assert_array_equal(pixels(image, "resize-crop"), image[:, 18:82])
    image = noise(64, 67)  # 1.5 pixels above: rounds to the even 2
    np.testing.assert_array_equal(pixels(image, "resize-crop"), image[2:66])


def test_letterbox_pads_with_whole_bars_of_the_mean():
    image = noise(64, 32)
    boxed = np.asarray(letterbox(Image.fromarray(image), (0.485, 0.456, 0.406)))
    assert boxed.shape == (64, 64, 3)
    np.testing.assert_array_equal(boxed[16:48], image)
    assert (boxed[:16] == (123, 116, 103)).all() and (boxed[48:] == (123, 116, 103)).all()
    # An odd difference: both bars are rounded down.
    assert letterbox(Image.fromarray(noise(64, 33)), (0.5,) * 3).size == (64, 63)


def test_the_last_encoder_fills_the_bars_of_all():
    encoders = [
        {**TINY["vision_towers"][0], "mean": [0.1] * 3, "std": [1.0] * 3},
        {**TINY["vision_towers"][0], "key": "fused_featurizer", "mean": [0.5] * 3},
    ]
    config = ModelConfig.from_json(
        {**TINY, "vision_towers": encoders, "image_resize_strategy": "letterbox"}
    )
    out = ImagePreprocessor(config)([noise(64, 32)])
    np.testing.assert_allclose(out[:3, 0, 0], 127 / 255 - 0.1, atol=1e-6)
    np.testing.assert_allclose(out[3:, 0, 0], (127 / 255 - 0.5) / 0.5, atol=1e-6)


# -- the centre crop --------------------------------------------------------------------------


def crop_by_the_book(image: np.ndarray, area: float) -> np.ndarray:
    """TensorFlow's crop_and_resize, bilinear, one output pixel after the other, in float64."""
    size = len(image)
    begin = (1 - area**0.5) / 2
    out = np.zeros(image.shape)
    for y in range(size):
        for x in range(size):
            v = begin * (size - 1) + y * area**0.5
            u = begin * (size - 1) + x * area**0.5
            t, b, le, r = int(np.floor(v)), int(np.ceil(v)), int(np.floor(u)), int(np.ceil(u))
            top = image[t, le] + (u - le) * (image[t, r].astype(float) - image[t, le])
            low = image[b, le] + (u - le) * (image[b, r].astype(float) - image[b, le])
            out[y, x] = top + (v - t) * (low - top)
    return out


def test_the_crop_samples_between_pixel_centres():
    image = noise(24, 24)
    ours = center_crop(image, 0.9, 24).astype(float)
    exact = np.floor(np.minimum(crop_by_the_book(image, 0.9) / 255 * 255.5, 255))
    # Rounding to float32 may tip a value that lies on the border of two bytes.
    assert np.abs(ours - exact).max() <= 1 and (ours == exact).mean() > 0.999


def test_cropping_everything_changes_nothing():
    image = noise(64, 64)
    np.testing.assert_array_equal(center_crop(image, 1.0, 64), image)


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_a_plain_image_stays_plain(value):
    image = np.full((48, 64, 3), value, np.uint8)
    np.testing.assert_array_equal(center_crop(image, 0.9, 64), np.full((64, 64, 3), value))


def test_the_crop_comes_from_the_checkpoint():
    image = noise(64, 64)
    cropped = pixels(image, "resize-naive", center_crop=True)
    np.testing.assert_array_equal(cropped, center_crop(image, 0.9, 64))
    np.testing.assert_array_equal(pixels(image, "resize-naive", center_crop=0.9), cropped)
    np.testing.assert_array_equal(pixels(image, "resize-naive", center_crop=False), image)
