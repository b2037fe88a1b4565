"""Checkpoint folders: safetensors + JSON, nothing that runs.

A folder holds config.json, tokenizer.json, *.safetensors (one, or shards with an index) and, when
fine-tuned, dataset_statistics.json, which takes the place of config.json's norm_stats.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from vla_inference.errors import CheckpointError
from vla_inference.model import VLA, ModelConfig

# Parts the released checkpoints carry that no answer depends on: each tower's last block, its
# final norm and SigLIP's pooling head.
UNUSED = re.compile(r"^vision_backbone\.\w+\.(norm\.|attn_pool\.)|rotary_emb\.inv_freq$")


def read_json(path: Path) -> dict:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing", "the checkpoint folder is incomplete")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON ({error})", "copy it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object", "copy it again")
    return content


def load_config(folder: Path) -> ModelConfig:
    raw = read_json(folder / "config.json")
    statistics = folder / "dataset_statistics.json"
    if statistics.is_file():
        raw = {**raw, "norm_stats": read_json(statistics)}
    return ModelConfig.from_json(raw, str(folder / "config.json"))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, complete by its index if it has one."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        if not names:
            raise CheckpointError(f"{index} has no weight_map", "copy it again")
        missing = [n for n in names if not (folder / n).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {', '.join(missing)}, which its index names", "fetch them again"
            )
        return [folder / n for n in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no *.safetensors file", "give a checkpoint folder")
    return files


def iterate_tensors(folder: Path, device: str) -> Iterator[tuple[str, torch.Tensor, Path]]:
    """Every tensor in turn, straight onto `device`; a damaged file is named."""
    from safetensors import SafetensorError, safe_open

    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt", device=device) as file:
                for key in file.keys():  # noqa: SIM118 (not a mapping)
                    yield key, file.get_tensor(key), path
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error})", "it may be cut short: copy it again"
            ) from error


def load_model(
    folder: str | os.PathLike,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> VLA:
    """Build the model a folder describes and fill it, one tensor at a time.

    Missing, unexpected and misshapen tensors are named; nothing is filled in silently.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint folder {folder}", "check the path")
    config = load_config(folder)
    with torch.device("meta"):
        model = VLA(config)
    wanted = {k: p.shape for k, p in model.state_dict().items()}
    skipped = {f"vision_backbone.{t.key}.blocks.{t.layers}." for t in config.towers}
    problems: list[str] = []
    for key, tensor, path in iterate_tensors(folder, str(device)):
        if UNUSED.search(key) or any(key.startswith(s) for s in skipped):
            continue
        shape = wanted.pop(key, None)
        if shape is None:
            problems.append(f"{key} is not part of the model ({path.name})")
        elif shape != tensor.shape:
            problems.append(f"{key} is {list(tensor.shape)}, the config says {list(shape)}")
        else:
            _place(model, key, tensor.to(dtype))
    problems += [f"{key} is missing" for key in wanted]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"{folder} does not fit its config.json: {'; '.join(problems[:5])}{more}",
            "the weights and the config must come from one training run",
        )
    return model.eval().requires_grad_(False)


def _place(model: nn.Module, key: str, tensor: torch.Tensor) -> None:
    module, _, name = key.rpartition(".")
    setattr(model.get_submodule(module), name, nn.Parameter(tensor, requires_grad=False))


def load_tokenizer(folder: Path):
    """The folder's tokenizer.json, by the `tokenizers` library."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing", "copy it from the base model's folder")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path} is not a tokenizer ({error})", "copy it again") from error


def save_checkpoint(
    folder: str | os.PathLike,
    config: dict,
    tensors: dict[str, torch.Tensor],
    tokenizer=None,
    statistics: dict | None = None,
) -> Path:
    """Write a self-contained folder; each file appears whole or not at all."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def put(name: str, write) -> None:
        temporary = folder / f".{name}.tmp"
        write(temporary)
        os.replace(temporary, folder / name)

    def save_weights(path: Path) -> None:
        save_file(weights, path, {"format": "pt"})
        os.umask(mask := os.umask(0o022))
        os.chmod(path, 0o666 & ~mask)  # save_file lets nobody else read it

    weights = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    put("model.safetensors", save_weights)
    if tokenizer is not None:
        put("tokenizer.json", lambda p: tokenizer.save(str(p)))
    if statistics is not None:
        put("dataset_statistics.json", lambda p: p.write_text(json.dumps(statistics, indent=2)))
    put("config.json", lambda p: p.write_text(json.dumps(config, indent=2)))
    return folder
