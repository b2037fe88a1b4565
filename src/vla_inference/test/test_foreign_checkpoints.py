"""Tests of checkpoints from other programs: read correctly or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_checkpoints import edit_json, oft, published, statistics
from safetensors.torch import load_file, save_file

from vla_inference.checkpoints.load import load_config
from vla_inference.checkpoints.oft_settings import OftSettings, of_name
from vla_inference.checkpoints.random_weights import TINY
from vla_inference.errors import CheckpointError, ObservationError, VlaError
from vla_inference.openvla.config import ModelConfig
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.policies.registry import describe_policy
from vla_inference.types import Observation

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
RUN = (
    "openvla-7b+libero_spatial_no_noops+b8+lr-0.0005+lora-r32+dropout-0.0--image_aug--parallel_dec"
    "--8_acts_chunk--continuous_acts--L1_regression--3rd_person_img"
)


def refusal(folder: Path) -> str:
    """The one sentence that `vla info` and loading both end with."""
    with pytest.raises(CheckpointError) as by_info:
        describe_policy(folder)
    with pytest.raises(CheckpointError) as by_loading:
        OpenVLAPolicy.from_pretrained(folder, device="cpu")
    assert str(by_info.value) == str(by_loading.value)
    assert by_info.value.remedy and "\n" not in str(by_info.value)
    return str(by_info.value)


def seen(cameras: int, state: int = 0) -> Observation:
    images = {f"camera_{i}": np.roll(IMAGE, i, 1) for i in range(cameras)}
    return Observation(images, "pick up the cup", np.full(state, 0.3) if state else None)


# -- tokenizer.json ---------------------------------------------------------------------------


def test_padding_and_truncation_saved_with_a_tokenizer_are_off(tmp_path):
    plain = published(tmp_path / "plain")
    wanted = OpenVLAPolicy.from_pretrained(plain).predict_action(IMAGE, "pick up the cup")
    padding = {
        "strategy": {"Fixed": 160},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    truncation = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    for name, change in (("padded", {"padding": padding}), ("cut", {"truncation": truncation})):
        folder = shutil.copytree(plain, tmp_path / name)
        edit_json(folder / "tokenizer.json", **change)
        policy = OpenVLAPolicy.from_pretrained(folder)
        assert policy.prompt("pick up the cup") == OpenVLAPolicy.from_pretrained(plain).prompt(
            "pick up the cup"
        )
        got = policy.predict_action(IMAGE, "pick up the cup")
        np.testing.assert_array_equal(got.tokens, wanted.tokens)


# -- weights in other forms -------------------------------------------------------------------


def bitsandbytes(folder: Path, say_so: bool = True) -> Path:
    """As transformers saves a model in 4 bits: codes and their constants in place of weights."""
    if say_so:
        about = {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
        }
        edit_json(folder / "config.json", quantization_config=about)
    tensors = load_file(folder / "model.safetensors")
    for name in [k for k in tensors if k.endswith("q_proj.weight")]:
        tensors[name] = torch.zeros(tensors[name].numel() // 2, 1, dtype=torch.uint8)
        state = torch.zeros(10, dtype=torch.uint8)
        tensors |= {
            f"{name}.absmax": torch.zeros(8),
            f"{name}.quant_map": torch.zeros(16),
            f"{name}.quant_state.bitsandbytes__nf4": state,
        }
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_four_bits_of_others_name_the_quantiser_and_the_remedy(tmp_path):
    message = refusal(bitsandbytes(published(tmp_path / "said")))
    assert "is quantised by bitsandbytes (nf4), which is not read" in message
    assert "give the checkpoint it was made from, and --quantization" in message
    message = refusal(bitsandbytes(published(tmp_path / "unsaid"), say_so=False))
    assert "is quantised by bitsandbytes (4 bits), as " in message and ".absmax" in message


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq (4 bits)"),
        ({"quant_method": "awq", "bits": 4, "version": "gemm"}, "awq (4 bits)"),
        ({"load_in_8bit": True}, "bitsandbytes (8 bits)"),
        ({"quant_method": "fp8"}, "fp8"),
        ("int4", "'int4'"),
    ],
)
@pytest.mark.parametrize("place", ["config", "text_config"])
def test_any_quantisation_config_is_refused(tmp_path, about, words, place):
    folder = published(tmp_path)
    raw = json.loads((folder / "config.json").read_text())
    (raw if place == "config" else raw["text_config"])["quantization_config"] = about
    (folder / "config.json").write_text(json.dumps(raw))
    assert f"is quantised by {words}, which is not read" in refusal(folder)


@pytest.mark.parametrize("name", ["layer.qweight", "layer.SCB", "layer.weight_packed"])
def test_codes_that_no_config_speaks_of_are_told_by_their_names(tmp_path, name):
    folder = published(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: torch.zeros(4)}, folder / "model.safetensors")
    assert f"as {name} tells" in refusal(folder)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "x.ckpt"]
)
def test_pickled_weights_are_named_with_the_way_out(tmp_path, name):
    folder = published(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / name)
    (folder / "model.safetensors").unlink()
    message = refusal(folder)
    assert f"contains pickled weights ({name})" in message and "safe_serialization=True" in message


def test_other_forms_and_none_at_all_are_told_apart(tmp_path):
    folder = published(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "training_args.bin").write_bytes(b"")
    assert "has no *.safetensors file" in refusal(folder)
    (folder / "openvla-q4.gguf").write_bytes(b"GGUF")
    assert "a form that is not read (openvla-q4.gguf)" in refusal(folder)


def test_a_run_of_prismatic_s_own_that_does_not_say_what_it_is(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step-295000-epoch-40-loss=0.2200.pt").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps({"model": {}, "run_id": "prism"}))
    message = refusal(tmp_path)
    assert "training run of Prismatic's own" in message and "llm_backbone_id" in message


def test_an_adapter_beside_a_model_is_not_passed_over(tmp_path):
    folder = published(tmp_path)
    (folder / "adapter_config.json").write_text("{}")
    message = refusal(folder)
    assert "a model and an adapter beside it" in message and "vla merge" in message


# -- the length of an action ------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 6, 8, 14, 32])
def test_the_statistics_tell_how_long_an_action_is(tmp_path, size):
    folder = published(
        tmp_path,
        {"type": "tokens", "action_dim": size, "slots_per_step": size},
        my_arm=statistics(size),
    )
    policy = OpenVLAPolicy.from_pretrained(folder)
    chunk = policy.predict_action(IMAGE, "pick up the cup")
    assert chunk.actions.shape == (1, size) and len(chunk.spec) == size
    alone = policy.predict_action(IMAGE, "pick up the cup", action_space="normalized")
    np.testing.assert_allclose(alone.actions[0, :-1], chunk.actions[0, :-1], atol=1e-6)
    space = describe_policy(folder).values["action_spaces"]["my_arm"]
    assert sum(len(part["dimensions"]) for part in space["parts"]) == size
    streamed = []
    policy.predict_action(IMAGE, "pick up the cup", stream=streamed.append)
    assert len(streamed) == size


def test_statistics_of_several_lengths_are_asked_about(tmp_path):
    folder = published(tmp_path, a=statistics(7), b=statistics(8))
    assert "of several lengths (7: a, 8: b)" in refusal(folder)
    edit_json(folder / "vla.json", norm_stats={"b": statistics(8)})
    assert OpenVLAPolicy.from_pretrained(folder).predict_action(
        IMAGE, "lift it"
    ).actions.shape == (1, 8)


def test_no_statistics_are_not_called_several_data_sets(tmp_path):
    folder = published(tmp_path)
    (folder / "dataset_statistics.json").unlink()
    policy = OpenVLAPolicy.from_pretrained(folder)
    with pytest.raises(VlaError, match=r"has no action statistics .*copy dataset_statistics"):
        policy.predict_action(IMAGE, "lift it")
    assert policy.predict_action(IMAGE, "lift it", action_space="normalized").actions.shape[1] == 7


def test_statistics_that_stayed_behind_in_the_run_s_folder_are_asked_for(tmp_path):
    folder = published(tmp_path / "openvla-7b+my_arm+b16+lr-0.0005", bridge_orig=statistics(7))
    given = json.loads((folder / "dataset_statistics.json").read_text())
    (folder / "dataset_statistics.json").unlink()
    edit_json(folder / "config.json", norm_stats=given)  # the base's own
    message = refusal(folder)
    assert "no statistics of my_arm" in message and "copy dataset_statistics.json" in message
    (folder / "dataset_statistics.json").write_text(json.dumps({"my_arm": statistics(7)}))
    assert list(load_config(folder).norm_stats) == ["my_arm"]


# -- text_config ------------------------------------------------------------------------------


def decoder(**changes):
    text = {**TINY["text_config"], **changes}
    return ModelConfig.from_json({**TINY, "text_config": text}).llm


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "mistral"),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("use_sliding_window", True),
        ("partial_rotary_factor", 0.5),
        ("sliding_window", 4096),
        ("head_dim", 32),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("rope_scaling", {"factor": 8.0}),
        ("rope_scaling", "yarn"),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 10000.0}),
    ],
)
def test_another_decoder_is_refused_by_the_key_that_makes_it_so(key, value):
    with pytest.raises(CheckpointError, match=f"text_config.{key} is "):
        decoder(**{key: value})


def test_what_says_the_usual_is_read():
    usual = decoder(
        model_type="llama",
        hidden_act="silu",
        attention_bias=False,
        mlp_bias=False,
        head_dim=16,
        tie_word_embeddings=False,
        rope_scaling=None,
        pretraining_tp=1,
        sliding_window=None,
    )
    assert usual == decoder()
    assert decoder(tie_word_embeddings=None) == decoder()
    theta = {"rope_type": "default", "rope_theta": 5e5}
    assert decoder(rope_parameters=theta).rope_theta == 5e5  # transformers 5
    with pytest.raises(CheckpointError, match=r"has rope_theta 10000[.]0 and, in rope_parameters"):
        decoder(rope_parameters=theta, rope_theta=1e4)


def test_as_many_key_heads_as_heads_where_nobody_says_otherwise():
    text = {k: v for k, v in TINY["text_config"].items() if k != "num_key_value_heads"}
    assert ModelConfig.from_json({**TINY, "text_config": text}).llm.num_key_value_heads == 2
    assert decoder(num_key_value_heads=None).num_key_value_heads == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [("rms_norm_eps", 1e-2), ("rope_theta", 100.0), ("num_key_value_heads", 1)],
)
def test_what_changes_the_network_changes_the_answer(tmp_path, key, value):
    """Each against transformers' own Llama: what is read is read as it is meant."""
    transformers = pytest.importorskip("transformers")
    from vla_inference.checkpoints.random_weights import random_config, random_model

    raw = random_config("tiny", "tokens")
    raw["text_config"] |= {key: value}
    ours = random_model(raw).language_model
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**raw["text_config"]))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got, wanted = ours.model(x)[0], theirs.model(inputs_embeds=x).last_hidden_state
        other = random_model(random_config("tiny", "tokens")).language_model.model(x)[0]
    assert (got - wanted).norm() < 2e-5 * wanted.norm()
    assert (other - wanted).norm() > 1e-3 * wanted.norm()


# -- OpenVLA-OFT ------------------------------------------------------------------------------


def test_one_camera_and_a_state_are_told_by_the_run_s_name(tmp_path):
    folder = oft(tmp_path / f"{RUN}--proprio_state--150000_chkpt", 1, 8)
    policy = OpenVLAPolicy.from_pretrained(folder)
    head = policy.config.head
    assert (head.num_images, head.proprio_dim, head.chunk, head.type) == (1, 8, 8, "l1")
    assert policy.predict_action(seen(1, 8)).actions.shape == (8, 7)
    with pytest.raises(ObservationError, match=r"needs 1 images, got 2 \(camera_0, camera_1\)"):
        policy.predict_action(seen(2, 8))
    assert describe_policy(folder).values["images"] == 1


def test_two_cameras_without_a_state_are_told_by_the_run_s_name(tmp_path):
    policy = OpenVLAPolicy.from_pretrained(oft(tmp_path / f"{RUN}--wrist_img--150000_chkpt", 2, 0))
    assert (policy.config.head.num_images, policy.config.head.proprio_dim) == (2, 0)
    first = policy.predict_action(seen(2)).actions
    other = policy.predict_action(Observation({"a": IMAGE, "b": IMAGE[::-1].copy()}, "lift it"))
    assert first.shape == (8, 7) and (first != other.actions).any()  # the wrist's image counts
    with pytest.raises(ObservationError, match="needs 2 images, got 1"):
        policy.predict_action(seen(1))


def test_parallel_tokens_with_nothing_beside_are_asked_for_by_name(tmp_path):
    folder = oft(tmp_path / "Openvla-oft-SFT-libero-spatial-traj1", 1, 0, "tokens")
    message = refusal(folder)
    assert "whether it answers by an L1 head or by tokens, how many images it takes" in message
    assert '"decoding": "parallel", "type": "tokens", "chunk": 8, "num_images": 1' in message
    edit_json(folder / "vla.json", action_head={"type": "tokens", "num_images": 1})
    chunk = OpenVLAPolicy.from_pretrained(folder).predict_action(seen(1))
    assert chunk.actions.shape == (8, 7) and chunk.tokens.shape == (8, 7)


def test_parallel_tokens_whose_name_says_all_need_no_asking(tmp_path):
    name = RUN.replace("continuous_acts--L1_regression", "discrete_acts")
    policy = OpenVLAPolicy.from_pretrained(oft(tmp_path / f"{name}--9_chkpt", 1, 0, "tokens"))
    assert (policy.config.head.type, policy.config.head.decoding) == ("tokens", "parallel")
    assert policy.predict_action(seen(1)).actions.shape == (8, 7)


def test_a_renamed_folder_is_asked_for_its_cameras(tmp_path):
    message = refusal(oft(tmp_path / "mine", 1, 8))
    assert "neither its name nor its files tell how many images it takes" in message


def test_code_of_openvla_oft_beside_the_weights_tells_what_they_are(tmp_path):
    folder = oft(tmp_path / "mine", 1, 0, "tokens", "my_arm")
    assert load_config(folder).head.decoding == "autoregressive"
    (folder / "modeling_prismatic.py").write_text("from constants import NUM_ACTIONS_CHUNK\n")
    message = refusal(folder)
    assert "L1 head or by tokens, how long its chunks are, how many images" in message


def test_the_published_name_without_its_heads_is_not_run_as_openvla(tmp_path):
    folder = oft(tmp_path / "openvla-7b-oft-finetuned-libero-10", 2, 8)
    assert load_config(folder).head.num_images == 2
    (folder / "proprio_projector--150000_checkpoint.pt").unlink()
    assert "lacks proprio_projector--*_checkpoint.pt" in refusal(folder)
    (folder / "action_head--150000_checkpoint.pt").unlink()
    assert "lacks action_head--*_checkpoint.pt" in refusal(folder)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("8_acts", "10_acts", "10 steps by the checkpoint's name or config, 8 by OpenVLA-OFT's"),
        ("continuous_acts--L1_regression", "discrete_acts", "answers by tokens, as its name"),
        ("L1_regression", "diffusion", "has a diffusion head"),
        ("3rd_person_img", "3rd_person_img--film", "has FiLM conditioning"),
        ("3rd_person_img", "wrist_img", "how many images it takes"),
        ("3rd_person_img", "3rd_person_img--wrist_imgs", "how many images it takes"),
    ],
)
def test_names_that_the_files_contradict_and_names_that_do_not_tell(tmp_path, old, new, words):
    assert words in refusal(oft(tmp_path / RUN.replace(old, new), 1, 0))


def test_a_config_in_the_options_words_is_read_and_held_against_the_name(tmp_path):
    folder = oft(tmp_path / "mine", 2, 8)
    edit_json(folder / "config.json", num_images_in_input=2, use_proprio=True)
    assert load_config(folder).head.num_images == 2
    folder = oft(tmp_path / f"{RUN}--1_chkpt", 1, 0)
    edit_json(folder / "config.json", num_images_in_input=2)
    assert "images is 1 by its name, 2 by its config.json" in refusal(folder)
    edit_json(folder / "config.json", num_images_in_input=None, use_film=True)
    assert "has FiLM conditioning" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("openvla-7b", None),
        ("openvla-7b-finetuned-libero-spatial", None),
        ("soft-grip-7b", None),
        ("openvla-7b-oft-finetuned-libero-goal", OftSettings("l1", 8, 2, True, False)),
        (f"{RUN}--wrist_img--proprio_state--150000_chkpt", OftSettings("l1", 8, 2, True)),
        (
            "x--parallel_dec--25_acts_chunk--continuous_acts--L1_regression--3rd_person_img"
            "--left_right_wrist_imgs--proprio_state--film",
            OftSettings("l1", 25, 3, True, True),
        ),
        (
            "x--8_acts_chunk--L1_regression--3rd_person_img-gripper_img-proprio--5_chkpt",
            OftSettings("l1", 8, 2, True),
        ),
        (
            "run--track_b16_aug-8_acts_chunk--3rd_person_img--proprio_state--90000_chkpt",
            OftSettings(None, 8, 1, True),
        ),
        (
            "arm--oft--l1_regression--8_acts_chunk--no_film",
            OftSettings("l1", 8, None, None, False),
        ),
        (
            "x--parallel_dec--8_acts_chunk--discrete_acts--proprio_state",
            OftSettings("tokens", 8, None, True),
        ),
    ],
)
def test_what_names_that_people_gave_their_runs_state(name, settings):
    assert of_name(name) == settings
