"""Tests of TFRecord files and tf.train.Example, whole and damaged."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_inference.errors import DataError
from vla_training.datasets.rlds.tf_example import ExampleError, build_example, parse_example
from vla_training.datasets.rlds.tfrecord import RecordFile, write_records

QUICK = settings(deadline=None, max_examples=60)
INTEGERS = hnp.arrays(np.int64, st.integers(0, 40), elements=st.integers(-(2**63), 2**63 - 1))
FLOATS = hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32))
FEATURES = st.dictionaries(
    st.text(max_size=20), st.one_of(INTEGERS, FLOATS, st.lists(st.binary(max_size=300)))
)


def same(given, read) -> None:
    if isinstance(given, np.ndarray) and len(given):
        assert read.dtype == given.dtype
        assert read.tobytes() == given.tobytes()  # NaN and -0.0 too
    else:
        assert list(read) == list(given)


@QUICK
@given(FEATURES)
def test_examples_come_back_as_they_were(features):
    read = parse_example(build_example(features))
    assert set(read) == set(features)
    for name, values in features.items():
        same(values, read[name])


@QUICK
@given(st.lists(st.binary(max_size=200), max_size=8))
def test_records_come_back_as_they_were(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("records") / "a.tfrecord"
    write_records(path, records)
    assert list(RecordFile(path)) == records


@QUICK
@given(st.binary(max_size=120))
def test_any_bytes_are_an_example_or_an_error(data):
    try:
        parse_example(data)
    except ExampleError as error:
        assert str(error)


def test_records_and_examples_have_the_bytes_tensorflow_writes(tmp_path):
    """Written by tf.io.TFRecordWriter and tf.train.Example of TensorFlow 2.21."""
    write_records(tmp_path / "one", [b"abc"])
    assert (tmp_path / "one").read_bytes().hex() == "0300000000000000b099490e6162636e57f121"
    features = {"a": np.array([300, -1]), "b": [b"x", b""], "f": np.array([1.5], np.float32)}
    data = bytes.fromhex(
        "0a340a150a016112101a0e0a0cac02ffffffffffffffffff010a0c0a016212070a050a01780a00"
        "0a0d0a0166120812060a040000c03f"
    )
    assert build_example(features) == data
    read = parse_example(data)
    assert read["a"].tolist() == [300, -1] and read["b"] == [b"x", b""]
    assert read["f"].tolist() == [1.5]


def test_numbers_that_are_not_packed_are_read():
    # field 1, one at a time: floats 1.5 and -2, integers 300 and 1
    floats = b"".join(b"\x0d" + struct.pack("<f", v) for v in (1.5, -2.0))
    integers = b"\x08\xac\x02\x08\x01"

    def entry(name, number, body):
        feature = bytes([number << 3 | 2, len(body)]) + body
        inner = b"\x0a" + bytes([len(name)]) + name + b"\x12" + bytes([len(feature)]) + feature
        return b"\x0a" + bytes([len(inner)]) + inner

    features = entry(b"f", 2, floats) + entry(b"i", 3, integers)
    read = parse_example(b"\x0a" + bytes([len(features)]) + features)
    assert read["f"].tolist() == [1.5, -2.0]
    assert read["i"].tolist() == [300, 1]


@pytest.fixture
def three(tmp_path):
    path = tmp_path / "three.tfrecord"
    write_records(path, [b"first record", b"second", b"third"])
    return path


@pytest.mark.parametrize("keep", [5, 20, 30, 60])
def test_a_file_cut_short_is_named_with_its_offset(three, keep):
    three.write_bytes(three.read_bytes()[:keep])
    number, offset = (0, 0) if keep < 28 else (1, 28) if keep < 50 else (2, 50)
    with pytest.raises(DataError, match=rf"three\.tfrecord, record {number} at byte {offset}: "):
        list(RecordFile(three))


@pytest.mark.parametrize(
    ("byte", "what"), [(30, "CRC of its length"), (42, "CRC of its data"), (47, "CRC of its data")]
)
def test_a_flipped_bit_is_named_with_record_and_offset(three, byte, what):
    data = bytearray(three.read_bytes())
    data[byte] ^= 4
    three.write_bytes(data)
    with pytest.raises(DataError, match=rf"three\.tfrecord, record 1 at byte 28: the {what}"):
        list(RecordFile(three))


def test_a_closed_file_opens_again_and_says_if_it_changed(three):
    records = RecordFile(three)
    assert records[1] == b"second"
    records.close()
    assert records[2] == b"third"
    records.close()
    three.write_bytes(three.read_bytes()[:40])
    with pytest.raises(DataError, match="record 1 at byte 28: the file has become shorter"):
        records[1]


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.tfrecord cannot be read"):
        RecordFile(tmp_path / "none.tfrecord")


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.tfrecord"

    def broken():
        yield b"one"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_records(path, broken())
    assert not list(tmp_path.iterdir())
