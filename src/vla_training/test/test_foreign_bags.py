"""Tests of rosbag2 bags from other recorders: other messages, encodings, unordered data."""

from __future__ import annotations

import numpy as np
import pytest
from bags import convert_words, put_image
from hypothesis import given, settings
from hypothesis import strategies as st
from old_bags import OldBag, write_old_bag
from scipy.spatial.transform import Rotation

from vla_inference.errors import DataError
from vla_inference.policies.action_specs import aloha_spec
from vla_inference.types import eef_delta_spec
from vla_training.datasets import open_dataset
from vla_training.datasets.action_form import join_actions
from vla_training.datasets.bag.actions import _from_targets, _from_twists
from vla_training.datasets.bag.episode_bag import EpisodeBag, make_message
from vla_training.datasets.bag.files import message_types as types
from vla_training.datasets.bag.reader import BagSet
from vla_training.datasets.bag.streams import NS, Stream, decode_image
from vla_training.datasets.bag.writer import _header, _parts, _vector


def bag_with(path, frames, action_kind, messages, more=()):
    """frames: stamps in s; messages, more: (topic, kind, log in s, fields)."""
    bag = EpisodeBag(path)
    for number, stamp in enumerate(frames):
        ns = round(stamp * NS)
        put_image(bag, "/cam/image_raw", ns, np.full((16, 20, 3), number % 250, np.uint8))
    for topic, kind, log, make in (*messages, *more):
        bag.put(topic, kind, round(log * NS), make(bag))
    bag._writer.close()
    return path


def twist(stamp, vx, wz=0.0, frame="base_link"):
    def make(bag):
        inner = bag.make(
            "geometry_msgs/msg/Twist",
            linear=_vector(bag, vx, 0, 0),
            angular=_vector(bag, 0, 0, wz),
        )
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


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.floats(-1, 1), min_size=6, max_size=6), min_size=1, max_size=12),
    st.integers(1, 5),
    st.sampled_from(["base", "tool"]),
)
def test_twists_add_up_as_joined_actions_do(twists, per_frame, frame):
    """Twists of 20 ms each over frames of `per_frame` of them, in either frame."""
    at = NS + np.arange(len(twists)) * NS // 50
    frames = at[::per_frame]
    ends = np.append(frames[1:], at[-1] + NS // 50)
    stream = Stream(at, at, [(tuple(t), frame) for t in twists], True)
    motion, known, _ = _from_twists(stream, frames, ends, 0, frame)
    deltas = np.column_stack([0.02 * np.array(twists), np.ones(len(twists))])
    wanted = join_actions(deltas, eef_delta_spec("rotvec", frame, 0.02), per_frame)
    assert known.all()
    np.testing.assert_allclose(motion, wanted[:, :6], atol=1e-9)


def test_a_twist_in_the_tools_frame_goes_round(tmp_path):
    """0.1 m/s ahead and 1 rad/s about z is an arc: (sin 1, 1 - cos 1) / 10 after a second."""
    twists = [twist(100 + 0.01 * i, 0.1, 1.0, "tool") for i in range(300)]
    path = bag_with(tmp_path / "bag", [100, 101, 102], types.TWIST, twists, [text(90, "turn")])
    arc = [0.1 * np.sin(1), 0.1 * (1 - np.cos(1)), 0, 0, 0, 1]
    np.testing.assert_allclose(BagSet(path).actions(0)[:, :6], np.tile(arc, (3, 1)), atol=6e-4)
    assert BagSet(path).spec.frame == "tool"


def test_joint_states_by_forward_kinematics(tmp_path):
    model = tmp_path / "arm.urdf"
    joint = (
        '<joint name="{0}" type="{1}"><parent link="{2}"/><child link="{3}"/>'
        '<axis xyz="0 0 1"/><limit lower="-9" upper="9" effort="1" velocity="1"/>'
        '<origin xyz="{4} 0 0"/></joint>'
    )
    mass = (
        '<inertial><mass value="1"/><inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" '
        'iyz="0"/></inertial>'
    )
    model.write_text(
        '<robot name="a"><mujoco><compiler fusestatic="false"/></mujoco><link name="base"/>'
        + "".join(f'<link name="{n}">{mass}</link>' for n in ("arm", "tip"))
        + joint.format("lift", "prismatic", "base", "arm", 0)
        + joint.format("turn", "revolute", "arm", "tip", 0.5)
        + "</robot>"
    )

    def joints(t):
        def make(bag):
            return bag.make(
                types.JOINTS,
                header=_header(bag, round(t * NS), ""),
                name=["lift", "turn", "finger"],
                position=np.array([0.2 * (t - 50), 0.3 * (t - 50), 0.04]),
            )

        return "/joint_states", types.JOINTS, t, make

    frames = [50 + 0.1 * i for i in range(8)]
    path = bag_with(
        tmp_path / "bag", frames, types.JOINTS, [joints(49.9 + 0.03 * i) for i in range(40)]
    )
    with pytest.raises(DataError, match="joint states need --robot-model"):
        BagSet(path)
    read = BagSet(
        path,
        robot_model=str(model),
        robot_tip="tip",
        gripper_joint="finger",
        gripper_range=(0.0, 0.04),
        instruction_topic=None,
    )
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
    with pytest.raises(DataError, match=r"no topic '/nope'.*it contains /cam/image_raw"):
        BagSet(path, action_topic="/nope")
    with pytest.raises(DataError, match="/task is std_msgs/msg/String, --image-topic takes"):
        BagSet(path, image_topic="task")


@pytest.mark.parametrize(
    ("encoding", "pixel", "channels"),
    [
        ("rgb8", (10, 20, 30), 3),
        ("bgr8", (30, 20, 10), 3),
        ("rgba8", (10, 20, 30, 9), 4),
        ("bgra8", (30, 20, 10, 9), 4),
        ("8UC3", (30, 20, 10), 3),
    ],
)
def test_encodings_with_padded_rows(encoding, pixel, channels):
    store = types.known_types()
    row = np.tile(np.array(pixel, np.uint8), 20)
    data = np.tile(np.append(row, np.zeros(4, np.uint8)), 16)
    image = make_message(
        store,
        types.IMAGE,
        height=16,
        width=20,
        encoding=encoding,
        step=20 * channels + 4,
        data=data,
    )
    pixels = decode_image(types.IMAGE, image, "x")
    assert pixels.shape == (16, 20, 3) and (pixels == (10, 20, 30)).all()


@pytest.mark.parametrize(
    ("encoding", "red", "blue"),
    [
        ("bayer_rggb8", (0, 0), (1, 1)),
        ("bayer_bggr8", (1, 1), (0, 0)),
        ("bayer_gbrg8", (1, 0), (0, 1)),
        ("bayer_grbg8", (0, 1), (1, 0)),
    ],
)
def test_bayer_patterns(encoding, red, blue):
    pixels = np.full((16, 20), 100, np.uint8)
    pixels[red[0] :: 2, red[1] :: 2] = 200
    pixels[blue[0] :: 2, blue[1] :: 2] = 50
    image = make_message(
        types.known_types(),
        types.IMAGE,
        height=16,
        width=20,
        encoding=encoding,
        step=20,
        data=pixels.ravel(),
    )
    pixels = decode_image(types.IMAGE, image, "x")
    assert (pixels[4:-4, 4:-4] == (200, 100, 50)).all()


def test_deeper_and_yuv_images():
    wide = np.tile(np.array([10, 20, 30], "<u2") << 8, (16, 20)).view(np.uint8)
    yuv = np.tile(np.array([128, 90, 128, 90], np.uint8), (16, 10))
    store = types.known_types()
    for encoding, data, step, want in (
        ("rgb16", wide, 120, (10, 20, 30)),
        ("yuv422", yuv, 40, (86, 86, 86)),
    ):
        image = make_message(
            store,
            types.IMAGE,
            height=16,
            width=20,
            encoding=encoding,
            step=step,
            data=data.ravel(),
        )
        pixels = decode_image(types.IMAGE, image, "x").astype(int)
        assert np.abs(pixels - want).max() <= 1
    image = make_message(store, types.IMAGE, height=16, width=20, encoding="32FC1", step=80)
    with pytest.raises(DataError, match="encoding is '32FC1': depth or infrared"):
        decode_image(types.IMAGE, image, "x")


def test_several_episodes_in_one_bag_by_their_status(tmp_path):
    bag = EpisodeBag(tmp_path / "bag")
    stamp = 100 * NS

    def status(step, done, index):
        bag.put(
            "/sim/episode",
            types.EPISODE,
            stamp,
            bag.make(
                types.EPISODE,
                header=_header(bag, stamp, ""),
                step=step,
                done=done,
                index=index,
                task="T",
                outcome="success" if done else "running",
                instruction=f"task {index}",
                reward=float(done),
            ),
        )

    for index, length in enumerate((3, 4)):
        stamp += NS // 100
        status(0, False, index)
        for t in range(length):
            stamp += NS // 20
            put_image(bag, "/image", stamp, np.zeros((16, 16), np.uint8))
            bag.put(
                "/action",
                types.CHUNK,
                stamp,
                bag.make(
                    types.CHUNK,
                    header=_header(bag, stamp, "base"),
                    parts=_parts(bag, eef_delta_spec()),
                    dt=0.05,
                    actions=np.tile([0, 0, 0, 0, 0, 0, float(index)], 8),
                    instruction=f"told {index}",
                ),
            )
            status(2 * t + 1, False, index)
            status(2 * t + 2, t == length - 1, index)
    bag._writer.close()
    read = BagSet(tmp_path / "bag")
    assert [len(e) for e in read] == [3, 4]
    assert read[1].metadata["outcome"] == "success" and read[1].instructions == ["told 1"] * 4
    assert read.episode(0).executed.tolist() == [2, 2, 2]
    assert [c.actions.shape for c in read.chunks(1)] == [(8, 7)] * 4
    assert [s.reward for s in read[0].steps] == [0, 0, 1] and read[0].steps[-1].is_terminal


# -- bags of the older form --------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("rotation", ["rotvec", "rpy"])
def test_chunks_of_eef_deltas_are_read_by_the_bags_own_definitions(tmp_path, storage, rotation):
    rows = np.random.default_rng(1).uniform(0, 0.05, (4, 7))
    path = write_old_bag(tmp_path / "old", rows, storage, rotation_convention=rotation, dt=0.1)
    read = BagSet(path)
    assert read.spec == eef_delta_spec(rotation, "base", 0.1)
    np.testing.assert_array_equal(read.actions(0), rows)
    chunks = read.chunks(0)
    assert [c.actions.shape for c in chunks] == [(2, 7)] * 4
    assert chunks[2].actions[1, 6] == 0 and (chunks[2].instruction, chunks[2].model) == (
        "go",
        "old",
    )
    assert read[0].instructions == ["go"] * 4


def test_chunks_of_eef_deltas_that_must_not_be_used_are_left_out(tmp_path):
    rows = np.zeros((4, 7))
    rows[1, 2] = np.nan
    read = BagSet(write_old_bag(tmp_path / "old", rows))
    assert len(read[0]) == 3 and any("not finite" in n for n in read.notes)
    for fields in ({"rotation_convention": "euler"}, {"dt": 0.0}, {"frame_id": ""}):
        with pytest.raises(DataError, match="rotation convention, frame or dt is unknown"):
            BagSet(write_old_bag(tmp_path / str(fields), rows, **fields))


def test_a_topic_of_eef_deltas_is_read(tmp_path):
    bag = OldBag(tmp_path / "deltas")
    for t in range(3):
        stamp = 100 * NS + t * NS // 20
        put_image(bag, "/image", stamp, np.full((16, 16), 20 * t, np.uint8))
        delta = bag.delta([0.01 * t, 0, 0, 0, 0, 0, 1.0])
        bag.put("/delta", types.EEF_DELTA, stamp + NS // 100, delta)
    bag._writer.close()
    read = BagSet(tmp_path / "deltas")
    np.testing.assert_allclose(read.actions(0)[:, 0], [0, 0.01, 0.02])
    assert read.spec == eef_delta_spec()


# -- chunks by parts ---------------------------------------------------------------------------


def chunks_bag(path, spec, rows, **fields):
    """Each image answered by a chunk of two steps."""
    bag = EpisodeBag(path)
    for t, row in enumerate(rows):
        stamp = 100 * NS + t * NS // 20
        put_image(bag, "/image", stamp, np.full((16, 16), t, np.uint8))
        header = _header(bag, stamp, "cam")
        given = {"parts": _parts(bag, spec), "dt": spec.dt, "actions": np.tile(row, 2), **fields}
        bag.put("/action", types.CHUNK, stamp, bag.make(types.CHUNK, header=header, **given))
    bag._writer.close()
    return path


def test_chunks_of_two_arms_are_read(tmp_path):
    spec, rows = aloha_spec(0.02), np.arange(42.0).reshape(3, 14) / 100
    read = BagSet(chunks_bag(tmp_path / "bag", spec, rows))
    assert read.spec == spec and [c.actions.shape for c in read.chunks(0)] == [(2, 14)] * 3
    np.testing.assert_array_equal(read.actions(0), rows)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"parts": []}, "has the parts none"),
        ({"actions": np.zeros(0)}, "without steps"),
        ({"actions": np.zeros(15)}, "half a step"),
        ({"dt": 0.0}, "steps last no time"),
        ({"actions": np.full(14, np.inf)}, "not finite"),
    ],
)
def test_chunks_by_parts_that_must_not_be_used_are_left_out(tmp_path, fields, words):
    with pytest.raises(DataError, match=words):
        BagSet(chunks_bag(tmp_path / "bag", aloha_spec(0.02), np.zeros((3, 14)), **fields))


def test_a_bag_of_others_is_converted(tmp_path, capsys):
    from vla_inference.cli.main import main

    frames = [100 + 0.1 * i for i in range(4)]
    twists = [twist(100 + 0.1 * i, 0.1) for i in range(4)]
    path = bag_with(
        tmp_path / "bag", frames, types.TWIST, twists, [text(1, "pick"), number("/hand", 99, 0.08)]
    )
    words = convert_words(path, tmp_path / "out.hdf5", gripper_topic="/hand")
    assert main([*words, "--read", "gripper_range=[0.0, 0.08]"]) == 0
    read = open_dataset(tmp_path / "out.hdf5")
    np.testing.assert_allclose(read.actions(0)[:, 0], 0.01, rtol=1e-6)
    assert read.actions(0)[:, 6].tolist() == [1] * 4 and read[0].instructions == ["pick"] * 4
    capsys.readouterr()
    assert main([*words, "--overwrite", "--read", "gripper_range=wide"]) == 2
    assert "gripper_range is 'wide'; give [CLOSED, OPEN]" in capsys.readouterr().err
