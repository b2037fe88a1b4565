#!/usr/bin/env python3
"""Matrix-product rates of the prefill by library: TFLOP/s on this GPU."""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F

SHAPES = {"qkv": (12288, 4096), "o": (4096, 4096), "gate_up": (22016, 4096), "down": (4096, 11008)}


def main() -> None:
    for m in (280, 288, 337, 344):
        for name, (n, k) in SHAPES.items():
            print(json.dumps({"m": m, "shape": name, **measure(m, n, k)}), flush=True)


def measure(m: int, n: int, k: int) -> dict[str, float]:
    x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    copies = max(2, int(200e6 // (n * k)))
    ws = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
    x8, w8 = x.to(torch.float8_e4m3fn), [w.to(torch.float8_e4m3fn) for w in ws]
    xi, wi = (x * 30).to(torch.int8), [(w * 30).to(torch.int8) for w in ws]
    one = torch.ones((), device="cuda")
    rows, columns = torch.ones(m, 1, device="cuda"), torch.ones(1, n, device="cuda")
    ways = {
        "bf16": lambda i: F.linear(x, ws[i]),
        "fp8 rows": lambda i: torch._scaled_mm(
            x8, w8[i].t(), rows, columns, out_dtype=torch.bfloat16, use_fast_accum=True
        ),
        "fp8": lambda i: torch._scaled_mm(
            x8, w8[i].t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True
        ),
        "fp8 turned": lambda i: torch._scaled_mm(
            w8[i], x8.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True
        ),
        "int8": lambda i: torch._int_mm(xi, wi[i].t()),
        "int8 turned": lambda i: torch._int_mm(wi[i], xi.t()),
    }
    found = {}
    for name, work in ways.items():
        try:
            found[name] = round(2 * m * n * k / timed(work, copies) / 1e12)
        except RuntimeError as error:
            found[name] = str(error)[:60]
    return found


def timed(work, copies: int) -> float:
    work(0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(copies):
            work(i)
    times = []
    for _ in range(7):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / copies)
    return sorted(times)[3]


if __name__ == "__main__":
    main()
