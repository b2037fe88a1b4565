"""Tests of published OpenVLA-OFT checkpoints: extra files, constants, shards."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_checkpoints import edit_json, oft
from safetensors.torch import load_file, save_file

from vla_inference.checkpoints.load import load_config, load_model
from vla_inference.checkpoints.random_weights import (
    SIZES,
    STATISTICS,
    random_config,
    write_random_checkpoint,
)
from vla_inference.errors import CheckpointError
from vla_inference.openvla.config import ModelConfig
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.policies.registry import describe_policy
from vla_inference.types import Observation

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
LIBERO = {"libero_goal_no_noops": STATISTICS["random"]}


# Cameras as OpenVLA-OFT's instructions have them in the names of runs.
CAMERAS = {
    1: "3rd_person_img",
    2: "3rd_person_img--wrist_img",
    3: "3rd_person_img--left_right_wrist_imgs",
}


def as_published(
    folder: Path, images: int = 2, action_dim: int = 7, proprio_dim: int = 8, statistics: str = ""
) -> Path:
    """An L1 checkpoint split up as OpenVLA-OFT's fine-tuning does it, trained on several GPUs."""
    folder = folder / f"run--parallel_dec--L1_regression--{CAMERAS[images]}--150000_chkpt"
    return oft(folder, images, proprio_dim, name=statistics, action_dim=action_dim)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        OpenVLAPolicy.from_pretrained(folder, device="cpu")
    assert caught.value.remedy
    return str(caught.value)


def test_an_oft_checkpoint_is_told_by_its_name_and_the_files_beside_its_shards(tmp_path):
    whole = write_random_checkpoint(tmp_path / "a", head="l1-two-cameras", statistics=LIBERO)
    split = as_published(tmp_path / "b")
    (split / "dataset_statistics.json").write_text(json.dumps(LIBERO))
    a, b = OpenVLAPolicy.from_pretrained(whole), OpenVLAPolicy.from_pretrained(split)
    assert b.config.head == a.config.head
    assert {t.split(":")[0] for t in b.config.assumed} == {
        "action_head.chunk 8",
        "action_head.bounds q01_q99",
        "action_head.num_images 2",
    }
    seen = Observation({"a": IMAGE, "b": IMAGE[::-1].copy()}, "lift it", np.zeros(8))
    np.testing.assert_array_equal(b.predict_action(seen).actions, a.predict_action(seen).actions)
    text = str(describe_policy(split))
    assert "assumed     action_head.chunk 8" in text


def test_two_arms_of_a_robot_nobody_names_are_asked_about(tmp_path):
    folder = as_published(tmp_path, 3, action_dim=14, proprio_dim=14, statistics="fold_shirt")
    message = refusal(folder)
    assert "how long its chunks are, which statistics its actions are scaled by" in message
    given = {"action_head": {"chunk": 25, "bounds": "min_max"}}
    assert load_config(folder, given).head.bounds == "min_max"


def test_alohas_two_arms_are_told_by_the_name_of_their_statistics(tmp_path):
    policy = OpenVLAPolicy.from_pretrained(
        as_published(tmp_path, 3, action_dim=14, proprio_dim=14, statistics="aloha_fold_shirt")
    )
    head = policy.config.head
    assert (head.chunk, head.num_images, head.bounds) == (25, 3, "min_max")
    seen = Observation(dict.fromkeys("abc", IMAGE), "fold the shirt", np.ones(14))
    chunk = policy.predict_action(seen)
    assert chunk.actions.shape == (25, 14)
    assert chunk.spec.names[6] == "left_gripper" and chunk.spec.dims[0].unit == "rad"
    normal = policy.predict_action(
        seen,
        action_space={
            **policy.action_spaces["aloha_fold_shirt"],
            "action": {"min": [-1.0] * 14, "max": [1.0] * 14},
        },
    )
    wide = chunk.actions[:, :-1]  # the last number is not scaled
    np.testing.assert_allclose(wide, 2 * normal.actions[:, :-1], rtol=1e-4, atol=1e-6)


def test_bridge_is_told_by_the_name_of_its_statistics(tmp_path):
    config = load_config(as_published(tmp_path, 1, proprio_dim=7, statistics="bridge_orig"))
    assert (config.head.chunk, config.head.num_images) == (5, 1)


def test_what_the_files_do_not_say_must_be_given(tmp_path):
    folder = as_published(tmp_path, proprio_dim=0, statistics="my_robot")
    assert "how long its chunks are" in refusal(folder) and "vla.json" in refusal(folder)
    given = {"action_head": {"chunk": 3, "num_images": 2}}
    assert len(load_config(folder, given).assumed) == 1  # the kind of bounds
    given["action_head"]["bounds"] = "q01_q99"
    policy = OpenVLAPolicy.from_pretrained(folder, overrides=given)
    assert len(policy.predict_action(Observation(dict.fromkeys("ab", IMAGE), "lift it"))) == 3
    edit_json(folder / "vla.json", **given)
    assert load_config(folder).head == policy.config.head
    assert not load_config(folder).assumed


def test_overrides_win_and_typos_in_them_are_refused(tmp_path):
    folder = write_random_checkpoint(tmp_path)
    assert load_config(folder, {"center_crop": True}).center_crop == 0.9
    edit_json(folder / "vla.json", center_crop=0.5)
    assert load_config(folder).center_crop == 0.5
    assert load_config(folder, {"center_crop": False}).center_crop == 0
    edit_json(folder / "vla.json", centre_crop=True)
    assert "vla.json names unknown centre_crop" in refusal(folder)


@pytest.mark.parametrize("value", ["yes", 2, -0.5, [0.9]])
def test_a_crop_that_is_no_share_is_refused(tmp_path, value):
    folder = write_random_checkpoint(tmp_path)
    edit_json(folder / "config.json", center_crop=value)
    assert "center_crop" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "crop"),
    [
        ("openvla-7b", 0),
        ("openvla-7b-finetuned-libero-spatial", 0.9),
        ("openvla-7b-oft-finetuned-libero-10", 0.9),
        ("openvla-7b+mine+b16--image_aug--1000_chkpt", 0.9),
    ],
)
def test_names_tell_which_were_trained_with_augmentation(tmp_path, name, crop):
    config = load_config(write_random_checkpoint(tmp_path / name))
    assert config.center_crop == crop
    assert bool(config.assumed) == bool(crop)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vision_backbone--5_checkpoint.pt", "FiLM"),
        ("noisy_action_projector--5_checkpoint.pt", "diffusion"),
    ],
)
def test_film_and_diffusion_are_refused_by_name(tmp_path, name, words):
    folder = as_published(tmp_path)
    (folder / name).write_bytes(b"")
    assert words in refusal(folder)


def test_a_diffusion_head_is_refused_by_its_tensors(tmp_path):
    folder = as_published(tmp_path)
    head = {"module.noise_predictor.fc1.weight": torch.zeros(2, 2)}
    torch.save(head, folder / "action_head--150000_checkpoint.pt")
    assert "diffusion" in refusal(folder)


def test_heads_of_two_steps_are_refused(tmp_path):
    folder = as_published(tmp_path)
    (folder / "action_head--50000_checkpoint.pt").write_bytes(b"")
    assert "action_head--50000" in refusal(folder) and "action_head--150000" in refusal(folder)


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('code was run')",)


def test_a_head_that_would_run_code_is_refused_and_nothing_runs(tmp_path):
    folder = as_published(tmp_path)
    path = folder / "action_head--150000_checkpoint.pt"
    for content in (Evil(), {"model.fc1.weight": Evil()}):
        torch.save(content, path)
        assert path.name in refusal(folder)
        path.write_bytes(pickle.dumps(content))
        assert path.name in refusal(folder)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_head_cut_short_is_named(tmp_path, share):
    folder = as_published(tmp_path)
    path = folder / "proprio_projector--150000_checkpoint.pt"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "proprio_projector--150000_checkpoint.pt cannot be read" in refusal(folder)


def test_a_head_of_another_model_is_named(tmp_path):
    folder = as_published(tmp_path)
    path = folder / "action_head--150000_checkpoint.pt"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "module.model.fc2.weight": torch.zeros(7, 5)}, path)
    assert "action_head.model.fc2.weight is [7, 5], the config says [7, 32]" in refusal(folder)


# -- images' constants ----------------------------------------------------------------------


def test_the_constants_of_the_file_are_those_that_count(tmp_path):
    folder = write_random_checkpoint(tmp_path)
    entry = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "inplace": False}
    edit_json(folder / "preprocessor_config.json", tvf_normalize_params=[entry], means=[[0, 0, 0]])
    encoder = load_config(folder).encoders[0]
    assert (encoder.mean, encoder.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    "value",
    [
        [],
        "x",
        [{"mean": [0, 0, 0]}],
        [{"mean": [1], "std": [1]}],
        [{"mean": [0, 0, 0], "std": [1, 1, 0]}],
        [{"mean": [0, 0, 0], "std": [1, 1, 1]}] * 2,
    ],
)
def test_constants_that_make_no_sense_are_refused(tmp_path, value):
    folder = write_random_checkpoint(tmp_path)
    edit_json(folder / "preprocessor_config.json", tvf_normalize_params=value)
    assert "tvf_normalize_params" in refusal(folder)


def test_the_first_release_has_one_encoder_and_vicunas_prompt():
    config = ModelConfig.from_json(SIZES["openvla-v01-7b"])
    assert [t.key for t in config.encoders] == ["featurizer"]
    assert config.prompt.endswith("{instruction}? ASSISTANT:") and config.projector == "gelu-mlp"
    assert config.num_patches == 256


# -- shards -----------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path):
    folder = write_random_checkpoint(tmp_path / "ck", shard_bytes=50_000)
    assert len(list(folder.glob("model-0*.safetensors"))) > 2
    return folder


def test_shards_are_one_model_with_or_without_their_index(shards, tmp_path):
    one = load_model(write_random_checkpoint(tmp_path / "one")).state_dict()
    several = load_model(shards).state_dict()
    assert all(torch.equal(several[k], one[k]) for k in one)
    (shards / "model.safetensors.index.json").unlink()
    assert torch.equal(
        load_model(shards).state_dict()["projector.fc1.bias"], one["projector.fc1.bias"]
    )


def test_writing_again_leaves_no_shards_of_before(shards):
    write_random_checkpoint(shards)
    assert [p.name for p in shards.glob("model*")] == ["model.safetensors"]
    write_random_checkpoint(shards, shard_bytes=50_000)
    assert not (shards / "model.safetensors").exists()
    load_model(shards)


def test_a_missing_shard_without_an_index_is_noticed(shards):
    (shards / "model.safetensors.index.json").unlink()
    sorted(shards.glob("*.safetensors"))[1].unlink()
    assert "not the shards of one checkpoint" in refusal(shards)


def test_a_truncated_shard_is_named(shards):
    path = sorted(shards.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path.name} cannot be read" in refusal(shards)


def test_a_shard_of_another_checkpoint_is_noticed(shards, tmp_path):
    path = sorted(shards.glob("*.safetensors"))[1]
    other = write_random_checkpoint(tmp_path / "other", head="tokens", shard_bytes=40_000)
    path.write_bytes((other / sorted(other.glob("*.safetensors"))[0].name).read_bytes())
    assert "mixed" in refusal(shards) and path.name in refusal(shards)


def test_an_index_that_points_outside_is_refused(shards):
    path = shards / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["projector.fc1.bias"] = "../other/model.safetensors"
    path.write_text(json.dumps(index))
    assert "../other/model.safetensors" in refusal(shards)


def test_quantised_tensors_are_named(tmp_path):
    folder = write_random_checkpoint(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["projector.fc1.bias"] = tensors["projector.fc1.bias"].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")
    assert "projector.fc1.bias has dtype I8" in refusal(folder)


def test_native_names_are_understood(tmp_path):
    folder = write_random_checkpoint(tmp_path)
    wanted = load_model(folder).state_dict()
    names = {
        "language_model.": "llm.",
        "projector.fc1.": "projector.projector.0.",
        "projector.fc2.": "projector.projector.2.",
        "vision_backbone.featurizer.": "vision_backbone.dino_featurizer.",
    }
    tensors = {}
    for key, value in wanted.items():
        for new, old in names.items():
            key = key.replace(new, old, 1) if key.startswith(new) else key
        tensors[key] = value
    save_file(tensors, folder / "model.safetensors")
    state = load_model(folder).state_dict()
    assert all(torch.equal(state[k], wanted[k]) for k in wanted)


def test_statistics_of_another_length_name_file_and_field(tmp_path):
    six = {"arm": {"action": {"q01": [0.0] * 6, "q99": [1.0] * 6}}}
    message = refusal(write_random_checkpoint(tmp_path, statistics=six))
    assert "dataset_statistics.json: 'arm' has 6 numbers in q01" in message


def test_a_lora_adapter_is_told_what_it_is(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "LoRA adapter" in refusal(tmp_path)


MEMORY = """
import sys, torch
from vla_inference.checkpoints.load import load_model
def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))
load_model(sys.argv[2], "cpu", torch.bfloat16)  # code and pools are there now
open("/proc/self/clear_refs", "w").write("5")  # the peak begins here
before = status("VmRSS")
model = load_model(sys.argv[1], "cpu", getattr(torch, sys.argv[3]))
print(status("VmHWM") - before, sum(p.numel() * p.itemsize for p in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_loading_takes_little_more_memory_than_the_model(tmp_path, dtype):
    config = random_config("small")
    config["text_config"] |= {"hidden_size": 512, "intermediate_size": 2048}
    folder = write_random_checkpoint(
        tmp_path / "a", config, "tokens", dtype="bfloat16", shard_bytes=20_000_000
    )
    warm = write_random_checkpoint(tmp_path / "b", "tiny", "tokens")
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), folder, warm, dtype],
        capture_output=True,
        text=True,
        check=True,
    )
    peak, model = map(int, out.stdout.split())
    assert model > 60_000_000
    assert peak < 1.2 * model
