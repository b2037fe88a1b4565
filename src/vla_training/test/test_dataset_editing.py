"""Tests of deleting, restoring and tagging episodes, of `vla data browse` and `vla data rerun`."""

from __future__ import annotations

import io
import json

import h5py
import numpy as np
import pytest
from demonstrations import LENGTHS, write_set

from vla_inference.cli.main import main as vla
from vla_inference.errors import DataError
from vla_sim_bridge.cli.rollout import find_model
from vla_training.conversion.convert import convert
from vla_training.datasets import open_dataset
from vla_training.datasets.hdf5 import edit
from vla_training.evaluation import browse as browsing
from vla_training.evaluation.episode_comparison import OneEpisode


@pytest.fixture
def own(tmp_path):
    return write_set(tmp_path / "demo.hdf5")


def lengths(path):
    return tuple(len(episode) for episode in open_dataset(path))


def test_a_deleted_episode_is_kept_and_can_be_restored(own):
    before = [episode.actions for episode in open_dataset(own)]
    assert edit.delete_episode(own, 1) == "demo_1"
    assert edit.delete_episode(own, 0, "demo_0") == "demo_0"
    assert lengths(own) == LENGTHS[2:]
    assert edit.deleted_episodes(own) == ["demo_1", "demo_0"]
    with h5py.File(own) as file:
        assert file["data"].attrs["total"] == LENGTHS[2]
    assert edit.restore_episode(own) == "demo_0"  # the one deleted last
    assert edit.restore_episode(own.parent) == "demo_1"  # found in a folder too
    after = [episode.actions for episode in open_dataset(own)]
    assert all(map(np.array_equal, before, after))
    assert [path.name for path in own.parent.iterdir()] == ["demo.hdf5"]
    with pytest.raises(DataError, match="no deleted episode"):
        edit.restore_episode(own)


def test_tags_are_metadata_that_a_conversion_keeps(own, tmp_path):
    assert edit.tag_episode(own, 2, ["good", " slow "]) == "demo_2"
    assert open_dataset(own)[2].metadata["tags"] == "good, slow"
    convert(own, tmp_path / "set", "lerobot", workers=1)
    assert open_dataset(tmp_path / "set")[2].metadata["tags"] == "good, slow"
    edit.tag_episode(own, 2, [])
    assert "tags" not in open_dataset(own)[2].metadata


def test_what_cannot_be_edited_is_left_as_it_is(own, tmp_path):
    link = tmp_path / "link.hdf5"
    link.symlink_to(own)
    theirs = write_set(tmp_path / "theirs.hdf5")
    with h5py.File(theirs, "r+") as file:
        del file["data"].attrs["action_convention"]
    convert(own, tmp_path / "set", "lerobot", workers=1)
    before = own.read_bytes(), theirs.read_bytes()
    for path, index, name, said in (
        (own, 7, "", "7 is not one of 0 to 2"),
        (own, 0, "demo_2", "is demo_0 by now, not demo_2"),
        (link, 0, "", "is a link"),
        (theirs, 0, "", "not written by vla"),
        (tmp_path / "set", 0, "", "no HDF5 dataset"),
    ):
        with pytest.raises(DataError, match=said):
            edit.delete_episode(path, index, name)
    with pytest.raises(DataError, match="without a comma"):
        edit.tag_episode(own, 0, ["a,b"])
    assert (own.read_bytes(), theirs.read_bytes()) == before


def test_the_last_episode_stays(own):
    for _ in LENGTHS[1:]:
        edit.delete_episode(own, 0)
    with pytest.raises(DataError, match="the last episode"):
        edit.delete_episode(own, 0)
    assert lengths(own) == LENGTHS[2:]


def test_an_edit_that_fails_changes_nothing(own, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    before = own.read_bytes()
    monkeypatch.setattr(edit, "_count", full)
    with pytest.raises(DataError, match="No space left"):
        edit.delete_episode(own, 0)
    assert own.read_bytes() == before
    assert [path.name for path in own.parent.iterdir()] == ["demo.hdf5"]


def test_episodes_are_edited_by_command(own, capsys):
    assert vla(["data", "tag", str(own), "--episode", "0", "--tags", "good,slow"]) == 0
    assert vla(["data", "delete", str(own), "--episode", "1"]) == 0
    assert "vla data restore puts it back" in capsys.readouterr().out
    assert vla(["data", "info", str(own)]) == 0
    assert "deleted   demo_1" in capsys.readouterr().out
    assert vla(["data", "restore", str(own)]) == 0
    assert vla(["data", "delete", str(own)]) == 2
    assert "give --episode" in capsys.readouterr().err


# -- browse -----------------------------------------------------------------------------------


def ask(path, *asked):
    """The answers to these requests."""
    lines = "".join(json.dumps(one) + "\n" if isinstance(one, dict) else one for one in asked)
    answers = io.StringIO()
    browsing.browse(path, lambda: open_dataset(path), io.StringIO(lines), answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_a_dataset_is_browsed_and_edited_by_lines_of_json(own):
    named = {"do": "delete", "index": 0, "name": "demo_0"}
    first, gone, second, refused, back, tagged, again, unknown = ask(
        own,
        {"do": "episode", "index": 0},
        named,
        {"do": "episode", "index": 0},
        named,
        {"do": "restore"},
        {"do": "tag", "index": 0, "name": "demo_0", "tags": ["good"]},
        {"do": "episode", "index": 0},
        "nonsense\n",
    )
    assert (first["name"], first["episodes"], len(first["actions"])) == ("demo_0", 3, LENGTHS[0])
    assert (gone["name"], second["name"], second["deleted"]) == ("demo_0", "demo_1", ["demo_0"])
    assert "is demo_1 by now" in refused["error"]
    assert (back["name"], tagged["tags"], again["tags"]) == ("demo_0", "good", "good")
    assert "no request" in unknown["error"]


def test_other_formats_are_browsed_without_editing(own, tmp_path):
    convert(own, tmp_path / "set", "lerobot", workers=1)
    episode, refused = ask(
        tmp_path / "set",
        {"do": "episode", "index": 2},
        {"do": "delete", "index": 2, "name": ""},
    )
    assert (episode["name"], len(episode["actions"])) == ("", LENGTHS[2])
    assert "no HDF5 dataset" in refused["error"]


def test_a_models_answers_lie_beside_what_was_done(own):
    """In the units of the dataset, step by step, with progress."""
    *progress, found = ask(own, {"do": "compare", "index": 1, "model": find_model(None)})
    assert [line["progress"] for line in progress] == [[n, 4] for n in range(1, 5)]
    truth = open_dataset(own)[1].actions
    np.testing.assert_allclose(found["actions"], truth, atol=1e-6)
    assert np.shape(found["predicted"]) == truth.shape
    assert [dim["unit"] for dim in found["dimensions"]][:6] == ["m"] * 3 + ["rad"] * 3
    assert found["model"] == "stack-small" and found["latency_ms"] > 0
    assert [e["unit"] for e in found["errors"]][:6] == ["mm"] * 3 + ["mrad"] * 3


def test_one_episode_has_the_statistics_of_all(own):
    whole = open_dataset(own)
    one = OneEpisode(whole, 2)
    assert len(one) == 1 and len(one[0]) == len(one.actions(0)) == LENGTHS[2]
    assert one.statistics() == whole.statistics()
    with pytest.raises(DataError, match="3 is not one of"):
        OneEpisode(whole, 3)


# -- rerun ------------------------------------------------------------------------------------


def test_an_episode_becomes_a_recording_for_rerun(own, tmp_path, capsys):
    dataframe = pytest.importorskip("rerun.dataframe", reason="needs requirements/rerun.txt")
    target = tmp_path / "episode.rrd"
    words = ["data", "rerun", str(own), "--episode", "1", "--output", str(target)]
    assert vla([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == LENGTHS[1]
    entities = dataframe.load_recording(target).schema().component_columns()
    found = {column.entity_path for column in entities}
    assert {"/camera/agentview", "/camera/wrist", "/state/0", "/instruction"} <= found
    assert {"/action/arm/x", "/action/gripper/gripper"} <= found
    assert vla(words) == 2
    assert "exists" in capsys.readouterr().err
