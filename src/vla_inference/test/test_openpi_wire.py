"""Tests of openpi's messages: round trips, and refusal of hostile data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hostile_frames import FRAMES
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vla_inference.errors import VlaError
from vla_inference.policies.base import Needs
from vla_inference.serving.openpi.observation_maps import (
    ObservationMap,
    map_names,
    pad_to,
    read_image,
)
from vla_inference.serving.openpi.wire import WireError, pack, unpack, unpack_map
from vla_inference.serving.openpi.wire_actions import Conversion, with_open_gripper
from vla_inference.types import Observation, eef_delta_spec

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
dtypes = st.one_of(
    arrays.boolean_dtypes(),
    arrays.integer_dtypes(),
    arrays.unsigned_integer_dtypes(),
    arrays.floating_dtypes(sizes=(16, 32, 64)),
)
any_array = arrays.arrays(dtypes, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0))
scalars = dtypes.flatmap(lambda d: arrays.arrays(d, (1,))).map(lambda a: a[0])
plain = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.floats(), st.text())
messages = st.dictionaries(
    st.text(max_size=9),
    st.recursive(
        st.one_of(plain, any_array, scalars, st.binary()),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=6,
    ),
    max_size=4,
)


def same(a, b) -> bool:
    if isinstance(a, np.float64):  # is a float to Python, and travels as one
        a = float(a)
    if isinstance(a, (np.ndarray, np.generic)):
        return (
            type(a) is type(b)
            and a.dtype == b.dtype
            and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        )
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


@given(messages)
@settings(deadline=None)
def test_what_is_packed_is_unpacked(message):
    markers = {"__ndarray__", "__npgeneric__"}
    assert not markers & set(message)
    assert same(message, unpack(pack(message)))


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_any_bytes_are_a_message_or_refused_by_name(data):
    try:
        unpack_map(data)
    except WireError as error:
        assert str(error)


@given(messages, st.data())
@settings(deadline=None)
def test_a_message_with_a_byte_changed_is_read_or_refused_by_name(message, data):
    packed = bytearray(pack(message))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] = data.draw(st.integers(0, 255))
    try:
        unpack_map(bytes(packed))
    except WireError as error:
        assert str(error)


def test_an_array_has_openpis_bytes():
    message = pack({"s": np.array([[1, 2]], np.uint8)})
    assert message == bytes.fromhex(
        "81a17384c40b5f5f6e6461727261795f5fc3c40464617461c4020102c4056474797065a37c7531c4057368617065"
        "920102"
    )


def test_an_array_in_any_order_arrives_as_it_was_and_read_only():
    got = unpack(pack(np.asfortranarray(np.arange(6.0).reshape(2, 3))))
    np.testing.assert_array_equal(got, np.arange(6.0).reshape(2, 3))
    assert not got.flags.writeable


@pytest.mark.parametrize("value", [object(), np.array([object()]), np.array(1j), np.array("a")])
def test_what_is_no_number_or_text_is_not_sent(value):
    with pytest.raises(TypeError, match="cannot be sent"):
        pack({"x": value})


@pytest.mark.parametrize("name", FRAMES)
def test_a_hostile_message_is_refused_in_a_line(name):
    with pytest.raises(WireError) as error:
        unpack_map(FRAMES[name])
    assert len(str(error.value)) < 250 and "\n" not in str(error.value)


def test_a_message_beyond_the_limit_is_refused():
    with pytest.raises(WireError, match="101 bytes; send at most 100"):
        unpack(b"\0" * 101, most=100)


# -- observation maps -------------------------------------------------------------------------


@pytest.mark.parametrize("name", map_names())
@pytest.mark.parametrize("images", [1, 2])
def test_what_a_map_writes_it_reads(name, images):
    used = ObservationMap.load(name)
    images = min(images, len(used.images) or 2)
    state = np.arange(used.state_dim or 4, dtype=np.float32)
    sent = Observation({f"camera_{i}": IMAGE + i for i in range(images)}, "go there", state)
    got = used.read(unpack_map(pack(used.write(sent, None))), Needs(images, len(state)))
    assert got.instruction == "go there"
    np.testing.assert_array_equal(got.state, state)
    for a, b in zip(got.images.values(), sent.images.values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_free_map_takes_what_openpis_clients_send():
    free, needs = ObservationMap.load("free"), Needs(1, 8)
    libero = {
        "observation/image": IMAGE,
        "observation/wrist_image": IMAGE[::-1],
        "observation/state": np.arange(8.0),
        "prompt": "go",
    }
    np.testing.assert_array_equal(free.read(libero, needs).images["observation/image"], IMAGE)
    droid = {
        "observation/exterior_image_1_left": IMAGE,
        "observation/joint_position": np.arange(7.0),
        "observation/gripper_position": np.array([7.0]),
        "prompt": b"go",
    }
    assert free.read(droid, needs).state.tolist() == list(range(8))
    aloha = {"state": np.ones(14), "images": {"cam_high": IMAGE.transpose(2, 0, 1)}}
    read = free.read(aloha, Needs(1, 14), usual="stack")
    np.testing.assert_array_equal(read.images["images/cam_high"], IMAGE)
    assert read.instruction == "stack"


@pytest.mark.parametrize("broken", [IMAGE[..., 0], b"no image", b"\xff\xd8 cut"])
def test_another_image_never_takes_the_place_of_a_broken_one(broken):
    sent = {"observation/image": broken, "observation/wrist_image": IMAGE, "prompt": b"go"}
    with pytest.raises(VlaError, match="observation/image is"):
        ObservationMap.load("free").read(sent, Needs(1))


def test_cameras_are_found_by_the_models_names():
    sent = {"images": {"wrist": IMAGE, "front": IMAGE + 1}, "prompt": "go"}
    read = ObservationMap.load("free").read(sent, Needs(2, cameras=("front", "wrist")))
    assert list(read.images) == ["images/front", "images/wrist"]


@pytest.mark.parametrize(
    "change, told",
    [
        ({"observation/image": None}, "not an image"),
        ({"observation/image": IMAGE[..., 0]}, "has shape"),
        ({"observation/image": IMAGE[:4]}, "at least 16x16"),
        ({"observation/image": IMAGE.astype(np.float32)}, "outside 0 to 1"),
        ({"observation/image": np.zeros((0, 0, 3), np.float32)}, "has dtype float32"),
        ({"observation/image": b"\xff\xd8 no JPEG"}, "is not an image"),
        ({"observation/state": np.ones(3)}, "8 numbers of state, 3 came"),
        ({"observation/state": np.full(8, np.nan)}, "not finite"),
        ({"observation/state": "x"}, "not an array of numbers"),
        ({"observation/state": [10**400] * 8}, "not an array of numbers"),
        ({"observation/state": np.full(8, 1e300)}, "not finite"),
        ({"prompt": 3}, "the prompt is a int"),
        ({"prompt": ""}, "instruction is empty"),
        ({"prompt": "x" * 2000}, "2000 characters"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused(change, told):
    good = {"observation/image": IMAGE, "observation/state": np.ones(8), "prompt": "go"}
    with pytest.raises(VlaError, match=told):
        ObservationMap.load("libero").read({**good, **change}, Needs(1, 8))


def test_a_map_that_brings_too_little_is_refused():
    with pytest.raises(VlaError, match="takes 3 images, map libero has 2"):
        ObservationMap.load("libero").check(Needs(3))
    with pytest.raises(VlaError, match="takes 7 numbers of state, map libero has 8"):
        ObservationMap.load("libero").check(Needs(1, 7))
    with pytest.raises(VlaError, match="no observation map 'mars'; known: aloha, bridge"):
        ObservationMap.load("mars")


def test_an_image_is_padded_to_a_size_in_the_middle():
    padded = pad_to(np.full((40, 80, 3), 200, np.uint8), (56, 56))
    assert padded.shape == (56, 56, 3)
    assert (padded[:14] == 0).all() and (padded[14:42] == 200).all() and (padded[42:] == 0).all()


def test_floats_and_channels_first_become_bytes_and_last():
    as_float = (IMAGE / 255).transpose(2, 0, 1)
    assert np.abs(read_image(as_float, "x").astype(int) - IMAGE).max() <= 1


# -- actions ----------------------------------------------------------------------------------


def test_metres_become_liberos_units_and_back():
    libero = ObservationMap.load("libero").spec
    there = Conversion.between(eef_delta_spec(), libero)
    ours = np.array([[0.05, 0, -0.1, 0.5, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0]], np.float32)
    sent = there(ours)
    np.testing.assert_allclose(sent, [[1, 0, -2, 1, 0, 0, -1], [0, 0, 0, 0, 0, 0, 1]], atol=1e-6)
    back = Conversion.between(there.spec, with_open_gripper(libero))
    np.testing.assert_allclose(back(sent)[:, 6], [1, 0], atol=1e-6)
    assert back.spec.dims[0].unit == "0.05 m"


def test_actions_of_another_kind_are_refused():
    with pytest.raises(VlaError, match=r"have 7 numbers .* 14 are wanted"):
        Conversion.between(eef_delta_spec(), ObservationMap.load("aloha").spec)
    with pytest.raises(VlaError, match="have rotation rotvec, rpy is wanted"):
        Conversion.between(eef_delta_spec(), ObservationMap.load("bridge").spec)


def test_a_polarity_that_nobody_stated_is_not_claimed():
    silent = eef_delta_spec()
    silent = silent.with_dims(replace(d, polarity="") for d in silent.dims)
    found = Conversion.between(silent, ObservationMap.load("libero").spec)
    assert found.spec.dims[6].polarity == "" and found.factors[6] == 1


@pytest.mark.parametrize("polarity", ["1 open, 1 closed", f"{'9' * 400} open, 0 closed"])
def test_a_gripper_that_is_open_and_closed_at_once_is_refused(polarity):
    dims = eef_delta_spec().dims
    odd = eef_delta_spec().with_dims((*dims[:6], replace(dims[6], polarity=polarity)))
    with pytest.raises(VlaError, match="state different numbers for open and closed"):
        Conversion.between(odd, with_open_gripper(odd))


def test_the_same_spec_changes_no_bit():
    actions = np.random.default_rng(1).normal(size=(5, 7)).astype(np.float32)
    same_spec = Conversion.between(eef_delta_spec(), eef_delta_spec())
    np.testing.assert_array_equal(same_spec(actions), actions)
