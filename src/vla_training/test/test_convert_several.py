"""Tests of datasets that are merged, split and filtered on their way through a conversion."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from demonstrations import LENGTHS, write_set

from vla_inference.cli.main import main
from vla_inference.errors import DataError, VlaError
from vla_training.conversion.config import ConvertConfig
from vla_training.conversion.convert import convert
from vla_training.datasets import open_dataset
from vla_training.datasets.views import draw_share, open_datasets, parse_numbers


@pytest.fixture
def two(tmp_path):
    """Of these lengths each; the rewards of the second's first episode are 0."""

    def unrewarded(group):
        if group.name.endswith("demo_0"):
            group["rewards"][:] = 0

    return write_set(tmp_path / "one.hdf5"), write_set(tmp_path / "two.hdf5", unrewarded)


def lengths(path) -> list[int]:
    data = open_dataset(path)
    return [len(data.actions(i)) for i in range(len(data))]


def test_datasets_of_other_formats_become_one(two, tmp_path):
    convert(two[1], tmp_path / "two", "rlds", workers=1)
    paths = [two[0], tmp_path / "two"]
    done = convert(paths, tmp_path / "both", "lerobot", workers=2)
    assert (done.episodes, lengths(tmp_path / "both")) == (6, [*LENGTHS, *LENGTHS])
    joined = open_datasets(paths)
    for index, path in ((2, paths[0]), (3, paths[1]), (5, paths[1])):
        own = open_dataset(path)
        np.testing.assert_array_equal(joined.actions(index), own.actions(index % 3))
        assert joined.where(index) == own.where(index % 3)
        assert joined[index].instructions == own[index % 3].instructions


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"episodes": "5,0-1"}, [5, 0, 1]),
        ({"matching": "würfel [12]$"}, [1, 2, 4, 5]),
        ({"successful": True}, [0, 1, 2, 4, 5]),
        ({"successful": True, "episodes": "2-4", "max_episodes": 1}, [2]),
    ],
)
def test_episodes_are_chosen(two, tmp_path, config, kept):
    done = convert(two, tmp_path / "some.hdf5", "hdf5", ConvertConfig(**config), workers=1)
    assert done.episodes == len(kept)
    found, joined = open_dataset(tmp_path / "some.hdf5"), open_datasets(two)
    for new, old in enumerate(kept):
        np.testing.assert_array_equal(found.actions(new), joined.actions(old))
    with h5py.File(tmp_path / "some.hdf5") as file:
        source = json.dumps({k: str(v) for k, v in file["data/demo_0"].attrs.items()})
    assert "one.hdf5" in source or "two.hdf5" in source


def test_shares_that_meet_divide_a_dataset():
    numbers = list(range(3, 20))
    parts = [draw_share(numbers, share, 5) for share in ("0-0.3", "0.3-0.9", "0.9-1")]
    assert sorted(n for part in parts for n in part) == numbers and all(
        p == sorted(p) for p in parts
    )
    assert parts[0] != draw_share(numbers, "0-0.3", 6)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"episodes": "0-3"}, "asks for 3; there are 3 episodes, from 0 to 2"),
        ({"episodes": "2-1"}, "--episodes has '2-1'; give numbers and ranges"),
        ({"episodes": "first"}, "--episodes has 'first'"),
        ({"matching": "("}, r"--matching '\(' is no regular expression"),
        ({"matching": "lift"}, "no episode of .* is left"),
        ({"share": "0.5"}, "--share is '0.5'; give a part of 0 to 1"),
        ({"share": "0-1.5"}, "--share is '0-1.5'"),
        ({"share": "0.1.2-1"}, "--share is '0.1.2-1'"),
    ],
)
def test_what_cannot_be_chosen_is_refused_by_name(two, tmp_path, config, says):
    with pytest.raises(VlaError, match=says):
        convert(two[0], tmp_path / "some.hdf5", "hdf5", ConvertConfig(**config), workers=1)
    assert not (tmp_path / "some.hdf5").exists()


def test_datasets_that_do_not_fit_are_refused_by_name(two, tmp_path):
    convert(two[1], tmp_path / "slow", "rlds", ConvertConfig(sample_actions=2), workers=1)
    with pytest.raises(
        DataError, match=r"slow/1.0.0 are not those of .*one.hdf5: 0.1 s a step and"
    ):
        open_datasets([two[0], tmp_path / "slow"])
    convert(two[1], tmp_path / "less", "rlds", ConvertConfig(remap={"wrist": None}), workers=1)
    with pytest.raises(
        DataError, match=r"less/1.0.0 has the cameras agentview, .* wrist; convert one"
    ):
        open_datasets([two[0], tmp_path / "less"])


def test_the_command_keeps_the_format_and_splits(two, tmp_path, capsys):
    words = ["convert", "--dataset", str(two[0]), "--dataset", str(two[1]), "--workers", "1"]
    for name, share in (("train.hdf5", "0-0.7"), ("test.hdf5", "0.7-1")):
        assert main([*words, "--share", share, "--output", str(tmp_path / name)]) == 0
    assert len(lengths(tmp_path / "train.hdf5")) == 4 and len(lengths(tmp_path / "test.hdf5")) == 2
    assert parse_numbers("", 3) == []
    capsys.readouterr()
