"""Tests of cameras in foreign bags: depth, video, encodings, formats, stamps."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image as Pillow
from ros_bags import CAMERA, COMPRESSED, IMAGE, Ros, usual, write_bag
from rosbags.typesys import get_types_from_msg

from vla_inference.cli.main import main
from vla_inference.errors import DataError
from vla_training.datasets.bag.reader import BagSet

ROS = Ros()
TIMES = [100 + 0.1 * i for i in range(6)]
OTHERS = [m for m in usual(ROS) if m[1] != IMAGE]


def camera(topic, encoding, channels, value=99):
    size = 32 * channels
    data = np.full(32 * size, value)
    return [(topic, IMAGE, t, ROS.image(t, encoding, 32, 32, size, data)) for t in TIMES]


def packed(topic, form, image, kind="png"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return [(topic, COMPRESSED, t, ROS.compressed(t, form, buffer.getvalue())) for t in TIMES]


@pytest.mark.parametrize(
    ("topic", "encoding", "channels"),
    [
        ("/astra/ir_raw", "16UC1", 2),
        ("/a/range", "32FC1", 4),
        ("/a/thermal", "mono16", 2),
        ("/camera/aligned_depth_to_color/image_raw", "16UC1", 2),
    ],
)
def test_a_depth_or_infrared_camera_is_not_taken_for_colour(topic, encoding, channels, tmp_path):
    messages = usual(ROS) + camera(topic, encoding, channels)
    path = write_bag(tmp_path / "bag", ROS, messages)
    read = BagSet(path)
    assert read.cameras() == ["color"]
    (image,) = read[0].steps[3].observation.images.values()
    assert (image == 60).all()
    assert any(n.startswith(f"left out: {topic}: ") and encoding in n for n in read.notes)
    with pytest.raises(DataError, match=f"{topic}: the image's encoding is '{encoding}'"):
        BagSet(path, image_topic=topic)
    alone = write_bag(tmp_path / "alone", ROS, OTHERS + camera(topic, encoding, channels))
    with pytest.raises(
        DataError, match=f"no images that can be read .*{encoding}.* colour camera"
    ):
        BagSet(alone)


def test_compressed_depth_beside_compressed_colour(tmp_path):
    colour = Pillow.new("RGB", (32, 32), (200, 100, 50))
    depth = Pillow.fromarray(np.full((32, 32), 9000, np.uint16))
    messages = OTHERS + packed("/cam/rgb/compressed", "rgb8; jpeg compressed bgr8", colour, "jpeg")
    messages += packed("/cam/aligned/compressedDepth", "16UC1; compressedDepth png", depth)
    messages += packed("/cam/aligned/compressed", "16UC1; png compressed", depth)
    read = BagSet(write_bag(tmp_path / "bag", ROS, messages))
    assert (
        read.cameras() == ["rgb"] and sum("left out: /cam/aligned" in n for n in read.notes) == 2
    )
    (image,) = read[0].steps[0].observation.images.values()
    np.testing.assert_allclose(image, np.full((32, 32, 3), (200, 100, 50)), atol=2)


def test_a_grey_camera_does_not_set_the_steps_of_a_colour_one(tmp_path):
    messages = usual(ROS) + camera("/astra/ir", "mono8", 1)
    read = BagSet(write_bag(tmp_path / "bag", ROS, messages))
    assert read.cameras() == ["color", "ir"]
    assert any(f"{CAMERA} sets the steps: /astra/ir is grey" in n for n in read.notes)
    grey = BagSet(write_bag(tmp_path / "grey", ROS, OTHERS + camera("/astra/ir", "mono8", 1)))
    assert grey.cameras() == ["ir"] and not any("grey" in n for n in grey.notes)


VIDEO = "foxglove_msgs/msg/CompressedVideo"
FFMPEG = "ffmpeg_image_transport_msgs/msg/FFMPEGPacket"
FIELDS = {
    VIDEO: "builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format\n",
    FFMPEG: "std_msgs/Header header\nint32 width\nint32 height\nstring encoding\nuint64 pts\n"
    "uint8 flags\nbool is_bigendian\nuint8[] data\n",
}


@pytest.mark.parametrize("kind", [VIDEO, FFMPEG])
def test_video_is_refused_by_its_type_with_what_unpacks_it(kind, tmp_path, capsys):
    ros, data = Ros(), np.zeros(100, np.uint8)
    ros.store.register(get_types_from_msg(FIELDS[kind], kind))
    packet = ros.store.types[kind]

    def make(t):
        if kind == FFMPEG:
            return packet(ros.header(t), 32, 32, "libx264", 0, 0, False, data)
        return packet(ros.header(t).stamp, "cam", data, "h264")

    packets = [("/camera/color/video", kind, t, make(t)) for t in TIMES]
    path = write_bag(tmp_path / "bag", ros, OTHERS + packets, "MCAP")
    assert main(["data", "info", str(path)]) == 2
    told = capsys.readouterr().err
    assert kind.replace("/msg/", "/") in told and "`ros2 run image_transport republish`" in told
    with pytest.raises(DataError, match="image_transport republish"):
        BagSet(path, image_topic="/camera/color/video")
    beside = BagSet(write_bag(tmp_path / "beside", ros, usual(ros) + packets, "MCAP"))
    assert any("left out: /camera/color/video: video" in n for n in beside.notes)


def test_yuyv_of_usb_cameras_is_read_as_the_node_reads_it(tmp_path):
    yuyv = np.tile(np.array([82, 96, 82, 233]), 32 * 16)  # a red in BT.601
    images = [(CAMERA, IMAGE, t, ROS.image(t, "yuv422_yuy2", 32, 32, 64, yuyv)) for t in TIMES]
    read = BagSet(write_bag(tmp_path / "bag", ROS, OTHERS + images))
    (image,) = read[0].steps[0].observation.images.values()
    np.testing.assert_allclose(image, np.full((32, 32, 3), (244, 4, 12)), atol=2)


def test_images_without_stamps_are_read_and_told_of(tmp_path):
    images = [(CAMERA, IMAGE, t, ROS.grey(0, 20)) for t in TIMES]
    read = BagSet(write_bag(tmp_path / "bag", ROS, OTHERS + images))
    assert len(read[0]) == 6
    assert any("no stamps" in n and "inference node refuses" in n for n in read.notes)
