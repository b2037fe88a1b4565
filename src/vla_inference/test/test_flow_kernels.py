"""The kernels of the flow-matching policies: against float64, and compiled for an H200.

Triton's interpreter, which runs the gates where there is no GPU, takes programs that its compiler
refuses; that one needs no GPU.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
GATES = Path(__file__).with_name("flow_gates.py")
SHARED = 227 * 1024  # bytes that a program may have on Hopper


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_the_engine_and_its_kernels_agree_with_the_plain_path(which):
    mode = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which, str(GATES)],
        env={**os.environ, **mode, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int) -> Any:
    """A kernel compiled for sm_90. types: of its other arguments; pointers are aligned."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {n: "constexpr" if n in constants else types[n] for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in types if "*" in types[n]},
    )
    options = {"num_warps": warps, "launch_pdl": True}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@pytest.mark.parametrize(
    "n, k, pair, after, norm, head",
    [
        (1600, 720, False, "", True, 64),
        (4096, 1024, True, "gelu_tanh", True, 0),
        (1024, 4096, False, "", False, 0),
    ],
)
def test_products_of_few_rows_compile(n, k, pair, after, norm, head):
    from vla_inference.kernels import few_rows
    from vla_inference.kernels.few_rows import LINE, _few_rows

    launch = few_rows.usual(n, k, pair)
    chunk = math.ceil(math.ceil(k / launch.block_k) / launch.splits) * launch.block_k
    sixteen = dict.fromkeys(("x", "w", "residual", "y", "scaled"), "*bf16")
    floats = "squares bias gain cos sin norm sums"
    types = {**sixteen, **dict.fromkeys([*floats.split(), "parts"], "*fp32"), "arrived": "*i32"}
    constants: dict[str, Any] = {
        "K": k,
        "READ": 64,
        "HALF": head // 2,
        "TURNED": 1280 if head else 0,
        "PAIR": pair,
        "AFTER": after,
        "BLOCK_M": 64,
        "BLOCK_N": launch.block_n,
        "BLOCK_K": launch.block_k,
        "SPLITS": math.ceil(k / chunk),
        "CHUNK": chunk,
        "STAGES": launch.stages,
        "AHEAD": launch.ahead,
        "BYTES": 2,
        "LINES": 1 << (math.ceil(chunk * 2 / LINE) - 1).bit_length(),
        "PDL": True,
    }
    absent = ["norm", "scaled", "sums"] if norm else ["squares", "bias"]
    absent += ["residual", "gain"] if head or pair else []
    absent += [] if head else ["cos", "sin"]
    numbers = {"M": "i32", "N": "i32", "read": "i32", "eps": "fp32"}
    constants |= dict.fromkeys(absent)
    made = compiled(_few_rows, {**types, **numbers}, constants, launch.warps)
    assert "wgmma" in made.asm["ptx"] and made.metadata.shared <= SHARED


@pytest.mark.parametrize(
    "heads, kv, d, rows, own", [(15, 5, 64, 50, "causal"), (8, 1, 256, 50, "all")]
)
def test_attention_to_a_cache_compiles(heads, kv, d, rows, own):
    from vla_inference.kernels import cached_attention
    from vla_inference.kernels.cached_attention import _attend_cached

    launch = cached_attention.usual(d, rows)
    types = {
        **dict.fromkeys(("q", "keys", "values", "out"), "*bf16"),
        **{"length": "*i32", "parts": "*fp32", "arrived": "*i32", "scale": "fp32"},
        **dict.fromkeys(("M", "N", "resumes", "q_row", "k_head", "k_row"), "i32"),
    }
    constants = {
        "HEADS": heads,
        "KV_HEADS": kv,
        "D": d,
        "WIDE": d,
        "OWN": own,
        "LAST": False,
        "ROWS": launch.rows,
        "BLOCK": launch.block,
        "SPLITS": launch.splits,
        "STAGES": launch.stages,
        "PDL": True,
    }
    made = compiled(_attend_cached, types, constants, launch.warps)
    assert "wgmma" in made.asm["ptx"] and made.metadata.shared <= SHARED
