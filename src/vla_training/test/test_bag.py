"""rosbag2 bags: written and read by us and by others, whole and damaged."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import sqlite3

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from rosbags.highlevel import AnyReader
from scipy.spatial.transform import Rotation

from vla_inference.errors import DataError
from vla_inference.types import Episode, Observation, Step, eef_delta_spec
from vla_training.datasets import bag_types as types
from vla_training.datasets import open_dataset
from vla_training.datasets.bag import BagSet
from vla_training.datasets.bag_actions import _from_targets, _from_twists
from vla_training.datasets.bag_streams import NS, Stream, decode_image
from vla_training.datasets.bag_writer import BagWriter, _header, _vector
from vla_training.datasets.episode_bag import EpisodeBag, make_message
from vla_training.datasets.writers import DataForm

CAMERAS = {"agentview": (48, 64), "wrist": (32, 40)}
STORAGES = ("mcap", "sqlite3")


def episode(seed=0, length=12, rotation="rotvec") -> Episode:
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, 64)[None, :, None] + rng.integers(0, 50, 3)
    steps = [
        Step(
            Observation(
                {
                    "agentview": (np.zeros((48, 64, 3)) + ramp + t).astype(np.uint8),
                    "wrist": rng.integers(0, 256, (32, 40, 3), np.uint8),
                },
                "lege den roten Würfel ab" if t < 5 else "stop",
                rng.normal(size=8).astype(np.float32),
            ),
            np.append(0.01 * rng.normal(size=6), t % 2).astype(np.float32),
            float(t == length - 1) / 3, t == 0, t == length - 1, t == length - 1,
        )
        for t in range(length)
    ]  # fmt: skip
    about = {"task": "Stack_D0", "seed": 7, "outcome": "success", "success": True}
    return Episode(steps, eef_delta_spec(rotation, "base", 0.05), about)


def write(path, episodes, **options):
    pictures = [[dict(s.observation.images) for s in e.steps] for e in episodes]
    with BagWriter(path, DataForm("mine", episodes[0].spec, CAMERAS, 8), **options) as writer:
        for e in episodes:
            writer.write(e)
    return pictures


def assert_same(found: Episode, wanted: Episode):
    assert found.spec == wanted.spec and found.metadata == wanted.metadata
    assert found.instructions == wanted.instructions
    for a, b in zip(found.steps, wanted.steps, strict=True):
        np.testing.assert_array_equal(a.action, b.action, strict=True)
        np.testing.assert_array_equal(a.observation.state, b.observation.state, strict=True)
        assert (a.reward, a.is_first, a.is_last, a.is_terminal) == (
            b.reward, b.is_first, b.is_last, b.is_terminal,
        )  # fmt: skip


@pytest.mark.parametrize("storage", STORAGES)
def test_what_is_written_is_read_again(storage, tmp_path):
    episodes = [episode(0), episode(1, 5)]
    pictures = write(tmp_path / "set", episodes, storage=storage)
    read = pickle.loads(pickle.dumps(BagSet(tmp_path / "set")))
    assert len(read) == 2 and read.name == "mine" and read.cameras() == ["agentview", "wrist"]
    for found, wanted, images in zip(read, episodes, pictures, strict=True):
        assert_same(found, wanted)
        for step, original in zip(found.steps, images, strict=True):
            for camera, picture in original.items():
                np.testing.assert_array_equal(step.observation.images[camera], picture)
    assert read.notes == []


def test_jpeg_pictures_are_close_to_the_original(tmp_path):
    (images,) = write(tmp_path / "set", [episode()], pictures="jpeg")
    for step, original in zip(BagSet(tmp_path / "set")[0].steps, images, strict=True):
        error = step.observation.images["agentview"].astype(float) - original["agentview"]
        assert 10 * np.log10(255**2 / np.mean(error**2)) >= 35


@pytest.mark.parametrize("action", ["twist", "pose"])
@pytest.mark.parametrize("rotation", ["rotvec", "rpy"])
def test_actions_as_twists_and_targets(action, rotation, tmp_path):
    wanted = episode(3, rotation=rotation)
    write(tmp_path / "set", [wanted], action=action)
    actions = BagSet(tmp_path / "set").actions(0)
    turns = wanted.actions[:, 3:6]
    if rotation == "rpy":
        turns = Rotation.from_euler("xyz", turns).as_rotvec()
    np.testing.assert_allclose(actions[:, :3], wanted.actions[:, :3], atol=1e-8)
    np.testing.assert_allclose(actions[:, 3:6], turns, atol=1e-7)
    np.testing.assert_array_equal(actions[:, 6], wanted.actions[:, 6])


def test_others_read_them(tmp_path):
    """Also our own message, by the definition in the bag alone."""
    wanted = episode()
    write(tmp_path / "set", [wanted])
    folder = tmp_path / "set" / "episode_000000"
    with AnyReader([folder]) as reader:
        chunks = [
            reader.deserialize(data, c.msgtype)
            for c, _, data in reader.messages()
            if c.topic == "/action"
        ]
    assert [c.steps[0].translation.x for c in chunks] == wanted.actions[:, 0].tolist()
    with (folder / "episode_000000.mcap").open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        found = [m for *_, m in reader.iter_decoded_messages(["/action", "/episode"])]
    assert len(found) == len(wanted) + 2
    assert found[1].steps[0].gripper == wanted.actions[0, 6]
    assert found[-1].outcome == "success" and found[-1].done


@pytest.mark.parametrize("storage", STORAGES)
def test_metadata_as_humble_writes_it(storage, tmp_path):
    wanted = episode()
    write(tmp_path / "set", [wanted], storage=storage)
    folder = tmp_path / "set" / "episode_000000"
    info = yaml.safe_load((folder / "metadata.yaml").read_text())
    inner = info["rosbag2_bagfile_information"]
    inner["version"] = 5
    for key in ("custom_data", "ros_distro"):
        del inner[key]
    for topic in inner["topics_with_message_count"]:
        del topic["topic_metadata"]["type_description_hash"]
    (folder / "metadata.yaml").write_text(yaml.safe_dump(info))
    if storage == "sqlite3":  # Humble's has no definitions, so ours must do
        with sqlite3.connect(folder / "episode_000000.db3") as database:
            database.executescript(
                "DROP TABLE message_definitions; DROP TABLE schema; DROP TABLE metadata;"
                "ALTER TABLE topics DROP COLUMN type_description_hash"
            )
    read = BagSet(folder)
    np.testing.assert_array_equal(read[0].actions, wanted.actions)
    assert read[0].instructions == wanted.instructions
    assert read[0].metadata["outcome"] == "success"  # by EpisodeStatus
    assert read.cameras() == ["image", "wrist"]


@pytest.mark.parametrize("storage", STORAGES)
def test_a_bag_cut_anywhere_gives_what_is_readable(storage, tmp_path):
    wanted = episode(length=60)
    write(tmp_path / "set", [wanted], storage=storage)
    whole = tmp_path / "set" / "episode_000000"
    (file,) = (f for f in whole.iterdir() if f.suffix != ".yaml")
    size, rng, lengths = file.stat().st_size, random.Random(1), []
    for number, at in enumerate(sorted(rng.sample(range(100, size - 1), 20))):
        folder = tmp_path / f"cut_{number}"
        shutil.copytree(whole, folder)
        with (folder / file.name).open("r+b") as cut:
            cut.truncate(at)
        if number % 2:
            (folder / "metadata.yaml").unlink()  # the recorder was killed
        try:
            read = BagSet(folder)
            read.read_all()
        except DataError as error:
            assert "damaged" in str(error) or "no step" in str(error) or "has no" in str(error)
            lengths.append(0)
            continue
        found = read[0]
        lengths.append(len(found))
        for a, b in zip(found.steps, wanted.steps, strict=False):
            np.testing.assert_array_equal(a.action, b.action)
            assert a.observation.images["agentview" if number % 2 == 0 else "image"].any()
        if len(found) < len(wanted):
            assert any(n.startswith("damaged, lost") for n in read.notes)
    assert lengths == sorted(lengths) and lengths[-1] > 50 and sum(n > 0 for n in lengths) > 14


# -- bags of others ---------------------------------------------------------------------------


def bag_with(path, frames, action_kind, messages, more=()):
    """frames: stamps in s; messages, more: (topic, kind, log in s, fields)."""
    bag = EpisodeBag(path)
    for number, stamp in enumerate(frames):
        ns = round(stamp * NS)
        data = np.full(20 * 16 * 3, number % 250, np.uint8)
        image = bag.make(types.IMAGE, header=_header(bag, ns, "cam"), height=16, width=20,
                         encoding="rgb8", step=60, data=data)  # fmt: skip
        bag.put("/cam/image_raw", types.IMAGE, ns, image)
    for topic, kind, log, make in (*messages, *more):
        bag.put(topic, kind, round(log * NS), make(bag))
    bag._writer.close()
    return path


def twist(stamp, vx, wz=0.0, frame="base_link"):
    def make(bag):
        inner = bag.make("geometry_msgs/msg/Twist", linear=_vector(bag, vx, 0, 0),
                         angular=_vector(bag, 0, 0, wz))  # fmt: skip
        return bag.make(types.TWIST, header=_header(bag, round(stamp * NS), frame), twist=inner)

    return "/servo/delta_twist_cmds", types.TWIST, stamp, make


def text(log, words):
    return "/task", types.STRING, log, lambda bag: bag.make(types.STRING, data=words)


def number(topic, log, value):
    return topic, types.DOUBLE, log, lambda bag: bag.make(types.DOUBLE, data=value)


def test_twists_faster_than_the_camera_and_a_gripper_of_its_own(tmp_path):
    frames = [100 + 0.1 * i for i in range(10)]
    twists = [twist(99.99 + 0.02 * i, 0.1, 0.5) for i in range(60)]
    more = [text(90, "pick"), number("/gripper", 99, 0.04), number("/gripper", 100.45, 0.0)]
    path = bag_with(tmp_path / "bag", frames, types.TWIST, twists, more)
    read = BagSet(path, gripper_range=(0.0, 0.04))
    np.testing.assert_allclose(read.actions(0)[:, 0], 0.01, rtol=1e-6)
    np.testing.assert_allclose(read.actions(0)[:, 5], 0.05, rtol=1e-6)
    assert read.actions(0)[:, 6].tolist() == [1] * 4 + [0] * 6
    assert read.spec.dt == 0.1 and read[0].instructions == ["pick"] * 10
    assert any("'base_link' are taken for those in the base axes" in n for n in read.notes)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=6, max_size=6), st.integers(1, 5), st.integers(2, 8))
def test_constant_motion_integrates_to_itself(velocity, per_frame, count):
    """Whatever the rates: a twist held for a step is its velocity times the step's length."""
    frames = NS + np.arange(count) * NS // 10
    at = NS + np.arange(count * per_frame) * (NS // 10) // per_frame
    ends = np.append(frames[1:], frames[-1] + NS // 10)
    stream = Stream(at, at, [(tuple(velocity), "base")] * len(at), True)
    motion, known, _ = _from_twists(stream, frames, ends, 0)
    assert known.all()
    np.testing.assert_allclose(motion, np.tile(0.1 * np.array(velocity), (count, 1)), atol=1e-6)
    poses, turn = [], Rotation.identity()
    step = Rotation.from_rotvec(0.1 * np.array(velocity[3:]))
    for i in range(count + 1):
        poses.append(((*(i * 0.1 * np.array(velocity[:3])), *turn.as_quat()), "base"))
        turn = step * turn
    stream = Stream(np.append(frames[0] - 1, frames), np.zeros(0), poses, True)
    motion, known, _ = _from_targets(stream, frames, ends, 0)
    assert known.all()
    np.testing.assert_allclose(motion, np.tile(0.1 * np.array(velocity), (count, 1)), atol=1e-6)


def test_joint_states_by_forward_kinematics(tmp_path):
    model = tmp_path / "arm.urdf"
    joint = ('<joint name="{0}" type="{1}"><parent link="{2}"/><child link="{3}"/>'
             '<axis xyz="0 0 1"/><limit lower="-9" upper="9" effort="1" velocity="1"/>'
             '<origin xyz="{4} 0 0"/></joint>')  # fmt: skip
    mass = ('<inertial><mass value="1"/><inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" '
            'iyz="0"/></inertial>')  # fmt: skip
    model.write_text(
        '<robot name="a"><mujoco><compiler fusestatic="false"/></mujoco><link name="base"/>'
        + "".join(f'<link name="{n}">{mass}</link>' for n in ("arm", "tip"))
        + joint.format("lift", "prismatic", "base", "arm", 0)
        + joint.format("turn", "revolute", "arm", "tip", 0.5) + "</robot>"
    )  # fmt: skip

    def joints(t):
        def make(bag):
            return bag.make(types.JOINTS, header=_header(bag, round(t * NS), ""),
                            name=["lift", "turn", "finger"],
                            position=np.array([0.2 * (t - 50), 0.3 * (t - 50), 0.04]))  # fmt: skip

        return "/joint_states", types.JOINTS, t, make

    frames = [50 + 0.1 * i for i in range(8)]
    path = bag_with(tmp_path / "bag", frames, types.JOINTS,
                    [joints(49.9 + 0.03 * i) for i in range(40)])  # fmt: skip
    with pytest.raises(DataError, match="joint states need --robot-model"):
        BagSet(path)
    read = BagSet(path, robot_model=str(model), robot_tip="tip", gripper_joint="finger",
                  gripper_range=(0.0, 0.04), instruction_topic=None)  # fmt: skip
    want = [0, 0, 0.02, 0, 0, 0.03, 1]
    np.testing.assert_allclose(read.actions(0), np.tile(want, (8, 1)), atol=1e-9)
    with pytest.raises(DataError, match=r"no site or body 'hand'.*arm, tip"):
        BagSet(path, robot_model=str(model), robot_tip="hand")


def test_disorder_missing_actions_and_gaps_are_told(tmp_path):
    frames = [100 + 0.1 * i for i in range(10)] + [130 + 0.1 * i for i in range(5)]
    twists = [twist(100 + 0.1 * i, 0.1) for i in range(6)]
    twists += [twist(130 + 0.1 * i, 0.2) for i in range(5)]
    shuffled = [(t, k, 200 - i, m) for i, (t, k, _, m) in enumerate(twists)]
    path = bag_with(tmp_path / "bag", frames, types.TWIST, shuffled, [text(1, "a")])
    read = BagSet(path)
    assert len(read) == 2
    np.testing.assert_allclose(read.actions(1)[:, 0], 0.02, atol=1e-9)
    assert any("messages of /servo/delta_twist_cmds were out of order" in n for n in read.notes)
    with pytest.raises(DataError, match=r"no topic '/nope'.*it holds /cam/image_raw"):
        BagSet(path, action_topic="/nope")
    with pytest.raises(DataError, match="/task is std_msgs/msg/String, --image-topic takes"):
        BagSet(path, image_topic="task")


def test_pictures_without_an_action_are_left_out_and_counted(tmp_path):
    wanted = episode()
    write(tmp_path / "set", [wanted])
    folder = tmp_path / "set" / "episode_000000"
    bag = BagSet(folder)
    late = EpisodeBag(tmp_path / "late")
    file = bag._files[0]
    for message in file.messages(set(file.topics)):
        if message.topic != "/action" or message.log % (3 * NS // 20):
            late.write(message.topic, file.topics[message.topic].type, message.log, message.data)
    late.close({}, {})
    read = BagSet(tmp_path / "late")
    assert 0 < len(read[0]) < len(wanted)
    assert (
        f"{len(wanted) - len(read[0])} of 12 pictures left out: no action within 0 s" in read.notes
    )


@pytest.mark.parametrize(
    ("encoding", "pixel", "channels"),
    [("rgb8", (10, 20, 30), 3), ("bgr8", (30, 20, 10), 3), ("rgba8", (10, 20, 30, 9), 4),
     ("bgra8", (30, 20, 10, 9), 4), ("8UC3", (30, 20, 10), 3)],
)  # fmt: skip
def test_encodings_with_padded_rows(encoding, pixel, channels):
    store = types.known_types()
    row = np.tile(np.array(pixel, np.uint8), 20)
    data = np.tile(np.append(row, np.zeros(4, np.uint8)), 16)
    image = make_message(store, types.IMAGE, height=16, width=20, encoding=encoding,
                         step=20 * channels + 4, data=data)  # fmt: skip
    picture = decode_image(types.IMAGE, image, "x")
    assert picture.shape == (16, 20, 3) and (picture == (10, 20, 30)).all()


@pytest.mark.parametrize(
    ("encoding", "red", "blue"),
    [("bayer_rggb8", (0, 0), (1, 1)), ("bayer_bggr8", (1, 1), (0, 0)),
     ("bayer_gbrg8", (1, 0), (0, 1)), ("bayer_grbg8", (0, 1), (1, 0))],
)  # fmt: skip
def test_bayer_patterns(encoding, red, blue):
    pixels = np.full((16, 20), 100, np.uint8)
    pixels[red[0] :: 2, red[1] :: 2] = 200
    pixels[blue[0] :: 2, blue[1] :: 2] = 50
    image = make_message(types.known_types(), types.IMAGE, height=16, width=20,
                         encoding=encoding, step=20, data=pixels.ravel())  # fmt: skip
    picture = decode_image(types.IMAGE, image, "x")
    assert (picture[4:-4, 4:-4] == (200, 100, 50)).all()


def test_deeper_and_yuv_pictures():
    wide = np.tile(np.array([10, 20, 30], "<u2") << 8, (16, 20)).view(np.uint8)
    yuv = np.tile(np.array([128, 90, 128, 90], np.uint8), (16, 10))
    store = types.known_types()
    for encoding, data, step, want in (("rgb16", wide, 120, (10, 20, 30)),
                                       ("yuv422", yuv, 40, (86, 86, 86))):  # fmt: skip
        image = make_message(store, types.IMAGE, height=16, width=20, encoding=encoding,
                             step=step, data=data.ravel())  # fmt: skip
        picture = decode_image(types.IMAGE, image, "x").astype(int)
        assert np.abs(picture - want).max() <= 1
    image = make_message(store, types.IMAGE, height=16, width=20, encoding="32FC1", step=80)
    with pytest.raises(DataError, match="encoding is '32FC1'; known: rgb8"):
        decode_image(types.IMAGE, image, "x")


def test_several_episodes_in_one_bag_by_their_status(tmp_path):
    bag = EpisodeBag(tmp_path / "bag")
    stamp, grey = 100 * NS, np.zeros(256, np.uint8)

    def status(step, done, index):
        bag.put("/sim/episode", types.EPISODE, stamp,
                bag.make(types.EPISODE, header=_header(bag, stamp, ""), step=step, done=done,
                         index=index, task="T", outcome="success" if done else "running",
                         instruction=f"task {index}", reward=float(done)))  # fmt: skip

    for index, length in enumerate((3, 4)):
        stamp += NS // 100
        status(0, False, index)
        for t in range(length):
            stamp += NS // 20
            picture = bag.make(types.IMAGE, header=_header(bag, stamp, "c"), height=16, width=16,
                               encoding="mono8", step=16, data=grey)  # fmt: skip
            bag.put("/image", types.IMAGE, stamp, picture)
            delta = bag.make(types.EEF_DELTA, rotation_convention="rotvec", dt=0.05,
                             frame_id="base", gripper=float(index))  # fmt: skip
            bag.put("/action", types.CHUNK, stamp,
                    bag.make(types.CHUNK, header=_header(bag, stamp, "base"), steps=[delta] * 8,
                             instruction=f"told {index}"))  # fmt: skip
            status(2 * t + 1, False, index)
            status(2 * t + 2, t == length - 1, index)
    bag._writer.close()
    read = BagSet(tmp_path / "bag")
    assert [len(e) for e in read] == [3, 4]
    assert read[1].metadata["outcome"] == "success" and read[1].instructions == ["told 1"] * 4
    assert read.episode(0).executed.tolist() == [2, 2, 2]
    assert [c.actions.shape for c in read.chunks(1)] == [(8, 7)] * 4
    assert [s.reward for s in read[0].steps] == [0, 0, 1] and read[0].steps[-1].is_terminal


def test_a_bag_of_others_is_converted(tmp_path, capsys):
    from vla_inference.cli import main

    frames = [100 + 0.1 * i for i in range(4)]
    twists = [twist(100 + 0.1 * i, 0.1) for i in range(4)]
    path = bag_with(tmp_path / "bag", frames, types.TWIST, twists,
                    [text(1, "pick"), number("/hand", 99, 0.08)])  # fmt: skip
    words = ["convert", "--dataset", str(path), "--convert", "hdf5", "--workers", "1",
             "--output", str(tmp_path / "out.hdf5"), "--read", "gripper_topic=/hand"]  # fmt: skip
    assert main([*words, "--read", "gripper_range=[0.0, 0.08]"]) == 0
    read = open_dataset(tmp_path / "out.hdf5")
    np.testing.assert_allclose(read.actions(0)[:, 0], 0.01, rtol=1e-6)
    assert read.actions(0)[:, 6].tolist() == [1] * 4 and read[0].instructions == ["pick"] * 4
    capsys.readouterr()
    assert main([*words, "--overwrite", "--read", "gripper_range=wide"]) == 2
    assert "gripper_range is 'wide'; give [CLOSED, OPEN]" in capsys.readouterr().err


def test_writer_refuses_what_it_cannot_store(tmp_path):
    with pytest.raises(DataError, match="unknown storage 'bag1'; use mcap or sqlite3"):
        write(tmp_path / "a", [episode()], storage="bag1")
    bad = episode()
    bad.steps[3].action[0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        write(tmp_path / "b", [bad])
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "c", [episode()])
    about = yaml.safe_load((tmp_path / "c/episode_000000/metadata.yaml").read_text())
    custom = about["rosbag2_bagfile_information"]["custom_data"]
    assert custom["instruction"] == "lege den roten Würfel ab" and custom["outcome"] == "success"
    assert json.loads(custom["vla_episode"])["metadata"]["task"] == "Stack_D0"
