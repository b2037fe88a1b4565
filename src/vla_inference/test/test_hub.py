"""Tests of checkpoints from the Hugging Face Hub, online and offline."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vla_inference.checkpoints import hub
from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.errors import CheckpointError
from vla_inference.policies.openvla.policy import OpenVLAPolicy


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """huggingface_hub whose network is a dictionary; `None` as an answer means no network."""
    import huggingface_hub

    remote: dict[str, list[str] | None] = {}
    cache = tmp_path / "cache"
    calls = []

    def model_info(self, repo, revision=None, timeout=None):
        if remote.get(repo) is None:
            raise ConnectionError("no route to host")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n) for n in remote[repo]])

    def snapshot_download(repo, **options):
        calls.append((repo, options))
        folder = cache / f"models--{repo.replace('/', '--')}" / "snapshots" / "0123abcd"
        if not folder.exists():
            raise FileNotFoundError(folder)
        return str(folder)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return remote, cache, calls


def test_a_hub_id_becomes_a_policy_of_that_name(fake_hub):
    remote, cache, calls = fake_hub
    remote["some/model"] = ["config.json", "model.safetensors"]
    write_random_checkpoint(cache / "models--some--model" / "snapshots" / "0123abcd")
    assert OpenVLAPolicy.from_pretrained("some/model", revision="main").name == "model"
    _, options = calls[0]
    assert options["revision"] == "main" and options["ignore_patterns"] == ["*/*"]
    assert not any(p.endswith((".py", ".bin")) for p in options["allow_patterns"])


def test_what_cannot_be_run_is_refused_before_it_is_downloaded(fake_hub):
    remote, _, calls = fake_hub
    remote["some/film"] = ["config.json", "vision_backbone--100_checkpoint.pt"]
    with pytest.raises(CheckpointError, match="FiLM"):
        OpenVLAPolicy.from_pretrained("some/film")
    assert not calls


def test_without_a_network_an_earlier_download_will_do(fake_hub):
    _, cache, _ = fake_hub
    write_random_checkpoint(cache / "models--some--model" / "snapshots" / "0123abcd")
    assert OpenVLAPolicy.from_pretrained("some/model").name == "model"


def test_without_a_network_the_missing_files_are_named(fake_hub):
    _, cache, _ = fake_hub
    folder = cache / "models--some--model" / "snapshots" / "0123abcd"
    write_random_checkpoint(folder, shard_bytes=50_000)
    (folder / "model-00002-of-00005.safetensors").unlink(missing_ok=True)
    lost = sorted(folder.glob("*.safetensors"))[0]
    lost.unlink()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        OpenVLAPolicy.from_pretrained("some/model")
    assert lost.name in str(caught.value) and "tokenizer.json" in str(caught.value)
    assert "no route to host" in str(caught.value)


def test_without_a_network_and_a_download_both_are_told(fake_hub):
    with pytest.raises(CheckpointError, match=r"never downloaded.*no route to host"):
        hub.resolve("some/model")


def test_a_mistyped_path_is_no_question_to_the_network(tmp_path, monkeypatch, fake_hub):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in ("models/nope", "/nowhere/at/all", "nope", ""):
        with pytest.raises(CheckpointError, match=r"no checkpoint folder|config\.json is missing"):
            OpenVLAPolicy.from_pretrained(path)


def test_without_a_network_one_line_comes_at_once(tmp_path):
    """Of the real huggingface_hub, whose own retries took half a minute and eleven lines."""
    code = "from vla_inference.cli.main import main; main(['info', 'some/model-of-nobody'])"
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    (line,) = done.stderr.splitlines()
    assert "there is no folder some/model-of-nobody, it was never downloaded from the Hub" in line


def test_an_installed_model_goes_by_its_name_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("stack-small", "models/stack-small"):
        found = hub.resolve(name)
        assert found.name == "stack-small" and (found / "config.json").is_file()
    (tmp_path / "stack-small").mkdir()
    assert hub.resolve("stack-small") == Path("stack-small")
