#!/usr/bin/env python3
"""Find the fastest launches of the matrix-times-vector kernel on this chip; write them down.

    python bench/tune_kernels.py [--kinds dense int8 fp8 int4] [--workers 8]

The shapes are those of Llama-2-7B. Every candidate is compiled by worker processes, checked
against float64 and timed as a CUDA graph over copies of the weight that together don't fit the
cache. The winners go to vla_inference/kernels/tuned.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src" / "vla_inference"))

SHAPES = {
    "qkv": (12288, 4096, False), "o": (4096, 4096, False), "gate_up": (11008, 4096, True),
    "down": (4096, 11008, False), "head": (256, 4096, False),
}  # fmt: skip
COPY_BYTES = 400e6


def weights(kind: str, n: int, k: int, seed: int):
    """Random weights in a kind's own form, and the same in float32."""
    import torch

    from vla_inference.quantization import get_format
    from vla_inference.quantization.rounding import quantize_linear

    generator = torch.Generator("cuda").manual_seed(seed)
    layer = torch.nn.Linear(k, n, bias=False, device="cuda")
    layer.weight.data = torch.randn(n, k, generator=generator, device="cuda") / k**0.5
    if kind == "dense":
        layer.weight.data = layer.weight.data.bfloat16()
        return {"weight": layer.weight.data}, layer.weight.data
    quantised = quantize_linear(layer, get_format({"int4": "int4-g128"}.get(kind, kind)), "rtn")
    quantised.interleave_()
    form = quantised.format
    parts = {"weight": quantised.codes, "kind": form.kind, "scales": quantised.scales,
             "zeros": quantised.zeros, "group": form.group}  # fmt: skip
    return parts, quantised.dequantize()


def tune(kind: str, shape: str, lock) -> tuple[str, dict | None, list[str]]:
    from dataclasses import asdict

    import torch

    from vla_inference.kernels.gemv import candidates, gemv, key

    n, k, pair = SHAPES[shape]
    rows = 2 * n if pair else n
    parts, dense = weights(kind, rows, k, 0)
    generator = torch.Generator("cuda").manual_seed(1)
    x = torch.randn(k, generator=generator, device="cuda").bfloat16()
    norm = torch.rand(k, generator=generator, device="cuda") + 0.5
    residual = torch.randn(n, generator=generator, device="cuda").bfloat16()
    normed = shape in ("qkv", "gate_up", "head")
    more = {"norm": norm, "eps": 1e-5} if normed else {"residual": residual}

    exact = x.double()
    if normed:
        exact = exact * torch.rsqrt(exact.square().mean() + 1e-5) * norm.double()
    exact = dense.double() @ exact
    if pair:
        exact = torch.nn.functional.silu(exact[:n]) * exact[n:]
    if not normed:
        exact = exact + residual.double()
    del dense

    size = sum(p.nbytes for p in parts.values() if isinstance(p, torch.Tensor))
    copies = [parts]
    for _ in range(int(COPY_BYTES // size)):
        copy = {a: b.clone() if isinstance(b, torch.Tensor) else b for a, b in parts.items()}
        copies.append(copy)
    tried, notes = [], []
    for launch in candidates(kind, n, k):
        y = torch.full((n,), float("nan"), dtype=torch.bfloat16, device="cuda")
        try:
            gemv(x, parts["weight"], y, pair=pair, launch=launch, **more,
                 **{a: b for a, b in parts.items() if a != "weight"})  # fmt: skip
            torch.cuda.synchronize()
        except Exception as error:  # a launch that the chip can't run is no candidate
            notes.append(f"{launch}: {str(error)[:80]}")
            continue
        error = ((y.double() - exact).norm() / exact.norm()).item()
        if not error < 0.02:
            notes.append(f"{launch}: error {error:.2g}")
            continue
        tried.append(launch)
    timed = []
    with lock:
        for launch in tried:
            timed.append((_time(x, copies, n, pair, launch, more), launch))
    if not timed:
        return key(kind, n, k, pair), None, notes
    timed.sort(key=lambda t: t[0])
    best, launch = timed[0]
    others = [(round(t * 1e6, 2), str(c)[7:-1]) for t, c in timed[1:3]]
    print(
        f"{kind:6} {shape:8} {best * 1e6:7.2f} us {size / best / 1e9:6.0f} GB/s {launch}; "
        f"{len(timed)} candidates, next {others}",
        flush=True,
    )
    return key(kind, n, k, pair), asdict(launch), notes


def _time(x, copies, n, pair, launch, more) -> float:
    import torch

    from vla_inference.kernels.gemv import gemv

    y = torch.empty(n, dtype=torch.bfloat16, device="cuda")

    def all_of_them():
        for c in copies:
            gemv(x, c["weight"], y, pair=pair, launch=launch, **more,
                 **{a: b for a, b in c.items() if a != "weight"})  # fmt: skip

    return _graph_time(all_of_them) / len(copies)


def _graph_time(work) -> float:
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    times = []
    for _ in range(7):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return sorted(times)[len(times) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=["dense", "int8", "fp8", "int4"])
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--output", type=Path, help="write the entries here as well")
    args = parser.parse_args()
    from vla_inference.kernels.launching import TUNED, write_tuned

    context = multiprocessing.get_context("spawn")
    begin = time.perf_counter()
    with context.Manager() as manager:
        lock = manager.Lock()
        jobs = [(kind, shape, lock) for kind in args.kinds for shape in SHAPES]
        jobs = [j for j in jobs if j[0] == "dense" or j[1] != "head"]
        with context.Pool(min(args.workers, len(jobs)), maxtasksperchild=1) as pool:
            results = pool.starmap(tune, jobs, chunksize=1)
    entries = {name: launch for name, launch, _ in results if launch is not None}
    for name, _, notes in results:
        if notes:
            print(f"{name}: {len(notes)} candidates failed, first: {notes[0]}")
    write_tuned(entries)
    if args.output:
        args.output.write_text(TUNED.read_text())
    print(json.dumps({"tuned": len(entries), "s": round(time.perf_counter() - begin, 1)}))


if __name__ == "__main__":
    main()
