"""Checkpoint folders with the weights of the reference cases (see data/*/README.md)."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

DATA = Path(__file__).resolve().parents[1] / "src" / "vla_inference" / "test" / "data"


def random_numbers(key: str, shape: list[int], seed: int = 0) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(zlib.crc32(f"{seed}/{key}".encode())))
    return generator.standard_normal(int(np.prod(shape)), dtype=np.float32).reshape(shape)


def write_checkpoint(
    folder: Path, family: str, weight: Callable[[str, np.ndarray], np.ndarray], bos: bool = False
) -> Path:
    """A family's reference as LeRobot saves it, with a tokenizer of one id a byte."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (DATA / family).iterdir():
        if path.name not in ("cases.npz", "README.md", "state_dict_shapes.json"):
            shutil.copy(path, folder)
    shapes = json.loads((DATA / family / "state_dict_shapes.json").read_text())
    weights = {k: weight(k, random_numbers(k, s)).astype(np.float32) for k, s in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    write_byte_tokenizer(folder / "tokenizer.json", bos)
    return folder


def smolvla_weight(key: str, x: np.ndarray) -> np.ndarray:
    """The weights of SmolVLA's reference (data/smolvla/README.md)."""
    if key.endswith(".bias"):
        return 0.02 * x
    if x.ndim == 1:
        return 1 + 0.1 * x
    if "position_embedding" in key:
        return 0.2 * x
    if "embed_tokens" in key or "lm_head" in key:
        return 0.1 * x
    fan = np.sqrt(np.prod(x.shape[1:]))
    return (0.1 if "connector." in key else 1.0) * x / fan


def pi_weight(key: str, x: np.ndarray) -> np.ndarray:
    """The weights of the references of pi0 and pi0.5 (data/pi05/README.md)."""
    if key.endswith(".bias"):
        return 0.02 * x
    if x.ndim == 1:
        return 0.1 * x + ("vision_tower" in key)
    if "position_embedding" in key:
        return 0.2 * x
    if "embed_tokens" in key or "lm_head" in key:
        return 0.1 * x
    return x / np.sqrt(np.prod(x.shape[1:]))


def act_weight(key: str, x: np.ndarray) -> np.ndarray:
    """The weights of ACT's reference (data/act/README.md)."""
    if key == "model.vae_encoder_pos_enc":
        return sines(*x.shape[1:])[None]
    if key.endswith(".running_var"):
        return 1 + 0.1 * abs(x)
    if key.endswith((".running_mean", "bias")):
        return 0.02 * x
    if x.ndim == 1:
        return 1 + 0.1 * x
    if key.endswith("_embed.weight"):
        return x
    fan = np.sqrt(np.prod(x.shape[1:]))
    if key.endswith("img_feat_input_proj.weight"):
        return 0.2 * x / fan
    if x.ndim == 4:
        return x * np.sqrt(2) / fan
    if key.endswith("in_proj_weight"):
        return 2 * x / fan
    return (0.3 if key.endswith("latent_output_proj.weight") else 1.0) * x / fan


def sines(positions: int, width: int) -> np.ndarray:
    """A table [positions, width] as transformers have it."""
    j = np.arange(width)
    angles = np.arange(positions)[:, None] / 10000 ** (2 * (j // 2) / width)
    return np.where(j % 2 == 0, np.sin(angles), np.cos(angles))


def write_small_smolvla(folder: Path, chunk: int = 4) -> Path:
    """SmolVLA's reference with images of 64 pixels and short chunks: quick to train."""
    write_checkpoint(folder, "smolvla", smolvla_weight)
    changes = {
        "config.json": {
            "chunk_size": chunk,
            "n_action_steps": chunk,
            "num_steps": 4,
            "resize_imgs_with_padding": [64, 64],
        },
        "vlm_config.json": {},
    }
    for name, change in changes.items():
        raw = json.loads((folder / name).read_text()) | change
        if name == "vlm_config.json":
            raw["vision_config"]["image_size"] = 64
        (folder / name).write_text(json.dumps(raw))
    weights = load_file(folder / "model.safetensors")
    key = next(k for k in weights if "position_embedding" in k)
    weights[key] = weights[key][: (64 // 16) ** 2].copy()
    save_file(weights, folder / "model.safetensors")
    return folder


def write_byte_tokenizer(path: Path, bos: bool = False) -> None:
    """One id a byte: byte + 3. bos: <bos> is 2 and <pad> 0, as in PaliGemma."""
    characters = byte_characters()
    vocabulary = {characters[b]: b + 3 for b in range(256)}
    others = {"<bos>": 2, "<pad>": 0} if bos else {"<bos>": 0, "<pad>": 2}
    tokenizer = Tokenizer(models.BPE({**vocabulary, **others, "<eos>": 1}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))


def byte_characters() -> dict[int, str]:
    """How byte-level tokenizers write each byte, after GPT-2."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {
        **{b: chr(b) for b in plain},
        **{b: chr(256 + i) for i, b in enumerate(others)},
    }


def error_of(ours, theirs) -> float:
    """Norm of the difference over the norm of the reference."""
    theirs = np.asarray(theirs, np.float64)
    return float(np.linalg.norm(np.asarray(ours, np.float64) - theirs) / np.linalg.norm(theirs))
