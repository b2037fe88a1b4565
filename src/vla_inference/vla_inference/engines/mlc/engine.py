"""`engine: mlc`: runs a folder compiled by mlc_llm, with TVM's runtime alone.

The folder holds one library (*.so) and the weights as a tensor cache (tensor-cache.json and
params_shard_*.bin). Of the library's functions `prefill`, `decode`, a cache's creator and
`_metadata` are called. Its `prefill` and `decode` answer with logits of the whole vocabulary, so
these stand where other engines have hidden states. Words come from the checkpoint's embeddings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_inference.checkpoints.safetensors_io import read_json
from vla_inference.engines.base import Engine
from vla_inference.engines.compiled import RECORD, chip, fitting_record, host_triple
from vla_inference.engines.tvm.runtime import PagedCache, TvmRunner, import_runtime, load_library
from vla_inference.errors import CheckpointError, VlaError
from vla_inference.openvla.config import ModelConfig

CACHE = "tensor-cache.json"
OLD_CACHE = "ndarray-cache.json"
CREATORS = ("create_tir_paged_kv_cache", "create_flashinfer_paged_kv_cache")
AGAIN = "make it again by mlc_llm"


class MlcEngine(Engine):
    """The engine on a library of mlc_llm; `hidden` is logits here: [..., vocabulary]."""

    def action_logits(self, hidden: Tensor) -> Tensor:
        end = self.config.action_vocab_end
        return hidden[..., end - self.config.n_action_bins : end]

    def all_logits(self, hidden: Tensor) -> Tensor:
        return hidden


class MlcLanguage(TvmRunner):
    """`Language` whose states are logits."""

    def __init__(
        self,
        folder: str | os.PathLike,
        device: str | torch.device,
        config: ModelConfig,
        checkpoint: str | os.PathLike | None = None,
    ):
        if config.head.decoding == "parallel":
            raise VlaError(
                "a library of mlc_llm decodes one token after the other, this model all at once",
                "use engine tvm",
            )
        folder = Path(folder)
        library = _library(folder)
        tvm = import_runtime(device)
        if (folder / RECORD).is_file():  # made by `vla compile`, which keeps a record
            here = {"target": chip(device), "host": host_triple(), "tvm": tvm.__version__}
            fitting_record(folder, "mlc", config, checkpoint, **here)
        super().__init__(tvm, load_library(tvm, library), device, config)
        self.metadata = self._metadata(library)
        # What the names q4f16_1, q0f32 say after the weights
        wide = "f32" in self.metadata.get("quantization", "")
        self.dtype = torch.float32 if wide else torch.float16
        self._check(library)
        self._parameters = self._load(folder)
        creator = next((c for c in CREATORS if self.function(c)), None)
        if creator is None or not (self.function("prefill") and self.function("decode")):
            raise CheckpointError(
                f"{library} has no prefill, decode or paged cache", "is it a Llama of mlc_llm?"
            )
        self._cache = PagedCache(tvm, self.function(creator), self.metadata["prefill_chunk_size"])

    def _metadata(self, library: Path) -> dict[str, Any]:
        told = self.function("_metadata")
        try:
            found = json.loads(str(told()))
            found["kv_cache"], found["params"], found["prefill_chunk_size"]
        except (TypeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{library} says nothing of itself by _metadata ({error!r})", AGAIN
            ) from None
        return found

    def _check(self, library: Path) -> None:
        """Refuses a library of another shape or one that is split into several pieces."""
        llm, told = self.config.llm, self.metadata["kv_cache"]
        wanted = {
            "num_hidden_layers": llm.num_hidden_layers,
            "num_attention_heads": llm.num_attention_heads,
            "num_key_value_heads": llm.num_key_value_heads,
            "head_dim": llm.head_dim,
        }
        for key, value in wanted.items():
            if told.get(key) != value:
                raise CheckpointError(
                    f"{library} has {key} {told.get(key)}, the model {value}",
                    "compile this model's language model",
                )
        for key in ("tensor_parallel_shards", "pipeline_parallel_stages"):
            if self.metadata.get(key, 1) != 1:
                raise CheckpointError(f"{library} has {key} {self.metadata[key]}", "compile for 1")
        if self.metadata.get("sliding_window_size", -1) > 0:
            raise CheckpointError(f"{library} sees a sliding window", "compile it without one")

    def _load(self, folder: Path):
        """Loads the library's parameters from the tensor cache."""
        have = cache_entries(folder)
        names = []
        for entry in self.metadata["params"]:
            found = have.get(entry["name"])
            wanted = (list(entry["shape"]), entry["dtype"])
            if found is None:
                raise CheckpointError(f"{folder} lacks {entry['name']}", AGAIN)
            # A vocabulary may be symbolic in the library: -1.
            same = len(found[0]) == len(wanted[0]) and all(
                a == b or b == -1 for a, b in zip(found[0], wanted[0], strict=True)
            )
            if not same or found[1] != wanted[1]:
                raise CheckpointError(
                    f"{folder}: {entry['name']} is {found[1]} {found[0]}, the library expects "
                    f"{wanted[1]} {wanted[0]}",
                    AGAIN,
                )
            names.append(entry["name"])
        do = self.tvm.get_global_func
        here = self._here
        do("vm.builtin.tensor_cache.load")(str(folder), here.dlpack_device_type(), here.index)
        try:
            return do("vm.builtin.param_array_from_cache_by_name")(names)
        finally:
            do("vm.builtin.tensor_cache.clear")()

    # -- Language -----------------------------------------------------------------------------

    def encode(self, embeddings: Tensor, padding: Tensor | None = None) -> Tensor:
        raise VlaError("a library of mlc_llm cannot look at all positions", "use engine tvm")


def _library(folder: Path) -> Path:
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}", "give one made by mlc_llm")
    found = sorted(folder.glob("*.so"))
    if len(found) != 1:
        names = ", ".join(f.name for f in found) or "none"
        raise CheckpointError(
            f"{folder} must hold one library (*.so), it has {names}",
            "write it there by `mlc_llm compile ... -o FOLDER/lib.so`",
        )
    return found[0]


def cache_entries(folder: Path) -> Mapping[str, tuple[list[int], str]]:
    """Name -> shape, dtype of a tensor cache whose shards are whole."""
    path = folder / CACHE
    if not path.is_file() and (folder / OLD_CACHE).is_file():
        raise CheckpointError(f"{folder} has the {OLD_CACHE} of an older mlc_llm", AGAIN)
    found: dict[str, tuple[list[int], str]] = {}
    try:
        for shard in read_json(path)["records"]:
            file = folder / shard["dataPath"]
            size = file.stat().st_size if file.is_file() else None
            if size != shard["nbytes"]:
                have = "is missing" if size is None else f"has {size} bytes"
                raise CheckpointError(
                    f"{file} {have} instead of {shard['nbytes']}", "copy the folder again"
                )
            for r in shard["records"]:
                found[r["name"]] = ([int(n) for n in r["shape"]], r["dtype"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r})", AGAIN) from None
    return found
