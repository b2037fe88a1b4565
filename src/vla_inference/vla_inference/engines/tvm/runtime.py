"""TVM's runtime: loads libraries and their functions, and holds the paged KV cache."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from vla_inference.engines.compiled import host_triple
from vla_inference.engines.tvm.kernels import provide, refused
from vla_inference.errors import CheckpointError, VlaError
from vla_inference.openvla.config import ModelConfig
from vla_inference.system.files import Staged

INSTALL = "pip install -r requirements/tvm.txt"
PAGE = 16  # positions in a page of the cache
ALIGNED = 64  # bytes, of every tensor that TVM takes


SIDECARS = ("tvm_runtime_cuda", "tvm_runtime_extra")


def import_runtime(device: str | torch.device = "cpu"):
    """Imports TVM able to run on `device` (its runtime is enough), or raises one clear error."""
    try:
        import tvm
        from tvm.runtime import vm  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise VlaError(f"TVM cannot be imported ({error})", INSTALL) from None
    failed = _load_sidecars(tvm)
    cuda = torch.device(device).type == "cuda"
    if cuda and tvm.get_global_func("device_api.cuda", allow_missing=True) is None:
        why = failed.get(
            "tvm_runtime_cuda", "there is no libtvm_runtime_cuda.so beside its runtime"
        )
        raise VlaError(
            f"TVM's CUDA runtime cannot be loaded ({why})",
            "put the library that is missing on LD_LIBRARY_PATH (libcudart.so.13: pip install "
            "nvidia-cuda-runtime; libcuda.so.1 is the driver's), or build TVM for this CUDA",
        )
    return tvm


def _load_sidecars(tvm) -> dict[str, str]:
    """Loads the libraries beside TVM's runtime, which it skips without its compiler.

    Returns what kept any of them from being loaded. An older TVM, all in one library, has none.
    """
    loaded = getattr(tvm.base, "_LOADED_LIBS", {})
    if "tvm_runtime" not in loaded:
        return {}
    from tvm_ffi.libinfo import load_lib_ctypes

    folder, failed = Path(loaded["tvm_runtime"]._name).resolve().parent, {}
    for name in SIDECARS:
        if name in loaded or not (folder / f"lib{name}.so").is_file():
            continue
        try:
            loaded[name] = load_lib_ctypes("tvm", name, "RTLD_LOCAL", extra_lib_paths=[folder])
        except (OSError, RuntimeError) as error:  # the one for CUDA, without a driver
            failed[name] = str(error)
    return failed


class PagedCache:
    """TVM's paged cache, which grows as needed; one generation uses it at a time."""

    def __init__(self, tvm, create, most: int | None = None):
        """create: the library's function; most: positions that a prefill may have."""
        from tvm_ffi import Shape

        self._shape, self._create, self._most = Shape, create, most
        self._do = {
            name: tvm.get_global_func(f"vm.builtin.kv_state_{name}")
            for name in ("add_sequence", "remove_sequence", "begin_forward", "end_forward")
        }
        self.sequences = self.positions = self.generation = 0
        self.lengths: list[int] = []
        self.state: Any = None

    def restart(self, sequences: int, positions: int) -> int:
        """Makes room for this many sequences of this many positions, all empty; returns the
        generation."""
        if self._most and positions > self._most:
            raise VlaError(
                f"{positions} positions are more than the library's {self._most}",
                "shorten the instruction, or compile with a longer context",
            )
        if sequences > self.sequences or positions > self.positions:
            self.sequences = max(sequences, self.sequences)
            self.positions = max(512, 1 << (positions - 1).bit_length(), self.positions)
            self.positions = min(self.positions, self._most or self.positions)
            total = self.sequences * self.positions
            sizes = (self.sequences, total, self.positions, PAGE, 0)
            self.state = self._create(*(self._shape((n,)) for n in sizes))
            self.lengths = []
        for i in range(len(self.lengths)):
            self._do["remove_sequence"](self.state, i)
        for i in range(sequences):
            self._do["add_sequence"](self.state, i)
        self.lengths = [0] * sequences
        self.generation += 1
        return self.generation

    def check(self, generation: int) -> None:
        if generation != self.generation:
            raise VlaError("this cache was overwritten by a later prefill", "prefill again")

    def step(self, sequence: int, count: int, run) -> Any:
        """Runs `run(state)` in a forward pass over `count` new positions of a sequence."""
        if self.lengths[sequence] + count > self.positions:
            raise VlaError(
                f"{self.lengths[sequence] + count} positions do not fit the cache's "
                f"{self.positions}",
                "start again by a prefill",
            )
        self._do["begin_forward"](self.state, self._shape((sequence,)), self._shape((count,)))
        try:
            result = run(self.state)
        finally:
            self._do["end_forward"](self.state)
        self.lengths[sequence] += count
        return result


class TvmRunner:
    """A library's functions, called with PyTorch tensors on PyTorch's stream."""

    dtype: torch.dtype  # of the embeddings
    _parameters: Any
    _cache: PagedCache

    def __init__(self, tvm, library, device: str | torch.device, config: ModelConfig):
        self.tvm, self.config, self.device = tvm, config, torch.device(device)
        cuda = self.device.type == "cuda"
        self._here = tvm.cuda(self.device.index or 0) if cuda else tvm.cpu()
        self._machine = tvm.runtime.vm.VirtualMachine(library, self._here)
        if not cuda:  # TVM's threads wait by spinning: not more of them than PyTorch's
            tvm.get_global_func("runtime.config_threadpool")(1, torch.get_num_threads())

    def function(self, name: str):
        """The library's function, or None."""
        try:
            return self._machine[name]
        except (AttributeError, KeyError, ValueError):
            return None

    def give(self, tensor: Tensor):
        """Passes a tensor to TVM, without a copy if it is aligned."""
        tensor = tensor.detach().contiguous()
        if tensor.data_ptr() % ALIGNED:  # within a file that is mapped, or a slice
            tensor = tensor.clone()
        return self.tvm.runtime.from_dlpack(tensor)

    def stream(self):
        """A context in which TVM and its cache work on PyTorch's current stream."""
        if self.device.type != "cuda":
            return contextlib.nullcontext()
        import tvm_ffi

        stream = torch.cuda.current_stream(self.device)
        return tvm_ffi.use_raw_stream(self._here, stream.cuda_stream)

    def call(self, name: str, *arguments):
        return self._machine[name](*arguments)

    def forward(self, function: str, x: Tensor) -> Tensor:
        """`prefill` or `decode` of each row on its own sequence: [B, n, H] -> [B, width]"""
        rows = []
        for i, row in enumerate(x.to(self.dtype)):
            given = self.give(row[None])

            def run(state, given=given):
                return self.call(function, given, state, self._parameters)[0]

            rows.append(torch.from_dlpack(self._cache.step(i, x.shape[1], run))[:, 0])
        return torch.cat(rows).to(x.dtype)

    # -- of `Language`, through the cache -----------------------------------------------------

    def prefill(self, embeddings: Tensor) -> tuple[Tensor, int]:
        rows, n, _ = embeddings.shape
        with self.stream():
            generation = self._cache.restart(rows, n + self.config.head.num_tokens)
            return self.forward("prefill", embeddings), generation

    def decode(self, embedding: Tensor, cache: int) -> tuple[Tensor, int]:
        self._cache.check(cache)
        with self.stream():
            return self.forward("decode", embedding), cache


# -- loading ----------------------------------------------------------------------------------


def linked(library: Path) -> Path:
    """The shared library; a *.tar of objects is linked at first use."""
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
                with cast("IO[bytes]", archive.extractfile(name)) as member:  # a file: see above
                    (Path(scratch) / name).write_bytes(member.read())
            with Staged(shared) as made:
                command = [compiler, "-shared", "-fPIC", "-o", str(made), *sorted(names)]
                done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
                if done.returncode:
                    told = done.stderr.strip()[-200:]
                    raise VlaError(f"{library} cannot be linked ({told})")
    except (tarfile.TarError, OSError) as error:
        raise CheckpointError(f"{library} cannot be read ({error})", "copy it again") from None
    return shared


def load_library(tvm, library: Path, kernels: Mapping[str, bytes] | None = None):
    """kernels: machine code of its CUDA source, from `read_kernels`."""
    provide(tvm, kernels or {})
    try:
        return tvm.runtime.load_module(str(library))
    except Exception as error:  # tvm_ffi raises what it likes
        without = refused()
        if without is not None:
            raise CheckpointError(f"{library}: {without.problem}", without.remedy) from None
        words = " ".join(str(error).split())
        raise CheckpointError(
            f"{library} cannot be loaded ({words[-200:]})",
            "copy it again, or compile it for this machine",
        ) from None


def check_cpu(folder: Path) -> None:
    """Checks for AVX2, which libraries for x86-64 use."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return
    if host_triple().startswith("x86_64") and not all(f in flags for f in ("avx2", "fma")):
        raise VlaError(f"{folder} needs a CPU with AVX2, this one has none", "use engine plain")
