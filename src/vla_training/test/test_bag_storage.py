"""Tests of bag storage: ROS 1, compressed and truncated bags, files that are no bags."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from mcap.writer import Writer as McapWriter
from ros_bags import CAMERA, IMAGE, NS, SERVO, Ros, usual, write_bag
from rosbags.rosbag1 import Writer as Ros1Writer

from vla_inference.cli.main import main
from vla_inference.errors import DataError
from vla_training.datasets import open_dataset
from vla_training.datasets.bag.reader import BagSet

ROS2, ROS1 = Ros(), Ros("ROS1_NOETIC")


def assert_usual(read, count: int = 6):
    """What `usual` says: grey 20 i, 0.1 i m/s over 0.1 s, one sentence."""
    episode = read[0]
    assert len(episode) == count
    for i, step in enumerate(episode.steps):
        (image,) = step.observation.images.values()
        assert image.shape == (32, 32, 3) and (image == 20 * i).all()
        assert step.observation.stamp == pytest.approx(100 + 0.1 * i)
    # a twist comes 1 ms after its image, so that a hundredth of the one before is in each
    np.testing.assert_allclose(
        read.actions(0)[1:-1, 0], 0.01 * np.arange(1, count - 1) - 1e-4, atol=1e-7
    )
    assert set(episode.instructions) == {"pick up the cup"}


# -- ROS 1 ------------------------------------------------------------------------------------


def ros1_bag(path, compression=None):
    writer = Ros1Writer(path)
    if compression:
        writer.set_compression(getattr(Ros1Writer.CompressionFormat, compression))
    with writer:
        connections = {}
        for topic, kind, log, message in sorted(usual(ROS1), key=lambda m: m[2]):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=ROS1.store)
            data = ROS1.store.serialize_ros1(message, kind)
            writer.write(connections[topic], round(log * NS), data)
    return path


def ros1_mcap(path, profile="ros1"):
    with path.open("wb") as file:
        writer = McapWriter(file)
        writer.start(profile=profile, library="a converter")
        channels = {}
        for topic, kind, log, message in sorted(usual(ROS1), key=lambda m: m[2]):
            if topic not in channels:
                definition = ROS1.store.generate_msgdef(kind)[0].encode()
                schema = writer.register_schema(kind.replace("/msg/", "/"), "ros1msg", definition)
                channels[topic] = writer.register_channel(topic, "ros1", schema)
            data = bytes(ROS1.store.serialize_ros1(message, kind))
            writer.add_message(channels[topic], round(log * NS), data, round(log * NS))
        writer.finish()
    return path


@pytest.mark.parametrize("compression", [None, "BZ2", "LZ4"])
def test_a_bag_of_ros_1_is_read(compression, tmp_path):
    path = ros1_bag(tmp_path / "old.bag", compression)
    read = pickle.loads(pickle.dumps(open_dataset(path)))
    assert_usual(read)
    assert not any("lost" in n for n in read.notes)
    with pytest.raises(
        DataError, match=r"it contains /camera/color/image_raw \(sensor_msgs/Image, 6\)"
    ):
        BagSet(path, action_topic="/nope")


@pytest.mark.parametrize("profile", ["ros1", ""])
def test_an_mcap_of_ros_1_is_read(profile, tmp_path):
    read = open_dataset(ros1_mcap(tmp_path / "converted.mcap", profile))
    assert_usual(read)
    assert not any("lost" in n for n in read.notes)


def test_bags_of_ros_1_in_a_folder_are_one_each_and_convert(tmp_path, capsys):
    folder = tmp_path / "old"
    folder.mkdir()
    for name in ("b", "a"):
        ros1_bag(folder / f"{name}.bag")
    (folder / "notes.txt").write_text("x")
    read = open_dataset(folder)
    assert [read.bag_path(i).name for i in range(len(read))] == ["a.bag", "b.bag"]
    words = ["convert", "--dataset", str(folder), "--convert", "hdf5", "--workers", "1"]
    assert main([*words, "--output", str(tmp_path / "out.hdf5")]) == 0
    assert len(open_dataset(tmp_path / "out.hdf5")) == 2
    assert main(["data", "info", str(folder / "a.bag")]) == 0


def test_a_cut_bag_of_ros_1_is_refused_with_its_remedy(tmp_path):
    path = ros1_bag(tmp_path / "old.bag")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"old\.bag cannot be read .*rosbag reindex"):
        BagSet(path)


def test_an_mcap_of_other_encodings_is_refused_by_them(tmp_path):
    path = tmp_path / "foxglove.mcap"
    with path.open("wb") as file:
        writer = McapWriter(file)
        writer.start()
        schema = writer.register_schema("foxglove.CompressedImage", "protobuf", b"x")
        channel = writer.register_channel("/camera", "protobuf", schema)
        writer.add_message(channel, 1, b"abc", 1)
        writer.finish()
    with pytest.raises(DataError, match="messages in protobuf, none of ROS; record"):
        BagSet(path)


# -- packed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("alone", ["whole", "no metadata", "file alone"])
@pytest.mark.parametrize("mode", ["FILE", "MESSAGE", "STORAGE"])
@pytest.mark.parametrize("storage", ["SQLITE3", "MCAP"])
def test_zstd_in_all_modes_with_and_without_metadata(storage, mode, alone, tmp_path):
    if (storage, mode) == ("SQLITE3", "STORAGE"):
        return  # there is no such thing
    path = write_bag(tmp_path / "bag", ROS2, usual(ROS2), storage, mode)
    (file,) = (f for f in path.iterdir() if f.name != "metadata.yaml")
    assert (file.suffix == ".zstd") == (mode == "FILE")
    if alone == "no metadata":
        (path / "metadata.yaml").unlink()
    read = open_dataset(file if alone == "file alone" else path)
    assert_usual(pickle.loads(pickle.dumps(read)))
    assert [n for n in read.notes if "lost" in n] == (
        ["damaged, lost: metadata.yaml is missing: the recorder may have been killed"]
        if alone == "no metadata"
        else []
    )


def test_a_packed_file_that_is_cut_gives_what_comes_out(tmp_path):
    noise = np.random.default_rng(0)
    messages = usual(ROS2, 40)
    for i in range(400):  # so that there is more than one block
        data = noise.integers(0, 256, 3072)
        messages.append(
            ("/other", IMAGE, 100 + 0.01 * i, ROS2.image(100, "rgb8", 32, 32, 96, data))
        )
    path = write_bag(tmp_path / "bag", ROS2, messages, "MCAP", "FILE")
    (file,) = path.glob("*.zstd")
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    read = BagSet(path, image_topic=CAMERA)
    assert 10 < len(read[0]) < 40
    assert any(n.startswith("damaged, lost: bag.mcap.zstd:") for n in read.notes)


# -- cut --------------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", [True, False])
@pytest.mark.parametrize("missing", [SERVO, "/task", CAMERA])
def test_a_bag_cut_before_a_topics_first_message(missing, metadata, tmp_path, capsys):
    """The metadata, where it is kept, tells of the topic; the file has no channel of it."""
    whole = write_bag(tmp_path / "whole", ROS2, usual(ROS2), "MCAP")
    rest = [m for m in usual(ROS2) if m[0] != missing]
    path = write_bag(tmp_path / "cut", ROS2, rest, "MCAP")
    data = (path / "cut.mcap").read_bytes()
    (path / "cut.mcap").write_bytes(data[:-300])  # the index is gone too
    (path / "metadata.yaml").unlink()
    if metadata:
        text = (whole / "metadata.yaml").read_text().replace("whole.mcap", "cut.mcap")
        (path / "metadata.yaml").write_text(text)
    if missing == "/task":
        read = BagSet(path)
        assert len(read[0]) == 6 and read[0].instructions == [""] * 6
    else:
        with pytest.raises(DataError) as caught:
            BagSet(path)
        words = ("no step that could be used", missing) if metadata else ("has no",)
        assert all(w in str(caught.value) for w in words), caught.value
    assert main(["data", "info", str(path)]) == (0 if missing == "/task" else 2)
    assert "Traceback" not in capsys.readouterr().err


def test_messages_that_the_metadata_counts_and_the_file_lacks_are_told(tmp_path):
    path = write_bag(tmp_path / "bag", ROS2, usual(ROS2))
    text = (path / "metadata.yaml").read_text()
    assert text.count("message_count: 6") == 2
    (path / "metadata.yaml").write_text(text.replace("message_count: 6", "message_count: 9"))
    read = BagSet(path)
    assert_usual(read)
    lost = [n for n in read.notes if "lost" in n]
    assert lost == [f"damaged, lost: 3 of 9 messages of {t}" for t in (CAMERA, SERVO)]
