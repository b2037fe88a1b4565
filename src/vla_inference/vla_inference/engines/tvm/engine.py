"""`engine: tvm`: runs a compiled Llama decoder with TVM's runtime alone.

Prefill and decode go through TVM's paged cache. A control step has nothing to take over from the
one before it: a new image comes right after the first token, so each prefill is a whole one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vla_inference.engines.compiled import (
    chip,
    fitting_record,
    host_triple,
    llama_sizes,
    require,
)
from vla_inference.engines.tvm.kernels import read_kernels
from vla_inference.engines.tvm.runtime import (
    PagedCache,
    TvmRunner,
    check_cpu,
    import_runtime,
    linked,
    load_library,
)
from vla_inference.errors import CheckpointError
from vla_inference.openvla.config import ModelConfig
from vla_inference.openvla.llama import rotary


class TvmLanguage(TvmRunner):
    """`Language` on a folder of `vla compile --engine tvm`.

    parameters: the library's, on the device, in the place of those in the folder.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        device: str | torch.device,
        config: ModelConfig,
        checkpoint: str | os.PathLike | None = None,
        parameters: Mapping[str, Tensor] | None = None,
    ):
        folder, device = Path(folder), torch.device(device)
        self.record = record = fitting_record(
            folder,
            "tvm",
            config,
            checkpoint,
            target=chip(device),
            host=host_triple(),
            llm=llama_sizes(config.llm),
            decoding=config.head.decoding,
        )
        kernels = read_kernels(folder, record)
        tvm = import_runtime(device)
        require(folder, record, tvm=tvm.__version__)
        if device.type == "cpu":
            check_cpu(folder)
        library = load_library(tvm, linked(folder / record["library"]), kernels)
        super().__init__(tvm, library, device, config)
        self.dtype = getattr(torch, record["quantization"]["dtype"])
        self._parameters = self._check(parameters or self._read(folder), folder)
        if config.head.decoding != "parallel":
            self._cache = PagedCache(tvm, self.function("create_tir_paged_kv_cache"))
        self._tables: tuple[Tensor, Tensor] | None = None

    def _read(self, folder: Path) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name in self.record["files"]:
            if name.endswith(".safetensors"):
                try:
                    found |= load_file(folder / name, device=str(self.device))
                except (SafetensorError, OSError) as error:
                    raise CheckpointError(
                        f"{folder / name} cannot be read ({error})", "copy it again"
                    ) from None
        return found

    def _check(self, found: Mapping[str, Tensor], folder: Path) -> list:
        """The parameters in the library's order and form."""
        for entry in self.record["parameters"]:
            tensor, dtype = found.get(entry["name"]), getattr(torch, entry["dtype"])
            if tensor is None:
                raise CheckpointError(f"{folder} lacks {entry['name']}", "copy it again")
            if list(tensor.shape) != list(entry["shape"]) or tensor.dtype != dtype:
                raise CheckpointError(
                    f"{folder}: {entry['name']} is {tensor.dtype} {list(tensor.shape)}, the "
                    f"library expects {entry['dtype']} {entry['shape']}",
                    "copy it again",
                )
        return [self.give(found[e["name"]]) for e in self.record["parameters"]]

    # -- Language -----------------------------------------------------------------------------

    def encode(self, embeddings: Tensor, padding: Tensor | None = None) -> Tensor:
        rows, n, _ = embeddings.shape
        lengths = [n] * rows if padding is None else (~padding).sum(1).tolist()
        out = torch.zeros_like(embeddings)
        for i, (row, m) in enumerate(zip(embeddings.to(self.dtype), lengths, strict=True)):
            cos, sin = (self.give(t[:m]) for t in self._turns(m))
            with self.stream():
                given = self.give(row[None, :m])
                hidden = self.call("parallel", given, cos, sin, self._parameters)
            out[i, :m] = torch.from_dlpack(hidden)[0].to(out.dtype)
        return out

    def _turns(self, n: int) -> tuple[Tensor, Tensor]:
        if self._tables is None or len(self._tables[0]) < n:
            positions = torch.arange(max(512, n), device=self.device)
            self._tables = rotary(positions, self.config.llm)
        return self._tables
