"""Tests of image conversion to and from ROS messages; invalid images are refused by name."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as Pillow
from sensor_msgs.msg import CompressedImage, Image

from vla_inference.errors import ObservationError
from vla_inference.inputs.image_messages import (
    BGR,
    ENCODINGS,
    GREY,
    RGB,
    compressed_to_rgb,
    image_to_rgb,
)
from vla_inference.ros.images import rgb_to_compressed, rgb_to_image

sizes = st.tuples(st.integers(1, 20), st.integers(1, 20))
images = sizes.flatmap(lambda s: arrays(np.uint8, (*s, 3)))


def message(encoding: str, pixels: np.ndarray, padding: int = 0, trim_last: bool = False) -> Image:
    """An Image of these bytes [H, W, channels], with `padding` bytes of 0xEE after each row."""
    h, w = pixels.shape[:2]
    rows = np.full((h, pixels[0].size + padding), 0xEE, np.uint8)
    rows[:, : pixels[0].size] = pixels.reshape(h, -1)
    msg = Image(encoding=encoding, height=h, width=w, step=rows.shape[1])
    data = rows.tobytes()
    msg.data.frombytes(data[: len(data) - padding] if trim_last else data)
    return msg


def compressed(image: Pillow.Image, kind: str = "png", **options) -> CompressedImage:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    msg = CompressedImage(format=kind)
    msg.data.frombytes(buffer.getvalue())
    return msg


@given(images)
def test_there_and_back(image):
    np.testing.assert_array_equal(image_to_rgb(rgb_to_image(image)), image)


DIRECT = sorted(n for n, e in ENCODINGS.items() if e.take is not None)


@given(images, st.integers(0, 9), st.booleans(), st.booleans(), st.sampled_from(DIRECT))
def test_every_encoding_and_padding_gives_the_same_image(image, padding, trim, big, encoding):
    alpha = np.full((*image.shape[:2], 1), 77, np.uint8)
    about = ENCODINGS[encoding]
    pixels = {RGB: image, BGR: image[..., ::-1], GREY: image[..., :1]}[about.take]
    if about.samples == 4:
        pixels = np.dstack([pixels, alpha])
    if about.wide:  # the lower byte is noise
        halves = (np.full_like(pixels, 0xA5), pixels)
        pixels = np.stack(halves[::-1] if big else halves, -1).reshape(*image.shape[:2], -1)
    wanted = np.repeat(image[..., :1], 3, axis=2) if about.take == GREY else image
    msg = message(encoding, pixels, padding, trim)
    msg.is_bigendian = int(big)
    got = image_to_rgb(msg)
    np.testing.assert_array_equal(got, wanted)
    assert got.flags.c_contiguous and got.dtype == np.uint8


BAYER = {
    "bayer_rggb8": "RGGB",
    "bayer_bggr8": "BGGR",
    "bayer_gbrg8": "GBRG",
    "bayer_grbg8": "GRBG",
}


def mosaic(encoding: str, colour: tuple[int, int, int], height: int, width: int) -> np.ndarray:
    """What a sensor with that pattern sees of one colour, [H, W]."""
    pixels = np.zeros((height, width), np.uint8)
    for at, request in enumerate(BAYER[encoding]):
        pixels[at // 2 :: 2, at % 2 :: 2] = colour["RGB".index(request)]
    return pixels


@pytest.mark.parametrize("encoding", sorted(BAYER))
def test_bayer_patterns_are_demosaiced(encoding):
    pixels = mosaic(encoding, (200, 100, 50), 16, 20)
    assert (image_to_rgb(message(encoding, pixels[..., None], 3)) == (200, 100, 50)).all()
    # image_transport compresses the sensor's pixels as they are
    msg = compressed(Pillow.fromarray(pixels))
    msg.format = f"{encoding}; png compressed "
    assert (compressed_to_rgb(msg) == (200, 100, 50)).all()


@pytest.mark.parametrize("image", [(200, 30, 40), (20, 150, 30), (30, 60, 220), (90, 90, 90)])
@pytest.mark.parametrize("encoding", ["uyvy", "yuv422", "yuyv", "yuv422_yuy2", "nv12", "nv21"])
def test_yuv_by_the_equations_of_bt_601(encoding, image):
    r, g, b = np.array(image) / 255
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    y = round(16 + 219 * luma)
    u, v = (round(128 + 224 * (c - luma) / s) for c, s in ((b, 1.772), (r, 1.402)))
    if encoding.startswith("nv"):
        pixels = np.full((18, 20, 1), y, np.uint8)
        pixels[12:, 0::2, 0], pixels[12:, 1::2, 0] = (u, v) if encoding == "nv12" else (v, u)
    else:
        four = (u, y, v, y) if encoding in ("uyvy", "yuv422") else (y, u, y, v)
        pixels = np.tile(np.array(four, np.uint8), (12, 10)).reshape(12, 20, 2)
    msg = message(encoding, pixels, 5)
    msg.height = 12
    got = image_to_rgb(msg)
    assert got.shape == (12, 20, 3) and got.flags.c_contiguous
    assert np.abs(got.astype(int) - image).max() <= 3


@pytest.mark.parametrize("encoding", ["yuyv", "uyvy", "nv12", "bayer_rggb8"])
def test_half_a_pair_of_pixels_is_refused(encoding):
    msg = message(encoding, np.zeros((4, 5, ENCODINGS[encoding].samples), np.uint8))
    with pytest.raises(ObservationError, match=f"5x4 pixels cannot be in {encoding}"):
        image_to_rgb(msg)


def test_without_opencv_a_bayer_pattern_is_refused_with_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    msg = message("bayer_rggb8", np.zeros((4, 4, 1), np.uint8))
    with pytest.raises(ObservationError, match="need OpenCV; install python3-opencv"):
        image_to_rgb(msg)


def test_the_header_is_kept():
    msg = rgb_to_image(np.zeros((2, 3, 3), np.uint8), Time(sec=5, nanosec=6), "camera")
    assert (msg.header.stamp.sec, msg.header.stamp.nanosec, msg.header.frame_id) == (
        5,
        6,
        "camera",
    )
    assert (msg.height, msg.width, msg.step, msg.encoding) == (2, 3, 9, "rgb8")


def test_views_that_are_not_contiguous_are_sent_right():
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    for view in (image[::-1], image[:, ::2], image[..., ::-1], image.transpose(1, 0, 2)):
        np.testing.assert_array_equal(image_to_rgb(rgb_to_image(view)), view)


@pytest.mark.parametrize(
    "encoding", ["8UC2", "bayer_rggb16", "yuv420", "nv24", "jpeg", "RGB8", "rgb8 ", ""]
)
def test_other_encodings_are_refused_by_name_and_with_the_known_ones(encoding):
    msg = message("rgb8", np.zeros((4, 4, 3), np.uint8))
    msg.encoding = encoding
    with pytest.raises(ObservationError, match=f"{encoding!r}; publish one of rgb8"):
        image_to_rgb(msg)


@pytest.mark.parametrize("encoding", ["mono16", "16UC1", "16SC1", "32FC1", "64FC1"])
def test_depth_and_infrared_are_never_colour(encoding):
    msg = message(encoding, np.zeros((4, 4, 2), np.uint8))
    with pytest.raises(ObservationError, match=f"{encoding!r}: depth .* colour camera"):
        image_to_rgb(msg)
    image = compressed(Pillow.fromarray(np.full((8, 8), 90, np.uint8)))
    image.format = f"{encoding}; png compressed"
    with pytest.raises(ObservationError, match=f"{encoding!r}: depth or infrared"):
        compressed_to_rgb(image)


@pytest.mark.parametrize("form", ["h264", "H.265", "hevc", "rgb8; h264 compressed"])
def test_video_in_compressed_images_is_refused_with_what_unpacks_it(form):
    with pytest.raises(ObservationError, match=r"video.*`ros2 run image_transport republish`"):
        compressed_to_rgb(CompressedImage(format=form))


@pytest.mark.parametrize(
    "form",
    ["jpeg", "png", "rgb8; jpeg compressed bgr8", "bgr8; png compressed bgr8", "rgb8;jpeg", ""],
)
def test_what_a_format_says_of_its_source_changes_no_colour(form):
    image = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    msg = compressed(Pillow.fromarray(image), "jpeg" if "jpeg" in form else "png")
    msg.format = form
    assert np.abs(compressed_to_rgb(msg).astype(int) - image).max() <= 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"height": 0}, "4x0 pixels"),
        ({"width": 0}, "0x4 pixels"),
        ({"height": 5}, "has 60 bytes, this one 48"),
        ({"height": 3}, "has 36 bytes, this one 48"),
        ({"width": 5}, "takes 15 bytes, `step` says 12"),
        ({"step": 0}, "`step` says 0"),
        ({"step": 2**32 - 1}, "this one 48"),
        ({"height": 2**32 - 1, "width": 2**30, "step": 2**32 - 1}, "this one 48"),
        ({"encoding": "rgba8"}, "takes 16 bytes, `step` says 12"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, words):
    msg = message("rgb8", np.zeros((4, 4, 3), np.uint8))
    for name, value in changes.items():
        setattr(msg, name, value)
    with pytest.raises(ObservationError, match=words):
        image_to_rgb(msg)


@given(
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(0, 200),
    st.binary(max_size=2000),
    st.sampled_from(sorted(ENCODINGS)),
)
def test_whatever_arrives_is_an_image_or_refused(height, width, step, data, encoding):
    msg = Image(encoding=encoding, height=height, width=width, step=step)
    msg.data.frombytes(data)
    try:
        image = image_to_rgb(msg)
    except ObservationError:
        return
    assert image.shape == (height, width, 3) and image.dtype == np.uint8
    image.tobytes()  # all of it can be read


@given(images)
def test_png_loses_nothing(image):
    np.testing.assert_array_equal(compressed_to_rgb(rgb_to_compressed(image, quality=None)), image)


def test_jpeg_loses_little():
    y, x = np.mgrid[:64, :64].astype(np.uint8)
    image = np.dstack([x * 2, y * 3, x + y])
    msg = rgb_to_compressed(image, Time(sec=1), "camera")
    assert "jpeg" in msg.format and msg.header.stamp.sec == 1
    assert np.abs(compressed_to_rgb(msg).astype(int) - image).mean() < 3


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P"])
def test_eight_bit_modes_are_taken(mode):
    grey = Pillow.fromarray(np.full((20, 30), 90, np.uint8))
    got = compressed_to_rgb(compressed(grey.convert(mode)))
    np.testing.assert_array_equal(got, np.full((20, 30, 3), 90))


def test_transparency_is_dropped_not_blended():
    image = np.full((8, 8, 4), (200, 100, 50, 0), np.uint8)
    got = compressed_to_rgb(compressed(Pillow.fromarray(image, "RGBA")))
    assert (got == (200, 100, 50)).all()


def test_cmyk_is_refused():
    image = Pillow.new("CMYK", (20, 20), (10, 20, 30, 40))
    with pytest.raises(ObservationError, match="colour mode is CMYK"):
        compressed_to_rgb(compressed(image, "jpeg"))


def test_sixteen_bit_png_is_refused():
    image = Pillow.fromarray(np.full((20, 20), 40000, np.uint16))
    with pytest.raises(ObservationError, match="colour mode is I"):
        compressed_to_rgb(compressed(image))


def test_depth_is_refused():
    with pytest.raises(ObservationError, match="depth image"):
        compressed_to_rgb(CompressedImage(format="16UC1; compressedDepth png"))


@pytest.mark.parametrize("kind", ["jpeg", "png"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9])
def test_truncated_data_is_refused(kind, share):
    image = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    msg = compressed(Pillow.fromarray(image), kind)
    msg.data = msg.data[: int(share * len(msg.data))]
    with pytest.raises(ObservationError, match="cannot be decoded"):
        compressed_to_rgb(msg)


@pytest.mark.parametrize("kind", ["gif", "bmp", "tiff"])
def test_other_formats_are_refused(kind):
    with pytest.raises(ObservationError, match="cannot be decoded"):
        compressed_to_rgb(compressed(Pillow.new("RGB", (20, 20)), kind))


def test_an_image_that_claims_to_be_huge_is_refused_before_it_is_unpacked():
    msg = compressed(Pillow.new("1", (9000, 9000)))
    assert len(msg.data) < 100_000
    with pytest.raises(ObservationError, match="9000x9000"):
        compressed_to_rgb(msg)


@given(st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"]))
def test_rubbish_is_refused(data, start):
    msg = CompressedImage(format="jpeg")
    msg.data.frombytes(start + data)
    with pytest.raises(ObservationError):
        compressed_to_rgb(msg)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_what_is_no_image_is_not_sent(image):
    with pytest.raises(ObservationError):
        rgb_to_image(image)
