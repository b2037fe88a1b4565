"""Reads the residual VQ-VAE of MiniVLA's chunks from the folder vq/ beside a run's config.json.

As published (Stanford-ILIAD/pretrain_vq): config.json with `VqVae`'s arguments, and
checkpoints/model.pt with the state of its encoder, decoder and quantiser. The quantiser is
vector_quantize_pytorch's `ResidualVQ`, whose codebooks are layers.N._codebook.embed [1, codes,
latent].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vla_inference.checkpoints.prismatic.weights import read_pt
from vla_inference.checkpoints.safetensors_io import read_json
from vla_inference.errors import CheckpointError

PREFIX = "action_codec."
CODEBOOK = re.compile(r"layers\.(\d+)\._codebook\.embed")
BESIDE = re.compile(r"layers\.\d+\._codebook\.(initted|cluster_size|embed_avg|embed_sum)")
NUMBERS = ("input_dim_h", "input_dim_w", "n_latent_dims", "vqvae_n_embed", "vqvae_groups")


class Codec(NamedTuple):
    """head: the fields of `action_head` that follow; codes: entries of a codebook."""

    head: dict[str, Any]
    codes: int


def codec_folder(folder: Path) -> Path:
    """Where the VQ-VAE's config.json is: vq/, or the one folder in it."""
    found = [p.parent for p in sorted((folder / "vq").rglob("config.json"))]
    if len(found) == 1:
        return found[0]
    there = ", ".join(p.name for p in found) or "nothing"
    raise CheckpointError(
        f"the action tokens of {folder} are codes of a VQ-VAE, and in {folder}/vq is {there}",
        f"copy the one that it was trained with there (Stanford-ILIAD/pretrain_vq has LIBERO's): "
        f"{folder}/vq/config.json and {folder}/vq/checkpoints/model.pt",
    )


def codec_config(where: Path) -> Codec:
    """What the head is, from the VQ-VAE's config.json and the widths in its weights."""
    path = where / "config.json"
    given = read_json(path)
    for key in NUMBERS:
        value = given.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{path}: {key} is {value!r:.60}", "copy it again")
    steps, dim, latent, codes, groups = (int(given[key]) for key in NUMBERS)
    decoder = _state(where)["decoder"]
    inner = sorted(k for k in decoder if re.fullmatch(r"encoder\.\d+\.weight", k))
    if not inner:
        raise CheckpointError(f"{where} has no decoder's layers", "copy it again")
    codec = {
        "groups": groups,
        "codes": codes,
        "latent": latent,
        "hidden": len(decoder[inner[0]]),
        "layers": len(inner) - 1,
        "scale": float(given.get("act_scale", 1.0)),
    }
    head = {"type": "vq", "chunk": steps, "action_dim": dim, "codec": codec}
    return Codec(head, codes)


def codec_weights(where: Path) -> dict[str, Tensor]:
    """The tensors of `ActionCodec`, named as in the model, float32."""
    state, path = _state(where), where / "checkpoints" / "model.pt"
    books: dict[int, Tensor] = {}
    for key, tensor in state["vq_embedding"].items():
        found = CODEBOOK.fullmatch(key)
        if found:
            books[int(found[1])] = tensor
        elif not BESIDE.fullmatch(key):
            raise CheckpointError(
                f"{path} has vq_embedding.{key}, which a plain residual quantiser lacks",
                "give the VQ-VAE that MiniVLA was published with",
            )
    if sorted(books) != list(range(len(books))) or any(
        b.ndim != 3 or b.shape != books[0].shape or len(b) != 1 for b in books.values()
    ):
        raise CheckpointError(f"{path} lacks codebooks", "copy it again")
    weights = {"codebooks": torch.cat([books[i] for i in range(len(books))])}
    for part in ("encoder", "decoder"):
        weights |= {f"{part}.{key}": tensor for key, tensor in state[part].items()}
    return {PREFIX + key: tensor.float() for key, tensor in weights.items()}


def _state(where: Path) -> Mapping[str, Mapping[str, Tensor]]:
    path = where / "checkpoints" / "model.pt"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing", "copy the whole folder of the VQ-VAE")
    state = read_pt(path)
    parts = ("encoder", "decoder", "vq_embedding")
    if not isinstance(state, Mapping) or not all(
        isinstance(state.get(p), Mapping)
        and state[p]
        and all(isinstance(t, Tensor) for t in state[p].values())
        for p in parts
    ):
        raise CheckpointError(f"{path} has no {', '.join(parts)}", "copy it again")
    return state
