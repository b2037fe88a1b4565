"""Tests of image sources: folders, files, cameras, streams; `vla infer` and the camera node."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
import rclpy
from PIL import Image as Pillow
from rclpy.exceptions import InvalidParameterValueException
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.cli.infer import infer
from vla_inference.errors import DataError, ObservationError, VlaError
from vla_inference.inputs import video_sources
from vla_inference.inputs.image_files import read_image
from vla_inference.inputs.image_messages import compressed_to_rgb, image_to_rgb
from vla_inference.inputs.video_sources import VideoSource, open_source
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.ros import qos
from vla_inference.ros.camera_node import CameraNode

PATIENCE = 30.0


def grey(value: int, width: int = 64, height: int = 48) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """frame1 to frame11, whose grey is ten times their number; and something else."""
    path = tmp_path / "images"
    path.mkdir()
    for i in range(1, 12):
        Pillow.fromarray(grey(10 * i)).save(path / f"frame{i}.png")
    (path / "notes.txt").write_text("not an image")
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Ten frames at 20 per second, grey 0 to 225."""
    path = tmp_path_factory.mktemp("video") / "film.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(10):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(grey(25 * i), format="rgb24")))
        out.mux(stream.encode())
    return path


# -- recorded sources -------------------------------------------------------------------------


def test_a_folders_images_come_in_the_order_of_their_numbers(folder):
    source = open_source(folder, rate=5)
    frames = list(source)
    assert [f.name for f in frames] == [f"frame{i}.png" for i in range(1, 12)]
    assert [int(f.image[0, 0, 0]) for f in frames] == [10 * i for i in range(1, 12)]
    np.testing.assert_allclose([f.stamp for f in frames], np.arange(11) / 5)
    assert not source.live and len(list(source)) == 11  # a second time as well


def test_a_single_image_is_a_source(folder):
    (frame,) = open_source(str(folder / "frame3.png"))
    np.testing.assert_array_equal(frame.image, grey(30))


def test_a_videos_frames_come_with_their_time(video):
    with open_source(video) as source:
        frames = list(source)
    np.testing.assert_allclose([f.stamp for f in frames], np.arange(10) / 20)
    assert all(f.image.shape == (48, 64, 3) and f.image.dtype == np.uint8 for f in frames)
    assert np.abs([int(f.image.mean()) - 25 * i for i, f in enumerate(frames)]).max() <= 3


def test_a_source_may_be_left_early(video):
    with open_source(video) as source:
        assert next(iter(source)).name == "0"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nowhere", "there is no source 'nowhere'"),
        ("", "has no images|there is no source"),
        ("/dev/video987", "there is no camera /dev/video987"),
        ("rtsp://127.0.0.1:1/live", "rtsp://127.0.0.1:1/live cannot be opened"),
        ("gopher://camera", "unknown kind of address"),
    ],
)
def test_sources_that_are_not_there_are_named(address, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=words) as caught:
        open_source(address)
    assert caught.value.remedy


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no images"):
        open_source(tmp_path)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), 1e9])
def test_impossible_rates_are_refused(folder, rate):
    with pytest.raises(DataError, match="images per second"):
        open_source(folder, rate=rate)


@pytest.mark.parametrize("content", [b"", b"not a video" * 99])
def test_a_file_that_is_no_video_is_named(tmp_path, content):
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"film\.mp4 cannot be opened"):
        list(open_source(path))


def test_a_video_cut_short_is_named(video, tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with pytest.raises(DataError, match=r"film\.mp4"):
        list(open_source(path))


def test_sound_alone_is_refused(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.rate = 8000
        out.mux(stream.encode(frame))
    with pytest.raises(DataError, match="no video"):
        open_source(path)


# -- odd images -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [("L", 9, 9), ("1", 1, 255), ("RGBA", (7, 7, 7, 0), 7), ("LA", (8, 0), 8), ("P", 0, 0)],
)
def test_grey_palette_and_transparent_images_are_converted(tmp_path, mode, value, expected):
    path = tmp_path / "a.png"
    Pillow.new(mode, (20, 20), value).save(path)
    image = read_image(path)
    assert image.shape == (20, 20, 3) and (image == expected).all()


@pytest.mark.parametrize(
    ("mode", "name", "words"),
    [("I;16", "a.png", "I;16"), ("CMYK", "a.jpg", "CMYK"), ("F", "a.tif", "colour mode is F")],
)
def test_sixteen_bit_and_cmyk_images_are_refused(tmp_path, mode, name, words):
    Pillow.new(mode, (20, 20)).save(tmp_path / name)
    with pytest.raises(ObservationError, match=words) as caught:
        read_image(tmp_path / name)
    assert name in str(caught.value) and "8-bit" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 broken"])
def test_broken_images_are_named(folder, content):
    (folder / "frame2.png").write_bytes(content)
    frames = iter(open_source(folder))
    next(frames)
    with pytest.raises(ObservationError, match=r"frame2\.png cannot be read"):
        next(frames)


def test_images_are_turned_upright(tmp_path):
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, :5] = 255
    exif = Pillow.Exif()
    exif[0x0112] = 6  # turned a quarter to the right when shown
    Pillow.fromarray(image).save(tmp_path / "a.png", exif=exif)
    upright = read_image(tmp_path / "a.png")
    assert upright.shape == (30, 20, 3) and (upright[:5] == 255).all()


def test_a_1x1_image_is_refused_by_the_model(tmp_path):
    Pillow.new("RGB", (1, 1)).save(tmp_path / "a.png")
    policy = OpenVLAPolicy.from_pretrained(write_random_checkpoint(tmp_path / "m"))
    with pytest.raises(ObservationError, match="1x1 pixels"):
        policy.predict_action(read_image(tmp_path / "a.png"), "lift it")


# -- live sources -----------------------------------------------------------------------------


def test_a_live_source_hands_out_the_newest_and_tells_its_end(video):
    frames = iter(VideoSource(str(video), live=True))
    before = time.time()
    with pytest.raises(DataError, match="no more images come"):
        for frame in frames:
            assert before - 1 < frame.stamp < time.time() + 1
            time.sleep(0.2)


def test_a_silent_live_source_is_given_up(video, monkeypatch):
    monkeypatch.setattr(video_sources, "TIMEOUT", 0.2)
    source = VideoSource(str(video), live=True)
    monkeypatch.setattr(source, "_decode", lambda: iter(lambda: time.sleep(0.5), 0))
    with pytest.raises(DataError, match=r"no image for 0\.2 s"):
        list(source)


def test_a_live_source_can_be_closed_from_elsewhere(video, monkeypatch):
    source = VideoSource(str(video), live=True)
    monkeypatch.setattr(source, "_decode", lambda: iter(lambda: time.sleep(0.05), 0))
    threading.Timer(0.2, source.close).start()
    list(source)  # ends


# -- vla infer --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_random_checkpoint(tmp_path_factory.mktemp("model") / "m"))


def test_infer_answers_each_image_of_a_folder(folder, model, capsys):
    infer(model=model, source=str(folder), instruction="lift it", max_frames=3, as_json=True)
    out, err = capsys.readouterr()
    records = [json.loads(line) for line in out.splitlines()]
    assert [r["frame"] for r in records] == ["frame1.png", "frame2.png", "frame3.png"]
    wanted = OpenVLAPolicy.from_pretrained(model, engine="").predict_action(grey(20), "lift it")
    np.testing.assert_allclose(records[1]["actions"], wanted.actions, rtol=1e-6)
    assert records[0]["names"][-1] == "gripper" and "total" in records[0]["timing_ms"]
    assert err.startswith("3 images")


def test_infer_answers_a_video_for_people(video, model, capsys):
    infer(model=model, source=str(video), instruction="lift it", unnorm_key="normalized")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and "gripper" in lines[0] and "(+7 steps)" in lines[0]


def test_infer_refuses_before_it_loads(folder, model, tmp_path):
    with pytest.raises(VlaError, match="instruction is empty"):
        infer(model=str(tmp_path), source=str(folder), instruction=" ")
    with pytest.raises(DataError, match="no source"):
        infer(model=str(tmp_path), source=str(tmp_path / "nope"), instruction="lift it")
    with pytest.raises(VlaError, match="known: random, normalized"):
        infer(model=model, source=str(folder), instruction="lift it", unnorm_key="bridge")
    two = write_random_checkpoint(tmp_path / "two", head="l1-two-cameras")
    with pytest.raises(VlaError, match=r"takes 2 image\(s\) and 8 numbers of state"):
        infer(model=str(two), source=str(folder), instruction="lift it")


# -- the camera node --------------------------------------------------------------------------


def run_camera(kind, topic: str, wanted: int, **parameters) -> tuple[list, CameraNode]:
    """The messages until this many have come or the node has ended."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=101 + os.getpid() % 50)
    overrides = [Parameter(k, value=v) for k, v in parameters.items()]
    node = CameraNode(context=context, namespace="/cam", parameter_overrides=overrides)
    client = rclpy.create_node("client", context=context, namespace="/cam")
    got: list = []
    client.create_subscription(kind, topic, got.append, qos.IMAGE_INPUT)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(client)
    executor.add_node(node)
    try:
        if node.start():
            end = time.monotonic() + PATIENCE
            while len(got) < wanted and node.exit_status is None and time.monotonic() < end:
                executor.spin_once(timeout_sec=0.05)
    finally:
        node.trigger_shutdown()
        executor.shutdown()
        node.destroy_node()
        client.destroy_node()
        rclpy.shutdown(context=context)
    return got, node


def test_the_camera_node_publishes_a_folder_over_and_over(folder):
    got, node = run_camera(Image, "image", 15, source=str(folder), rate=50.0, frame_id="eye")
    assert len(got) >= 15 and node.exit_status is None
    values = {int(image_to_rgb(m)[0, 0, 0]) for m in got}
    assert values <= {10 * i for i in range(1, 12)} and len(values) > 5
    stamps = [m.header.stamp.sec + 1e-9 * m.header.stamp.nanosec for m in got]
    assert (np.diff(stamps) > 0).all() and abs(stamps[0] - time.time()) < PATIENCE
    # On average no faster than asked; single gaps depend on the machine.
    assert np.diff(stamps).mean() > 0.9 / 50
    assert got[0].header.frame_id == "eye"


def test_the_camera_node_publishes_a_video_once_and_ends(video):
    got, node = run_camera(
        CompressedImage,
        "image/compressed",
        99,
        source=str(video),
        rate=20.0,
        loop=False,
        image_transport="compressed",
    )
    assert node.exit_status == 0
    assert got and compressed_to_rgb(got[-1]).shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, "'source' is empty"),
        ({"source": "/nowhere"}, "there is no source"),
        (
            {"source": ".", "image_transport": "smoke"},
            "image_transport is 'smoke'; use raw or compressed",
        ),
    ],
)
def test_a_camera_that_cannot_start_says_why(parameters, words):
    got, node = run_camera(Image, "image", 1, **parameters)
    assert not got and words in node.failure


def test_a_rate_out_of_range_is_refused():
    with pytest.raises(InvalidParameterValueException, match="rate"):
        run_camera(Image, "image", 1, source=".", rate=0.0)


def test_a_source_that_breaks_ends_the_node_with_status_2(folder):
    (folder / "frame4.png").write_bytes(b"broken")
    _, node = run_camera(Image, "image", 99, source=str(folder), rate=100.0)
    assert node.exit_status == 2
