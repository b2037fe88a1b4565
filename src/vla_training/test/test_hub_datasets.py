"""Tests of `vla data push` and `pull`: the real huggingface_hub against a Hub on this machine."""

from __future__ import annotations

import numpy as np
import pytest
from hub_server import Hub

from vla_inference.cli.main import main as vla
from vla_training.conversion.convert import convert
from vla_training.datasets import open_dataset


@pytest.fixture
def hub(tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    hub = Hub(token="hf_test")
    files = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", hub.token)
    yield hub
    hub.shutdown()
    hub.server_close()


@pytest.fixture(scope="module")
def lerobot(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "mine"
    convert([source], folder, "lerobot", workers=1)
    return folder


def assert_equal(one, other):
    a, b = open_dataset(one), open_dataset(other)
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x.actions, y.actions)
        assert x.instructions == y.instructions


def test_a_pushed_dataset_is_pulled_as_it_was(hub, lerobot, tmp_path, capsys):
    (lerobot / ".lock").write_text("")
    assert vla(["data", "push", str(lerobot), "--repo", "me/blocks", "--private"]) == 0
    assert "me/blocks" in capsys.readouterr().out
    assert hub.private == {"me/blocks"} and ".lock" not in hub.files["me/blocks"]
    assert b"LeRobot" in hub.files["me/blocks"]["README.md"]
    # LeRobot asks for the tag of the format's version.
    assert hub.tags["me/blocks"] == {"v3.0": hub.commit("me/blocks")}
    assert vla(["data", "pull", "me/blocks", "--output", str(tmp_path / "there")]) == 0
    assert_equal(lerobot, tmp_path / "there")


def test_a_second_push_keeps_the_card_and_moves_the_tag(hub, lerobot, source):
    push = ["data", "push", str(lerobot), "--repo", "me/blocks"]
    assert vla(push) == 0
    hub.files["me/blocks"]["README.md"] = b"my own"
    (lerobot / "notes.txt").write_text("more")
    assert vla(push) == 0
    assert hub.files["me/blocks"]["README.md"] == b"my own"
    assert hub.tags["me/blocks"] == {"v3.0": hub.commit("me/blocks")}


def test_a_file_is_a_dataset_too(hub, source, tmp_path):
    assert vla(["data", "push", str(source), "--repo", "me/file"]) == 0
    assert hub.files["me/file"][source.name] == source.read_bytes() and not hub.tags["me/file"]
    assert (
        vla(["data", "pull", "me/file", "--revision", "main", "--output", str(tmp_path / "f")])
        == 0
    )
    assert_equal(source, tmp_path / "f" / source.name)


def test_what_cannot_go_there_is_one_error(hub, source, tmp_path, capsys, monkeypatch):
    def error(*arguments) -> str:
        assert vla(["data", *map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "give --repo USER/NAME" in error("push", source)
    assert "no name of a dataset" in error("push", source, "--repo", "a/b/c")
    (tmp_path / "text").mkdir()
    assert str(tmp_path / "text") in error("push", tmp_path / "text", "--repo", "me/text")
    assert not hub.files
    assert "there is no dataset me/none" in error("pull", "me/none", "--output", tmp_path / "n")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "hf auth login" in error("push", source, "--repo", "me/mine")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert vla(["data", "push", str(source), "--repo", "me/mine"]) == 0
    capsys.readouterr()
    assert "--revision" in error("pull", "me/mine", "--revision", "v9", "--output", tmp_path / "n")
    assert "is a file" in error("pull", "me/mine", "--output", source)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / source.name).write_text("mine")
    assert "files of its own" in error("pull", "me/mine", "--output", tmp_path / "own")
    assert (tmp_path / "own" / source.name).read_text() == "mine"


def test_a_pull_that_broke_off_goes_on(hub, lerobot, tmp_path, capsys):
    assert vla(["data", "push", str(lerobot), "--repo", "me/blocks"]) == 0
    hub.broken = "meta/info.json"
    pull = ["data", "pull", "me/blocks", "--output", str(tmp_path / "there")]
    assert vla(pull) == 2
    assert "me/blocks" in capsys.readouterr().err
    hub.broken = ""
    assert vla(pull) == 0
    assert_equal(lerobot, tmp_path / "there")


def test_without_a_network_nothing_is_taken_for_whole(hub, lerobot, tmp_path, capsys):
    assert vla(["data", "push", str(lerobot), "--repo", "me/blocks"]) == 0
    hub.shutdown()
    hub.server_close()
    (tmp_path / "there").mkdir()
    assert vla(["data", "pull", "me/blocks", "--output", str(tmp_path / "there")]) == 2
    assert "did not come through" in capsys.readouterr().err
