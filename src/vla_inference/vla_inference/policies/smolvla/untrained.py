"""Writes SmolVLA checkpoints that have not been trained, of any size.

LeRobot takes the sizes of the vision-language model from the published one alone, so it loads
those of other sizes only with the model that `vlm_config.json` describes.

Source: of the files, behaviour of huggingface/lerobot 0.6.1; of the sines, arXiv:2010.11929, D.4.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_inference.policies.lerobot.untrained import Step, features, write_folder
from vla_inference.policies.smolvla.config import VLM_CONFIG, SmolVLAConfig
from vla_inference.policies.smolvla.model import SmolVLA

VLM, EXPERT = "model.vlm_with_expert.vlm.model.", "model.vlm_with_expert.lm_expert."
MODES = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
PUT = (
    (r"^vision\.(patch|position)\.", rf"{VLM}vision_model.embeddings.\1_embedding."),
    (r"^vision\.norm\.", f"{VLM}vision_model.post_layernorm."),
    (r"^vision\.layers(.*)\.norm(\d)\.", rf"{VLM}vision_model.encoder.layers\1.layer_norm\2."),
    (r"^vision\.layers(.*)\.out\.", rf"{VLM}vision_model.encoder.layers\1.self_attn.out_proj."),
    (r"^vision\.layers", f"{VLM}vision_model.encoder.layers"),
    (r"^connector\.", f"{VLM}connector.modality_projection.proj."),
    (r"^language\.embedding\.", f"{VLM}text_model.embed_tokens."),
    (r"^language\.", f"{VLM}text_model."),
    (r"^expert\.", EXPERT),
    (r"^(?!model\.)", "model."),
    (r"(layers\.\d+)\.norm1\.", r"\1.input_layernorm."),
    (r"(layers\.\d+)\.norm2\.", r"\1.post_attention_layernorm."),
    (r"(layers\.\d+)\.([qkv])\.", r"\1.self_attn.\2_proj."),
    (r"(layers\.\d+)\.out\.", r"\1.self_attn.o_proj."),
    (r"(layers\.\d+)\.(gate|up|down)\.", r"\1.mlp.\2_proj."),
    (r"(layers\.\d+)\.(fc\d)\.", r"\1.mlp.\2."),
)


def published_name(name: str) -> str:
    """What LeRobot calls a tensor of `SmolVLA`; see `weights.our_name`."""
    for pattern, put in PUT:
        name = re.sub(pattern, put, name)
    return name


def write_untrained(
    folder: Path,
    config: SmolVLAConfig,
    cameras: Sequence[str],
    image_size: tuple[int, int],
    state: int,
    actions: int,
    tokenizer: Any,
    seed: int = 0,
) -> Path:
    """Writes into a folder what fine-tuning begins with, of random weights.

    image_size: height and width of the cameras' images. state, actions: how many numbers the robot
    has of each. tokenizer: a `tokenizers.Tokenizer` of at most as many ids as the config's
    vocabulary.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmolVLA(config)
        begin(model)
    settings = _settings(config, cameras, image_size, state, actions)
    tensors = {published_name(name): value for name, value in model.state_dict().items()}
    write_folder(folder, settings, tensors, _words(settings))
    (folder / VLM_CONFIG).write_text(json.dumps(_vlm(config), indent=2))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@torch.no_grad()
def begin(model: SmolVLA) -> None:
    """Random weights, of sizes at which a signal keeps its own through the layers."""
    c = model.config
    depth = {"vision": c.vision.layers, "language": c.text.layers, "expert": c.expert.layers}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fan = module.weight[0].numel()
            last = re.search(r"\.(out|down|fc2)$", name)  # what a layer adds
            add = (2 * depth[name.split(".")[0]]) ** -0.5 if last else 1.0
            module.weight.normal_(0, add * fan**-0.5)
            if module.bias is not None:
                module.bias.zero_()
    width = c.text.width**-0.5  # what the prefix is multiplied by, the other way round
    model.connector.weight.mul_(width)
    model.language.embedding.weight.normal_(0, width)
    model.vision.position.weight.copy_(
        grid_sines(c.vision.image // c.vision.patch, c.vision.width)
    )


def grid_sines(side: int, width: int) -> Tensor:
    """Sines and cosines of the places of a square's patches: [side^2, width], as loud as these."""
    periods = 10000 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] / periods
    one = torch.cat([angles.sin(), angles.cos()], 1)
    y, x = one[:, None].expand(side, side, -1), one[None].expand(side, side, -1)
    found = torch.zeros(side * side, width)
    found[:, : 2 * one.shape[1]] = torch.cat([y, x], -1).flatten(0, 1)
    return found


def _settings(
    c: SmolVLAConfig, cameras: Sequence[str], image_size: tuple[int, int], state: int, actions: int
) -> dict[str, Any]:
    """config.json, of the published settings where sizes say nothing else."""
    return {
        "type": "smolvla",
        "n_obs_steps": 1,
        **features(cameras, image_size, state, actions),
        "chunk_size": c.chunk,
        "n_action_steps": c.chunk,
        "normalization_mapping": MODES,
        "max_state_dim": c.state_dim,
        "max_action_dim": c.action_dim,
        "resize_imgs_with_padding": list(reversed(c.image_size)),
        "empty_cameras": 0,
        "adapt_to_pi_aloha": False,
        "use_delta_joint_actions_aloha": False,
        "tokenizer_max_length": c.words,
        "num_steps": c.steps,
        "use_cache": True,
        "freeze_vision_encoder": False,
        "train_expert_only": False,
        "train_state_proj": True,
        "optimizer_lr": 1e-4,
        "vlm_model_name": "untrained",
        "load_vlm_weights": False,
        "add_image_special_tokens": False,
        "attention_mode": "cross_attn",
        "prefix_length": 0,
        "pad_language_to": "max_length",
        "num_expert_layers": c.expert.layers,
        "num_vlm_layers": c.text.layers,
        "self_attn_every_n_layers": c.expert.self_every,
        # Read as int(this * text width), here and by LeRobot: never a hair too little
        "expert_width_multiplier": (c.expert.width + 0.5) / c.text.width,
        "min_period": c.min_period,
        "max_period": c.max_period,
    }


def _vlm(c: SmolVLAConfig) -> dict[str, Any]:
    """The vision-language model's own configuration."""
    return {
        "model_type": "smolvlm",
        "scale_factor": c.shuffle,
        "vision_config": {
            "model_type": "smolvlm_vision",
            "hidden_size": c.vision.width,
            "num_hidden_layers": c.vision.layers,
            "num_attention_heads": c.vision.heads,
            "intermediate_size": c.vision.mlp,
            "image_size": c.vision.image,
            "patch_size": c.vision.patch,
            "layer_norm_eps": c.vision.eps,
        },
        "text_config": {
            "model_type": "llama",
            "hidden_size": c.text.width,
            "num_hidden_layers": c.text.layers,
            "num_attention_heads": c.text.heads,
            "num_key_value_heads": c.text.kv_heads,
            "head_dim": c.text.head,
            "intermediate_size": c.text.mlp,
            "vocab_size": c.text.vocabulary,
            "rms_norm_eps": c.text.eps,
        },
    }


def _words(settings: dict[str, Any]) -> list[Step]:
    """How LeRobot reads an instruction."""
    tokens = {
        "max_length": settings["tokenizer_max_length"],
        "task_key": "task",
        "padding_side": "right",
        "padding": "max_length",
        "truncation": True,
        "tokenizer_name": settings["vlm_model_name"],
    }
    return [("smolvla_new_line_processor", {}), ("tokenizer_processor", tokens)]
