"""Tests of checkpoint loading: damaged or foreign folders are refused with a precise error."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_inference.checkpoints.load import load_model
from vla_inference.checkpoints.random_weights import HEADS, SIZES, TINY, write_random_checkpoint
from vla_inference.cli.output import plain
from vla_inference.errors import CheckpointError, VlaError
from vla_inference.openvla.config import ModelConfig
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.policies.registry import describe_policy


@pytest.fixture
def folder(tmp_path):
    return write_random_checkpoint(tmp_path / "ck")


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def refusal(folder) -> str:
    with pytest.raises(CheckpointError) as caught:
        OpenVLAPolicy.from_pretrained(folder, device="cpu")
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_that_is_not_there(tmp_path):
    assert "no checkpoint folder" in refusal(tmp_path / "nope")


def test_an_empty_folder(tmp_path):
    assert "config.json is missing" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "dataset_statistics.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b"3"])
def test_files_that_are_not_what_they_should_be(folder, name, content):
    (folder / name).write_bytes(content)
    assert name in refusal(folder)


def test_no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in refusal(folder)


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "no *.safetensors" in refusal(folder)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.999])
def test_weights_cut_short(folder, share):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "model.safetensors cannot be read" in refusal(folder)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        describe_policy(folder)


def test_weights_that_are_something_else(folder):
    (folder / "model.safetensors").write_bytes(b"\x80\x04 pickled" * 100)
    assert "model.safetensors cannot be read" in refusal(folder)


def test_a_missing_tensor_is_named(folder):
    edit_weights(folder, lambda t: t.pop("projector.fc2.bias"))
    assert "projector.fc2.bias is missing" in refusal(folder)


def test_an_extra_tensor_is_named(folder):
    edit_weights(folder, lambda t: t.update({"projector.fc9.bias": torch.zeros(3)}))
    assert "projector.fc9.bias is not part of the model" in refusal(folder)


def test_a_misshapen_tensor_is_named_with_both_shapes(folder):
    edit_weights(folder, lambda t: t.update({"projector.fc2.bias": torch.zeros(3)}))
    assert "projector.fc2.bias is [3], the config says [32]" in refusal(folder)


def test_of_many_problems_five_are_told(folder):
    edit_weights(folder, lambda t: [t.pop(k) for k in list(t)[:20]])
    assert "and 15 more" in refusal(folder)


def test_a_shard_that_the_index_names_is_missing(folder):
    index = {"weight_map": {"a": "model-00001.safetensors", "b": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks model-00001.safetensors" in refusal(folder)


def test_an_index_without_a_map(folder):
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "weight_map" in refusal(folder)


def test_weights_in_shards_are_one_model(folder):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    index = {"weight_map": {}}
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({k: tensors[k] for k in part}, folder / f"model-{i}.safetensors")
        index["weight_map"].update(dict.fromkeys(part, f"model-{i}.safetensors"))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    state = load_model(folder).state_dict()
    assert all(torch.equal(state[k], tensors[k]) for k in names)


def test_parts_that_no_answer_depends_on_may_be_there(folder):
    edit_weights(
        folder,
        lambda t: t.update(
            {
                "vision_backbone.featurizer.norm.weight": torch.ones(32),
                "vision_backbone.featurizer.blocks.1.norm1.weight": torch.ones(32),
            }
        ),
    )
    load_model(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vision_towers": []}, "vision encoders"),
        ({"arch_specifier": "linear"}, "arch_specifier is 'linear'"),
        ({"image_resize_strategy": "squash"}, "image_resize_strategy is 'squash'"),
        ({"action_head": {"type": "diffusion"}}, "action_head.type is 'diffusion'"),
        ({"action_head": {"type": "l1"}}, "needs decoding 'parallel'"),
        ({"action_head": {"horizon": 8}}, "unknown horizon"),
        ({"action_head": {"decoding": "magic"}}, "decoding is 'magic'"),
        ({"action_head": {"chunk": 0}}, "action_head.chunk"),
        ({"action_head": {"chunk": "8"}}, "action_head.chunk"),
        ({"action_head": []}, "action_head"),
        ({"text_config": "llama"}, "text_config"),
        ({"text_config": {**TINY["text_config"], "hidden_size": 33}}, "33 is not a multiple"),
        ({"text_config": {**TINY["text_config"], "hidden_size": "big"}}, "hidden_size"),
        ({"text_config": {**TINY["text_config"], "vocab_size": 100}}, "vocab"),
        ({"vision_towers": [{"key": "featurizer"}]}, "vision_towers"),
        ({"vision_towers": [{**TINY["vision_towers"][0], "stem": "fft"}]}, "stem is 'fft'"),
        ({"vision_towers": [{**TINY["vision_towers"][0], "warp": 1}]}, "unknown warp"),
        ({"vision_towers": [{**TINY["vision_towers"][0], "patch_size": 0}]}, "patch_size"),
        ({"prompt": "no place for it"}, "prompt"),
        ({"norm_stats": []}, "norm_stats"),
    ],
)
def test_a_config_that_makes_no_sense_names_the_field(folder, changes, words):
    (folder / "dataset_statistics.json").unlink()
    edit_config(folder, **changes)
    assert words in refusal(folder)


def test_an_unknown_backbone_is_refused_with_the_known_ones(folder):
    raw = json.loads((folder / "config.json").read_text())
    del raw["vision_towers"]
    (folder / "config.json").write_text(json.dumps({**raw, "vision_backbone_id": "resnet"}))
    message = refusal(folder)
    assert "'resnet'" in message and "dinosiglip-vit-so-224px" in message


def test_statistics_spec_of_an_unknown_kind(tmp_path):
    statistics = {"a": {"action": {"q01": [0.0] * 7, "q99": [1.0] * 7}, "spec": {"speed": 1}}}
    policy = OpenVLAPolicy.from_pretrained(
        write_random_checkpoint(tmp_path, statistics=statistics)
    )
    with pytest.raises(CheckpointError, match="unknown speed"):
        policy.action_spec()


def test_a_tokenizer_whose_ids_the_model_has_no_rows_for(folder):
    from vla_inference.checkpoints.random_weights import byte_tokenizer

    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(600)])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert "tokenizer.json" in refusal(folder)


# -- random checkpoints and `vla info` --------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_random_checkpoints_are_the_same_for_the_same_seed(tmp_path, head):
    paths = [write_random_checkpoint(tmp_path / n, head=head, seed=3) for n in "ab"]
    a, b = (load_file(p / "model.safetensors") for p in paths)
    assert all(torch.equal(a[k], b[k]) for k in a)
    other = load_file(write_random_checkpoint(tmp_path / "c", head=head) / "model.safetensors")
    assert not any(torch.equal(a[k], other[k]) for k in a)


def test_random_checkpoints_of_unknown_kinds_are_refused(tmp_path):
    with pytest.raises(VlaError, match="known: " + ", ".join(SIZES)):
        write_random_checkpoint(tmp_path, size="huge")
    with pytest.raises(VlaError, match="known: tokens"):
        write_random_checkpoint(tmp_path, head="diffusion")


def test_everybody_may_read_a_checkpoint(folder):
    config = (folder / "config.json").stat().st_mode
    assert (folder / "model.safetensors").stat().st_mode == config


@pytest.mark.parametrize("head", HEADS)
def test_info_counts_what_the_model_has(tmp_path, head):
    folder = write_random_checkpoint(tmp_path, head=head)
    found = describe_policy(folder)
    d = found.values
    assert d["parameters"] == sum(p.numel() for p in load_model(folder).parameters())
    assert sum(d["parts"].values()) == d["parameters"]
    assert d["head"]["chunk"] == HEADS[head].get("chunk", 1)
    space = d["action_spaces"]["random"]
    assert [p["kind"] for p in space["parts"]] == ["eef_delta", "gripper"]
    assert space["parts"][-1]["dimensions"][0]["name"] == "gripper"
    assert space["parts"][0]["dimensions"][0] == {
        "name": "x",
        "unit": "m",
        "low": -0.02,
        "high": 0.02,
        "note": "",
    }
    json.dumps(plain(d))
    text = str(found)
    assert "rad" in text and "unnorm_key 'random'" in text


def test_the_released_names_are_understood():
    raw = {"text_config": {}, "vision_backbone_id": "dinosiglip-vit-so-224px"}
    config = ModelConfig.from_json(raw)
    assert config.num_patches == 256 and config.action_vocab_end == 32000
