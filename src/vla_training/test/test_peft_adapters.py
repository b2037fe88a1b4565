"""`vla merge` of adapters that peft itself wrote: the weights of peft's own merge, or a refusal by
name before anything is written."""

from __future__ import annotations

import json
import math
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_checkpoints import edit_json, oft, published, statistics
from safetensors.torch import load_file, save_file
from torch import nn

from vla_inference.checkpoints.load import load_model
from vla_inference.cli.main import run_subcommand
from vla_inference.errors import CheckpointError, VlaError
from vla_inference.openvla.vision import Block
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.types import Observation
from vla_training.finetune.families.openvla.merge_check import verify_merge
from vla_training.lora.adapter import merge

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

# peft warns of much that these adapters are about.
pytestmark = pytest.mark.filterwarnings("ignore")

ATTENTION = r".*self_attn\.(q|v)_proj"
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny model with the parts no answer depends on, which the released ones carry."""
    folder = published(tmp_path_factory.mktemp("base") / "tiny", bridge_orig=statistics(7))
    tensors = load_file(folder / "model.safetensors")
    draw = torch.Generator().manual_seed(1)
    encoder = "vision_backbone.featurizer."
    new = {
        k.replace("blocks.0.", "blocks.1."): v.clone() for k, v in tensors.items() if encoder in k
    }
    tensors |= {k: v for k, v in new.items() if "blocks.1." in k}
    tensors |= {
        f"{encoder}attn_pool.q.weight": torch.randn(32, 32, generator=draw),
        f"{encoder}attn_pool.q.bias": torch.randn(32, generator=draw),
        f"{encoder}norm.weight": torch.ones(32),
        f"{encoder}norm.bias": torch.zeros(32),
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


class Released(transformers.PreTrainedModel):
    """The base with all its tensors as peft sees OpenVLA's own class: a model of transformers."""

    config_class = transformers.PretrainedConfig

    def __init__(self, folder: Path):
        super().__init__(transformers.PretrainedConfig())
        model = load_model(folder)
        self.vision_backbone, self.projector = model.vision_backbone, model.projector
        self.language_model = model.language_model
        encoder = self.vision_backbone.featurizer
        encoder.blocks.append(Block(model.config.encoders[0]))
        encoder.norm = nn.LayerNorm(32)
        encoder.attn_pool = nn.ModuleDict({"q": nn.Linear(32, 32)})
        self.load_state_dict(load_file(folder / "model.safetensors"))

    def get_output_embeddings(self):
        return self.language_model.lm_head

    def get_input_embeddings(self):
        return self.language_model.model.embed_tokens


def train(model: nn.Module) -> None:
    """As if it had been trained: everything that may move does."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter) + 0.01


def wrapped(base: Path, **options) -> peft.PeftModel:
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, **options})
    return peft.get_peft_model(Released(base), config)


def adapter_and_truth(base: Path, folder: Path, **options) -> tuple[Path, dict]:
    """The folder peft saves, and the weights of its own merge by name."""
    model = wrapped(base, **options)
    train(model)
    model.save_pretrained(folder)
    return folder, dict(model.merge_and_unload().state_dict())


def assert_merged(base: Path, adapter: Path, truth: dict, output: Path) -> None:
    merged = load_file(merge(base, adapter, output) / "model.safetensors")
    plain = load_file(base / "model.safetensors")
    assert set(merged) == set(plain)
    for name, value in merged.items():
        assert torch.allclose(value, truth[name], atol=2e-6, rtol=1e-5), name
    assert any(not torch.equal(merged[n], plain[n]) for n in merged)  # it is not the base
    assert verify_merge(base, adapter, output)["equal"] == 4


KINDS = {
    "some layers": {},
    "a list": {"target_modules": ["q_proj", "down_proj"]},
    "one layer of a list": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    "all but some": {"target_modules": "all-linear", "exclude_modules": r".*featurizer.*"},
    "as OpenVLA's script": {"target_modules": "all-linear", "init_lora_weights": "gaussian"},
    "all biases": {"target_modules": "all-linear", "bias": "all"},
    "biases of the layers": {"target_modules": ["fc1", "qkv", "q_proj"], "bias": "lora_only"},
    "biases of B": {
        "target_modules": ["fc1", "fc2", "proj", "q"],
        "lora_bias": True,
        "exclude_modules": r".*patch_embed.*",
    },
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"target_modules": "all-linear", "use_dora": True},
    "DoRA, rsLoRA, biases": {
        "target_modules": ["fc1"],
        "use_dora": True,
        "use_rslora": True,
        "bias": "all",
    },
    "ranks": {"rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 8}},
    "alphas": {"alpha_pattern": {"v_proj": 3}, "rank_pattern": {"v_proj": 5}, "use_rslora": True},
    "a whole layer": {"modules_to_save": ["lm_head", "fc2"]},
    "the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "the embedding by DoRA": {"target_modules": ["embed_tokens"], "use_dora": True},
    "some tokens": {"trainable_token_indices": [5, 300, 7]},
    "tokens by layer": {"trainable_token_indices": {"embed_tokens": [575, 0]}},
    "the patches' convolution": {"target_modules": ["patch_embed.proj", "q_proj"]},
    "the convolution by DoRA": {"target_modules": ["patch_embed.proj"], "use_dora": True},
    "fan in, fan out": {"fan_in_fan_out": True},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_peft_s_own_merge(base, tmp_path, kind):
    adapter, truth = adapter_and_truth(base, tmp_path / "adapter", **KINDS[kind])
    assert_merged(base, adapter, truth, tmp_path / "merged")


def test_the_merged_model_answers_otherwise_than_the_base(base, tmp_path):
    adapter, _ = adapter_and_truth(base, tmp_path / "adapter", target_modules="all-linear")
    policies = [
        OpenVLAPolicy.from_pretrained(p) for p in (base, merge(base, adapter, tmp_path / "out"))
    ]
    a, b = (p.predict_action(IMAGE, "lift it").tokens for p in policies)
    assert (a != b).any()


def test_layers_the_base_lacks_and_no_answer_needs_are_left_out(base, tmp_path):
    adapter, truth = adapter_and_truth(
        base, tmp_path / "adapter", target_modules="all-linear", bias="all"
    )
    small = shutil.copytree(base, tmp_path / "small")
    tensors = load_file(small / "model.safetensors")
    used = {
        k: v
        for k, v in tensors.items()
        if not any(part in k for part in ("blocks.1.", "attn_pool", "featurizer.norm."))
    }
    save_file(used, small / "model.safetensors")
    assert_merged(small, adapter, truth, tmp_path / "merged")


def test_a_base_in_bfloat16_is_rounded_once(base, tmp_path):
    half = shutil.copytree(base, tmp_path / "half")
    tensors = {k: v.bfloat16() for k, v in load_file(half / "model.safetensors").items()}
    save_file(tensors, half / "model.safetensors")
    for number, options in enumerate(({}, {"use_dora": True})):
        adapter = tmp_path / f"adapter{number}"
        _, truth = adapter_and_truth(half, adapter, **options)
        merged = load_file(merge(half, adapter, tmp_path / f"m{number}") / "model.safetensors")
        assert all(torch.equal(v, truth[k].bfloat16()) for k, v in merged.items())


def test_pickled_tensors_are_read_without_running_anything(base, tmp_path):
    adapter, truth = adapter_and_truth(base, tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    torch.save(load_file(path), adapter / "adapter_model.bin")
    path.unlink()
    assert_merged(base, adapter, truth, tmp_path / "merged")

    class Evil:
        def __reduce__(self):
            return exec, ("raise SystemExit('code was run')",)

    torch.save({"base_model.model.x": Evil()}, adapter / "adapter_model.bin")
    assert "adapter_model.bin cannot be read" in refusal(base, adapter, tmp_path)
    (adapter / "adapter_model.bin").unlink()
    assert "adapter_model.safetensors cannot be read" in refusal(base, adapter, tmp_path)


# -- what took a part out of the base ---------------------------------------------------------


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_of_another_base_is_refused_until_it_is_made_a_difference(
    base, tmp_path, start
):
    model = wrapped(base, init_lora_weights=start)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = start
    train(model)
    model.save_pretrained(tmp_path / "raw")
    message = refusal(base, tmp_path / "raw", tmp_path)
    assert f"init_lora_weights '{start}'" in message
    assert "path_initial_model_for_weight_conversion" in message
    model.save_pretrained(
        tmp_path / "converted", path_initial_model_for_weight_conversion=tmp_path / "start"
    )
    truth = dict(model.merge_and_unload().state_dict())
    assert_merged(base, tmp_path / "converted", truth, tmp_path / "merged")


# -- refused by name, and nothing is left -----------------------------------------------------


def refusal(base: Path, adapter: Path, place: Path) -> str:
    before = sorted(place.iterdir())
    with pytest.raises(CheckpointError) as caught:
        merge(base, adapter, place / "refused")
    assert caught.value.remedy and "\n" not in str(caught.value)
    assert sorted(place.iterdir()) == before  # neither the folder nor what it is written in
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"peft_type": "ADALORA"}, "peft_type 'ADALORA'"),
        ({"init_lora_weights": "corda"}, "init_lora_weights 'corda'"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights 'lora_ga'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights 'loftq', after which the base"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"target_parameters": ["experts.weight"]}, "target_parameters"),
        ({"use_qalora": True}, "use_qalora"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"some_future_option": {"rho": 2}}, "some_future_option"),
        ({"r": 8}, "for rank 8, as adapter_config.json says"),
        ({"rank_pattern": {"q_proj": 2}}, "for rank 2"),
        ({"use_dora": True}, "no lora_magnitude_vector for use_dora True"),
        ({"lora_alpha": None}, "no r and lora_alpha"),
    ],
)
def test_what_is_not_read_is_refused_by_its_key(base, tmp_path, changes, words):
    adapter, _ = adapter_and_truth(base, tmp_path / "adapter")
    about = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**about, **changes}))
    message = refusal(base, adapter, tmp_path)
    assert words in message and "adapter" in message


def test_dora_s_lengths_without_the_switch_are_noticed(base, tmp_path):
    adapter, _ = adapter_and_truth(base, tmp_path / "adapter", use_dora=True)
    edit_json(adapter / "adapter_config.json", use_dora=False)
    assert "a lora_magnitude_vector for use_dora False" in refusal(base, adapter, tmp_path)


def test_biases_of_b_where_the_layer_has_none_are_refused(base, tmp_path):
    model = wrapped(base, lora_bias=True)
    train(model)
    model.save_pretrained(tmp_path / "adapter")
    message = refusal(base, tmp_path / "adapter", tmp_path)
    assert "lora_bias" in message and "q_proj.bias, which the base has not" in message


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            {
                "language_model.model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(4, 32),
                "language_model.model.layers.9.mlp.up_proj.lora_B.weight": torch.ones(64, 4),
            },
            "layers.9.mlp.up_proj.weight [64, 32], the base has none",
        ),
        ({"projector.fc1.lora_A.weight": torch.ones(4, 32)}, "no pair of lora_A and lora_B"),
        (
            {"language_model.lm_head.weight": torch.ones(600, 32)},
            "lm_head.weight [600, 32], the base has [576, 32]",
        ),
        ({"score.weight": torch.ones(2, 32)}, "score.weight [2, 32], the base has none"),
        ({"projector.fc1.lora_ga_E": torch.ones(4)}, "projector.fc1.lora_ga_E [4]"),
    ],
)
def test_tensors_that_belong_to_nothing_are_refused(base, tmp_path, more, words):
    adapter, _ = adapter_and_truth(base, tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    save_file({**load_file(path), **{f"base_model.model.{k}": v for k, v in more.items()}}, path)
    assert words in refusal(base, adapter, tmp_path)


def test_trained_tokens_that_the_config_does_not_name_are_refused(base, tmp_path):
    adapter, _ = adapter_and_truth(base, tmp_path / "adapter", trainable_token_indices=[5, 7])
    edit_json(adapter / "adapter_config.json", trainable_token_indices=[5])
    assert "2 rows of language_model.model.embed_tokens" in refusal(base, adapter, tmp_path)
    edit_json(adapter / "adapter_config.json", trainable_token_indices=[5, 900])
    assert "trained row 900" in refusal(base, adapter, tmp_path)


def test_numbers_that_are_not_finite_leave_nothing_behind(base, tmp_path):
    adapter, _ = adapter_and_truth(base, tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0] = math.nan
    save_file(tensors, path)
    assert "numbers that are not finite" in refusal(base, adapter, tmp_path)


def test_a_check_that_fails_leaves_nothing_and_keeps_what_was_there(
    base, tmp_path, monkeypatch, capsys
):
    adapter, _ = adapter_and_truth(base, tmp_path / "adapter")
    point = EntryPoint("merge", "vla_training.cli.finetune:merge", "vla.commands")

    def command(*words: str) -> int:
        return run_subcommand(point, [str(base), str(adapter), str(tmp_path / "out"), *words])

    def otherwise(*given):
        raise CheckpointError("it answers otherwise", "report this")

    monkeypatch.setattr(
        "vla_training.finetune.families.openvla.merge_check.verify_merge", otherwise
    )
    with pytest.raises(VlaError, match="answers otherwise"):
        command()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]
    monkeypatch.undo()
    assert command("--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["equal"] == 4 and told["action_spaces"] == ["bridge_orig"]
    kept = (tmp_path / "out/model.safetensors").read_bytes()
    monkeypatch.setattr(
        "vla_training.finetune.families.openvla.merge_check.verify_merge", otherwise
    )
    with pytest.raises(VlaError, match="answers otherwise"):
        command("--overwrite")
    assert (tmp_path / "out/model.safetensors").read_bytes() == kept
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "out"]


# -- what belongs to a run --------------------------------------------------------------------


def test_statistics_and_augmentation_follow_the_run_not_the_base(base, tmp_path):
    name = "openvla-7b+my_arm+b16+lr-0.0005+lora-r32+dropout-0.0--image_aug"
    adapter, _ = adapter_and_truth(base, tmp_path / name)
    message = refusal(base, adapter, tmp_path)
    assert "no statistics of my_arm" in message and "dataset_statistics.json" in message
    (adapter / "dataset_statistics.json").write_text(json.dumps({"my_arm": statistics(7)}))
    policy = OpenVLAPolicy.from_pretrained(merge(base, adapter, tmp_path / "merged"))
    assert list(policy.config.norm_stats) == ["my_arm"] and policy.config.center_crop == 0.9
    assert "assumed" not in json.loads((tmp_path / "merged/config.json").read_text())


def test_an_adapter_inside_an_oft_run_takes_the_run_s_heads_along(base, tmp_path):
    name = "run--parallel_dec--8_acts_chunk--L1_regression--3rd_person_img--proprio_state--9_chkpt"
    run = oft(tmp_path / name, 1, 8)
    for path in (run / "config.json", run / "model.safetensors"):  # not merged while training
        path.unlink()
    adapter_and_truth(base, run / "lora_adapter", target_modules="all-linear")
    merged = merge(base, run / "lora_adapter", tmp_path / "merged")
    policy = OpenVLAPolicy.from_pretrained(merged)
    assert (policy.config.head.type, policy.config.head.proprio_dim) == ("l1", 8)
    seen = Observation({"a": IMAGE}, "lift it", np.full(8, 0.3))
    assert policy.predict_action(seen).actions.shape == (8, 7)
    assert verify_merge(base, run / "lora_adapter", merged)["equal"] == 4
    head = torch.load(run / "action_head--150000_checkpoint.pt", weights_only=True)
    assert torch.equal(policy.model.action_head.model.fc2.bias, head["module.model.fc2.bias"])
    (run / "action_head--150000_checkpoint.pt").unlink()
    assert "lacks action_head--*_checkpoint.pt" in refusal(base, run / "lora_adapter", tmp_path)
