"""`engine: tvm`: the Llama by a compiled library, through TVM's runtime alone.

Prefill and decode go through TVM's paged cache. A control step has nothing to take over from the
one before it: a new picture comes right after the first token, so each prefill is a whole one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vla_inference.engines.base import Engine, Vision
from vla_inference.engines.compiled import (
    Tensors,
    chip,
    host_triple,
    language_digest,
    read_record,
    require,
)
from vla_inference.errors import CheckpointError, VlaError
from vla_inference.model import VLA, ModelConfig
from vla_inference.model.llama import rotary

INSTALL = "pip install -r requirements/tvm.txt"
PAGE = 16  # positions in a page of the cache
ALIGNED = 64  # bytes, of every tensor that TVM takes


def import_runtime():
    """TVM, or one clear error; its runtime is enough."""
    try:
        import tvm
        from tvm.runtime import vm  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise VlaError(f"TVM cannot be imported ({error})", INSTALL) from None
    return tvm


def make(
    model: VLA,
    folder: str | os.PathLike = "",
    vision: Vision | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Engine:
    """The engine that runs `folder` in the place of the model's Llama.

    checkpoint: the folder that the model was loaded from, whose weights the library must be of.
    """
    if not folder:
        raise VlaError(
            "engine 'tvm' needs a compiled folder",
            "say tvm:FOLDER; `vla compile --engine tvm` makes one",
        )
    words = model.language_model.model.embed_tokens.weight
    language = TvmLanguage(folder, words.device, model.config, checkpoint)
    engine = Engine(model, vision=vision, language=language)
    engine.name = "tvm"
    return engine


class PagedCache:
    """TVM's paged cache, as large as was needed so far; one generation at a time uses it."""

    def __init__(self, tvm, create):
        from tvm_ffi import Shape

        self._shape, self._create = Shape, create
        self._do = {
            name: tvm.get_global_func(f"vm.builtin.kv_state_{name}")
            for name in ("add_sequence", "remove_sequence", "begin_forward", "end_forward")
        }
        self.sequences = self.positions = self.generation = 0
        self.lengths: list[int] = []
        self.state: Any = None

    def restart(self, sequences: int, positions: int) -> int:
        """Room for so many sequences of so many positions, all empty; which generation it is."""
        if sequences > self.sequences or positions > self.positions:
            self.sequences = max(sequences, self.sequences)
            self.positions = max(512, 1 << (positions - 1).bit_length(), self.positions)
            total = self.sequences * self.positions
            sizes = (self.sequences, total, self.positions, PAGE, 0)
            self.state = self._create(*(self._shape([n]) for n in sizes))
            self.lengths = []
        for i in range(len(self.lengths)):
            self._do["remove_sequence"](self.state, i)
        for i in range(sequences):
            self._do["add_sequence"](self.state, i)
        self.lengths = [0] * sequences
        self.generation += 1
        return self.generation

    def step(self, sequence: int, count: int, run) -> Any:
        """`run(state)` within a forward pass over `count` new positions of a sequence."""
        if self.lengths[sequence] + count > self.positions:
            raise VlaError(
                f"{self.lengths[sequence] + count} positions do not fit the cache's "
                f"{self.positions}",
                "start again by a prefill",
            )
        self._do["begin_forward"](self.state, self._shape([sequence]), self._shape([count]))
        try:
            result = run(self.state)
        finally:
            self._do["end_forward"](self.state)
        self.lengths[sequence] += count
        return result


class TvmLanguage:
    """`Language` by a folder of `vla compile --engine tvm`.

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
        record = read_record(folder, "tvm")
        require(folder, record, target=chip(device), host=host_triple())
        require(folder, record, llm=asdict(config.llm))
        if checkpoint is not None:
            digest = language_digest(Tensors(Path(checkpoint)), config)
            require(folder, record, digest=digest)
        self.tvm = tvm = import_runtime()
        require(folder, record, tvm=tvm.__version__)
        if device.type == "cpu":
            _check_cpu(folder)
        self.record, self.config, self.device = record, config, device
        self.dtype = getattr(torch, record["quantization"]["dtype"])
        self._here = tvm.cuda(device.index or 0) if device.type == "cuda" else tvm.cpu()
        library = _load(tvm, linked(folder / record["library"]))
        self._machine = tvm.runtime.vm.VirtualMachine(library, self._here)
        self._parameters = self._check(parameters or self._read(folder), folder)
        self._cache = PagedCache(tvm, self._machine["create_tir_paged_kv_cache"])
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
        """The parameters in the library's order, each as the library wants it."""
        for entry in self.record["parameters"]:
            tensor, dtype = found.get(entry["name"]), getattr(torch, entry["dtype"])
            if tensor is None:
                raise CheckpointError(f"{folder} lacks {entry['name']}", "copy it again")
            if list(tensor.shape) != list(entry["shape"]) or tensor.dtype != dtype:
                raise CheckpointError(
                    f"{folder}: {entry['name']} is {tensor.dtype} {list(tensor.shape)}, the "
                    f"library wants {entry['dtype']} {entry['shape']}",
                    "copy it again",
                )
        return [self._give(found[e["name"]]) for e in self.record["parameters"]]

    def _give(self, tensor: Tensor):
        tensor = tensor.detach().contiguous()
        if tensor.data_ptr() % ALIGNED:  # within a file that is mapped, or a slice
            tensor = tensor.clone()
        return self.tvm.runtime.from_dlpack(tensor)

    def _call(self, name: str, *arguments):
        if self.device.type != "cuda":
            return self._machine[name](*arguments)
        import tvm_ffi

        with tvm_ffi.use_torch_stream(torch.cuda.current_stream(self.device)):
            return self._machine[name](*arguments)

    # -- Language -----------------------------------------------------------------------------

    def prefill(self, embeddings: Tensor) -> tuple[Tensor, int]:
        rows, n, _ = embeddings.shape
        room = n + self.config.head.action_dim
        generation = self._cache.restart(rows, room)
        return self._forward("prefill", embeddings), generation

    def decode(self, embedding: Tensor, cache: int) -> tuple[Tensor, int]:
        if cache != self._cache.generation:
            raise VlaError("this cache was overwritten by a later prefill", "prefill again")
        return self._forward("decode", embedding), cache

    def _forward(self, function: str, x: Tensor) -> Tensor:
        rows = []
        for i, row in enumerate(x.to(self.dtype)):
            given = self._give(row[None])

            def run(state, given=given):
                return self._call(function, given, state, self._parameters)[0]

            rows.append(torch.from_dlpack(self._cache.step(i, x.shape[1], run))[:, 0])
        return torch.cat(rows).to(x.dtype)

    def encode(self, embeddings: Tensor, padding: Tensor | None = None) -> Tensor:
        rows, n, _ = embeddings.shape
        lengths = [n] * rows if padding is None else (~padding).sum(1).tolist()
        out = torch.zeros_like(embeddings)
        for i, (row, m) in enumerate(zip(embeddings.to(self.dtype), lengths, strict=True)):
            cos, sin = (self._give(t[:m]) for t in self._turns(m))
            hidden = self._call("parallel", self._give(row[None, :m]), cos, sin, self._parameters)
            out[i, :m] = torch.from_dlpack(hidden)[0].to(out.dtype)
        return out

    def _turns(self, n: int) -> tuple[Tensor, Tensor]:
        if self._tables is None or len(self._tables[0]) < n:
            positions = torch.arange(max(512, n), device=self.device)
            self._tables = rotary(positions, self.config.llm)
        return self._tables


# -- loading ----------------------------------------------------------------------------------


def linked(library: Path) -> Path:
    """The shared library; of a *.tar of objects, linked here the first time it is needed."""
    if library.suffix != ".tar":
        return library
    shared = library.with_suffix(".so")
    if shared.is_file() and shared.stat().st_mtime >= library.stat().st_mtime:
        return shared
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise VlaError(f"{library} must be linked, but there is no g++", "apt install g++")
    try:
        with tempfile.TemporaryDirectory() as scratch, tarfile.open(library) as archive:
            names = [m.name for m in archive if m.isfile() and m.name.endswith(".o")]
            if not names or any(Path(n).name != n for n in names):
                raise tarfile.TarError("no objects in it")
            for name in names:
                (Path(scratch) / name).write_bytes(archive.extractfile(name).read())
            made = shared.with_name(f".{shared.name}.{os.getpid()}.tmp")
            command = [compiler, "-shared", "-fPIC", "-o", str(made), *sorted(names)]
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
    except (tarfile.TarError, OSError) as error:
        raise CheckpointError(f"{library} cannot be read ({error})", "copy it again") from None
    if done.returncode:
        made.unlink(missing_ok=True)
        raise VlaError(f"{library} cannot be linked ({done.stderr.strip()[-200:]})")
    made.rename(shared)
    return shared


def _load(tvm, library: Path):
    try:
        return tvm.runtime.load_module(str(library))
    except Exception as error:  # tvm_ffi raises what it likes
        words = " ".join(str(error).split())
        raise CheckpointError(
            f"{library} cannot be loaded ({words[-200:]})",
            "copy it again, or compile it for this machine",
        ) from None


def _check_cpu(folder: Path) -> None:
    """Libraries for x86-64 use AVX2."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return
    if host_triple().startswith("x86_64") and not all(f in flags for f in ("avx2", "fma")):
        raise VlaError(f"{folder} needs a CPU with AVX2, this one has none", "use engine plain")
