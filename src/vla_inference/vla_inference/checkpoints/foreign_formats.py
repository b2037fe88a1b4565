"""Recognises checkpoint files in unsupported formats and names the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vla_inference.errors import CheckpointError

# Weights in other formats, recognised by file name; parts of OpenVLA-OFT and what a trainer
# keeps for itself are none.
PICKLED = re.compile(
    r"(?!\w+--\w+\.pt$|training_args|optimizer|scheduler|rng_state).*\.(bin|pt|pth|ckpt|pkl)"
)
OTHER_FORMS = re.compile(r".*\.(gguf|ggml|onnx|msgpack|h5|npz)")
# What quantisers name the tensors beside or instead of a weight.
CODED = (
    (
        re.compile(r"\.(absmax|quant_map|nested_absmax|nested_quant_map)$|\.quant_state\."),
        "bitsandbytes (4 bits)",
    ),
    (re.compile(r"\.(SCB|weight_format)$"), "bitsandbytes (8 bits)"),
    (re.compile(r"\.(qweight|qzeros|g_idx)$"), "GPTQ or AWQ"),
    (
        re.compile(r"\.(weight_packed|weight_scale|weight_zero_point|input_scale)$"),
        "compressed-tensors or FP8",
    ),
)
UNCODED = (
    "give the checkpoint it was made from, and --quantization (int4, int8) to run it in few bits"
)


def check_files(names: Iterable[str], where: str | Path) -> None:
    """Refuses a folder without safetensors, from its file names only."""
    names = sorted(names)
    if any(n.startswith("checkpoints/") and n.endswith(".pt") for n in names):
        raise CheckpointError(
            f"{where} is a training run in Prismatic's own layout, which is run and described but "
            "not read by this command",
            "convert it: python -m vla_inference.checkpoints.prismatic.convert RUN OUTPUT",
        )
    if any(n.endswith(".safetensors") for n in names):
        return
    pickled = [n for n in names if PICKLED.fullmatch(n)]
    if pickled:
        raise CheckpointError(
            f"{where} contains pickled weights ({_some(pickled)}), which could run code and are "
            "not read",
            "save them as safetensors where they come from: "
            "model.save_pretrained(folder, safe_serialization=True)",
        )
    others = [n for n in names if OTHER_FORMS.fullmatch(n)]
    if others:
        raise CheckpointError(
            f"{where} contains weights in a form that is not read ({_some(others)})",
            "give the checkpoint they were made from, with its *.safetensors",
        )
    raise CheckpointError(f"{where} has no *.safetensors file", "give a checkpoint folder")


def check_not_adapter(folder: Path) -> None:
    """Refuses a folder that contains only an adapter."""
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is a LoRA adapter, not a model",
            "merge it into its base first: `vla merge BASE ADAPTER OUTPUT`",
        )


def check_config(raw: Mapping[str, Any], folder: Path) -> None:
    """Refuses a config.json or neighbouring file that shows the weights are in another form.

    An adapter beside a model is not part of it, and a quantiser's codes are not its weights.
    """
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} contains a model and an adapter beside it (adapter_config.json), of which "
            "nobody says whether the model contains it",
            "move the adapter to a folder of its own, and run `vla merge BASE ADAPTER OUTPUT` "
            "where it is not merged yet",
        )
    text = raw.get("text_config")
    for part in (raw, text if isinstance(text, Mapping) else {}):
        about = part.get("quantization_config")
        if about:
            raise CheckpointError(
                f"{folder} is quantised by {_method(about)}, which is not read", UNCODED
            )
    if {"action_horizon", "paligemma_variant"} <= raw.keys() and "type" not in raw:
        raise CheckpointError(
            f"{folder} is a checkpoint of openpi, whose config.json says neither cameras, nor the "
            "state, nor how its numbers are normalised",
            "write config.json and the processors' files as LeRobot has them for pi0 and pi05, "
            "with the statistics of assets/*/norm_stats.json; the weights may stay",
        )
    run = isinstance(raw.get("vla", raw.get("model")), Mapping)
    if "text_config" not in raw and not run and any((folder / "checkpoints").glob("*.pt")):
        raise CheckpointError(
            f"{folder} has checkpoints/*.pt as a training run of Prismatic's own, and its "
            "config.json has neither 'vla' nor 'model'",
            "copy the run's own config.json",
        )


def _method(about: Any) -> str:
    if not isinstance(about, Mapping):
        return f"{about!r:.40}"
    name = str(about.get("quant_method") or "bitsandbytes")
    if about.get("load_in_4bit") or about.get("_load_in_4bit"):
        return f"{name} ({about.get('bnb_4bit_quant_type', 'fp4')})"
    bits = 8 if about.get("load_in_8bit") or about.get("_load_in_8bit") else about.get("bits")
    return f"{name} ({bits} bits)" if bits else name


def check_tensors(names: Iterable[str], where: str | Path) -> None:
    """Refuses tensors of a quantiser that config.json does not mention."""
    for name in names:
        for pattern, method in CODED:
            if pattern.search(name):
                raise CheckpointError(
                    f"{where} is quantised by {method}, as {name} tells, which is not read",
                    UNCODED,
                )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
