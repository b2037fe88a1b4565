"""Builds a TVM library of the decoder: cache, schedules, target. Needs TVM's compiler, no GPU."""

from __future__ import annotations

import os
import platform
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, s_tir, tirx
from tvm.relax.backend.cpu_generic import pipeline as cpu
from tvm.relax.backend.cuda import pipeline as cuda
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn.llm.kv_cache import RopeMode, TIRPagedKVCache
from tvm.s_tir import dlight as dl
from tvm.support import nvcc

from vla_inference.errors import VlaError
from vla_inference.openvla.config import LlamaConfig

CREATE_CACHE = "create_tir_paged_kv_cache"
CACHE_SIZES = (
    "max_batch_size",
    "max_total_seq_len",
    "prefill_chunk_size",
    "page_size",
    "support_sliding_window",
)


def make_target(name: str, host: str | None = None) -> tvm.target.Target:
    """ "llvm" or "cuda:sm_NN"; host: a triple such as aarch64-linux-gnu, None for this machine."""
    here = {"kind": "llvm"}
    if host:
        here["mtriple"] = host
    elif platform.machine() == "x86_64":
        here["mcpu"] = "x86-64-v3"
    if name == "llvm":
        return tvm.target.Target(here)
    return tvm.target.Target(
        {
            "kind": "cuda",
            "arch": name.removeprefix("cuda:"),
            # What TVM would else ask the driver of a card that isn't here.
            "max_threads_per_block": 1024,
            "max_shared_memory_per_block": 49152,
            "thread_warp_size": 32,
            "registers_per_block": 65536,
            "host": here,
        }
    )


def add_cache(
    mod: tvm.IRModule, c: LlamaConfig, dtype: str, target: tvm.target.Target
) -> tvm.IRModule:
    """Adds the function that creates the paged cache; its arguments are CACHE_SIZES."""
    with target:
        return _with_cache(mod, c, dtype, target)


def _with_cache(
    mod: tvm.IRModule, c: LlamaConfig, dtype: str, target: tvm.target.Target
) -> tvm.IRModule:
    builder = relax.BlockBuilder(mod)
    sizes = {name: tirx.Var(name, "int64") for name in CACHE_SIZES}
    parameters = [relax.Var(f"{n}_", relax.ShapeType([v])) for n, v in sizes.items()]
    with builder.function(CREATE_CACHE, params=parameters):
        cache = TIRPagedKVCache(
            attn_kind="mha",
            **sizes,
            layer_partition=relax.ShapeExpr([0, c.num_hidden_layers]),
            num_hidden_layers=c.num_hidden_layers,
            num_attention_heads=c.num_attention_heads,
            num_key_value_heads=c.num_key_value_heads,
            qk_head_dim=c.head_dim,
            v_head_dim=c.head_dim,
            mla_original_qk_head_dim=0,
            mla_original_v_head_dim=0,
            rope_mode=RopeMode.NORMAL,
            rope_scale=1,
            rope_theta=c.rope_theta,
            rope_scaling={},
            rope_ext_factors=relax.prim_value(0),
            rotary_dim=c.head_dim,
            enable_disaggregation=False,
            dtype=dtype,
            target=target,
        )
        builder.emit_func_output(cache._expr)
    return builder.finalize()


Parameters = dict[str, tuple[tuple[int, ...], str]]  # name -> shape, dtype; in the library's order


def lower(
    model: nn.Module, spec: dict[str, Any], target: tvm.target.Target
) -> tuple[tvm.IRModule, Parameters]:
    """The functions of `spec`, not yet compiled."""
    described = nn.spec.ModuleSpec.from_raw(spec, model)
    mod, parameters, _ = model.export_tvm(spec=described, allow_extern=True)
    return mod, {n: (tuple(int(s) for s in p.shape), str(p.dtype)) for n, p in parameters}


def finish(
    mod: tvm.IRModule, target: tvm.target.Target, library: Path, linker: str | None = None
) -> dict[str, bytes]:
    """Compile into `library`: *.so, linked by a C++ compiler for the host; or *.tar of objects.

    Returns the kernels that the library holds as CUDA source: source -> fatbin for the target.
    """
    link = tvm.support.cc.cross_compiler(linker) if linker else None
    with target, _source_alone(), tvm.transform.PassContext(opt_level=3):
        built = tvm.compile(mod, target=target, relax_pipeline=_pipeline(target))
        built.export_library(str(library), fcompile=link)
        kernels = {source: _fatbin(source) for source in _sources(built.mod)}
    written = _contents(library)
    if not all(any(source.encode() in part for part in written) for source in kernels):
        raise VlaError("TVM wrote other CUDA source than it showed", "report it")
    return kernels


def _contents(library: Path) -> list[bytes]:
    if library.suffix != ".tar":
        return [library.read_bytes()]
    with tarfile.open(library) as archive:
        files = map(archive.extractfile, archive)
        return [file.read() for file in files if file is not None]


@contextmanager
def _source_alone() -> Iterator[None]:
    """Keeps kernels as source everywhere; with CUDA's driver TVM would compile them itself."""
    name = "TVM_COMPILE_FORCE_FALLBACK"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _sources(module) -> Iterator[str]:
    """CUDA source of a module and of its imports."""
    if module.kind == "cuda":
        yield str(module.inspect_source("cuda"))
    for imported in module.imports:
        yield from _sources(imported)


def _fatbin(source: str) -> bytes:
    """By nvcc, which needs no driver, with TVM's flags for the current target. Of these
    --use_fast_math shortens exp, division and roots, but leaves sums and products in float32."""
    try:
        return bytes(nvcc.compile_cuda(source, target_format="fatbin", compiler="nvcc"))
    except RuntimeError as error:  # the whole source, then what nvcc said
        raise VlaError(
            f"nvcc cannot compile the kernels ({' '.join(str(error)[-400:].split())})",
            "use the nvcc of CUDA 13, with a g++ that it takes",
        ) from None


def _pipeline(target: tvm.target.Target):
    """TVM's own passes, with schedules added for CPUs, which it lacks."""
    if target.kind.name == "cuda":
        return cuda.get_default_pipeline(target)

    @tvm.transform.module_pass(opt_level=0)
    def passes(mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        with target:
            return tvm.transform.Sequential(
                cpu.library_dispatch_passes(target)
                + cpu.legalize_passes(target)
                + [dl.ApplyDefaultSchedule(CpuProduct())]
                + cpu.dataflow_lower_passes(target)
                + cpu.finalize_passes(target)
            )(mod)

    return passes


class CpuProduct(dl.base.ScheduleRule):
    """A matrix product whose innermost loop runs along the output, where memory is contiguous:
    LLVM vectorises that one, but never a sum (it may not change the order of additions)."""

    def apply(self, func, target, _):
        if not isinstance(func, tirx.PrimFunc) or target.kind.name != "llvm":
            return None
        schedule = s_tir.Schedule(func)
        try:
            blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
        except Exception:  # no block to begin at; tvm_ffi raises what it likes
            return None
        reductions = [
            b
            for b in blocks
            if any(i.iter_type == tirx.IterVar.CommReduce for i in schedule.get(b).iter_vars)
        ]
        if len(reductions) != 1:
            return None
        block = reductions[0]
        reduced, spatial = [], []
        iterators = schedule.get(block).iter_vars
        for loop, i in zip(schedule.get_loops(block), iterators, strict=True):
            (reduced if i.iter_type == tirx.IterVar.CommReduce else spatial).append(loop)
        if len(reduced) != 1 or len(spatial) != 3:
            return None
        schedule.reorder(*spatial[:2], reduced[0], spatial[2])
        schedule.parallel(schedule.fuse(*spatial[:2]))
        schedule.decompose_reduction(block, reduced[0])
        return schedule
