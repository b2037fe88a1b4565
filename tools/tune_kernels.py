#!/usr/bin/env python3
"""Finds the fastest launch settings of the kernels on this chip and writes them down.

    python tools/tune_kernels.py [--kinds dense int8 fp8 int4 coded-int8 coded-int4 small flow]

The shapes are those of openvla-7b; of `flow`, those of SmolVLA and pi0.5. Every candidate is
compiled by worker processes, checked against float64 and timed as a CUDA graph; products over
copies of the weight that together don't fit the cache. `coded` are products of codes that the
kernel ahead made, `small` what stands between the products, and attention (beside the library's).
The winners go to vla_inference/kernels/tuned.json; `coded` kernels are used where they have
entries.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from pathlib import Path

SHAPES = {
    "qkv": (12288, 4096, False),
    "o": (4096, 4096, False),
    "gate_up": (11008, 4096, True),
    "down": (4096, 11008, False),
    "head": (256, 4096, False),
}
COPY_BYTES = 400e6
# Width of a head, heads, positions, whether causal: of both vision encoders, of prefill, of
# OpenVLA-OFT.
TOGETHER = (
    (64, 16, 261, False),
    (72, 16, 256, False),
    (128, 32, 280, True),
    (128, 32, 337, False),
)
KINDS = ["dense", "int8", "fp8", "int4", "coded-int8", "coded-int4", "small", "flow"]
# Of the experts of SmolVLA and pi0.5, 50 rows: outputs, inputs, whether a pair; and those whose
# results a norm follows.
FEW_ROWS = (
    (1600, 720, False),
    (960, 720, False),
    (720, 960, False),
    (2048, 720, True),
    (720, 2048, False),
    (720, 32, False),
    (720, 720, False),
    (32, 720, False),
    (2560, 1024, False),
    (1024, 2048, False),
    (4096, 1024, True),
    (1024, 4096, False),
    (1024, 32, False),
    (32, 1024, False),
)
NORMED = ((720, 960), (720, 2048), (720, 32), (720, 720), (1024, 2048), (1024, 4096), (1024, 32))
# Width of a head, positions that attend, heads of keys, heads of queries to each, slots, `own`.
CACHED = (
    (64, 50, 5, 3, 177, "causal"),
    (64, 50, 5, 3, 177, ""),
    (64, 177, 5, 3, 177, ""),
    (256, 50, 1, 8, 832, "all"),
    (256, 832, 1, 8, 832, ""),
)


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
    parts = {
        "weight": quantised.codes,
        "kind": form.kind,
        "scales": quantised.scales,
        "zeros": quantised.zeros,
        "group": form.group,
    }
    return parts, quantised.dequantize()


def tune(kind: str, shape: str, lock) -> tuple[str, dict | None, list[str]]:
    from dataclasses import asdict

    import torch

    from vla_inference.kernels import gemv, gemv_w4a8
    from vla_inference.kernels.activation_quant import encode

    codes, _, kind = kind.rpartition("-")
    n, k, pair = SHAPES[shape]
    rows = 2 * n if pair else n
    parts, dense = weights(kind, rows, k, 0)
    generator = torch.Generator("cuda").manual_seed(1)
    x = torch.randn(k, generator=generator, device="cuda").bfloat16()
    norm = torch.rand(k, generator=generator, device="cuda") + 0.5
    residual = torch.randn(n, generator=generator, device="cuda").bfloat16()
    normed = shape in ("qkv", "gate_up", "head")

    exact = x.double()
    if normed:
        exact = exact * torch.rsqrt(exact.square().mean() + 1e-5) * norm.double()
    exact = dense.double() @ exact
    if pair:
        exact = torch.nn.functional.silu(exact[:n]) * exact[n:]
    if not normed:
        exact = exact + residual.double()
    del dense

    more = {"pair": pair, "residual": None if normed else residual}
    y = torch.empty(n, dtype=torch.bfloat16, device="cuda")
    if codes:
        name, candidates = gemv_w4a8.coded_key(kind, n, k, pair), gemv_w4a8.coded_launches()
        given = encode(x, kind, norm if normed else None)
        more |= {"normed": normed, "eps": 1e-5, "code": shape != "qkv"}

        def product(weight, launch, **parts):
            gemv_w4a8.gemv_coded(given, k, weight, y, launch=launch, **more, **parts)

    else:
        name, candidates = gemv.key(kind, n, k, pair), gemv.candidates(kind, n, k)
        more |= {"norm": norm, "eps": 1e-5} if normed else {}

        def product(weight, launch, **parts):
            gemv.gemv(x, weight, y, launch=launch, **more, **parts)

    size = sum(p.nbytes for p in parts.values() if isinstance(p, torch.Tensor))
    copies = [parts]
    for _ in range(int(COPY_BYTES // size)):
        copy = {a: b.clone() if isinstance(b, torch.Tensor) else b for a, b in parts.items()}
        copies.append(copy)
    tried, notes = [], []
    for launch in candidates:
        y.fill_(float("nan"))
        try:
            product(launch=launch, **parts)
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

            def all_of_them(launch=launch):
                for c in copies:
                    product(launch=launch, **c)

            timed.append((_graph_time(all_of_them) / len(copies), launch))
    if not timed:
        return name, None, notes
    timed.sort(key=lambda t: t[0])
    best, launch = timed[0]
    others = [(round(t * 1e6, 2), str(c)) for t, c in timed[1:3]]
    print(
        f"{name:28} {best * 1e6:7.2f} us {size / best / 1e9:6.0f} GB/s {launch}; "
        f"{len(timed)} candidates, next {others}",
        flush=True,
    )
    return name, asdict(launch), notes


def tune_few_rows(shape: tuple[int, int, bool], lock) -> tuple[str, dict | None, list[str]]:
    """A product of an expert, with a norm and a bias before it or a residual after it."""
    from functools import partial

    import torch

    from vla_inference.kernels import few_rows

    n, k, pair = shape
    rows = 2 * n if pair else n
    draw = partial(torch.randn, generator=torch.Generator("cuda").manual_seed(0), device="cuda")
    weight = (draw(rows, k) / k**0.5).bfloat16()
    x, norm, residual = draw(50, k).bfloat16(), draw(n), draw(50, n).bfloat16()
    given, more, exact = x, {"residual": residual, "norm": norm}, x.double()
    make = few_rows.few_rows_normed
    if (n, k) not in NORMED:  # it reads what was normed
        squares = exact.square().unflatten(1, (-1, 16)).sum(2).T.float().contiguous()
        given, make = few_rows.Normed(x, x, squares), few_rows.few_rows
        exact = exact * torch.rsqrt(exact.square().mean(1, keepdim=True) + 1e-5)
        more = {"eps": 1e-5, "bias": draw(rows)}
    exact = exact @ weight.double().T + (0 if "residual" in more else more["bias"].double())
    if pair:
        exact = torch.nn.functional.silu(exact[:, :n]) * exact[:, n:]
        more["pair"], more["after"] = True, "silu"
    if "residual" in more:
        exact = exact + residual.double()
    parts = few_rows.Parts(x.device)
    copies = [weight.clone() for _ in range(max(2, int(COPY_BYTES / 4 // weight.nbytes)))]
    return few_rows.key(*shape), *_best(
        few_rows.key(*shape),
        few_rows.candidates(*shape),
        lambda launch, w: rows_of(make(given, w, parts, launch=launch, **more)),
        copies,
        exact,
        lock,
    )


def rows_of(found):
    return getattr(found, "rows", found)


def tune_cached(
    shape: tuple[int, int, int, int, int, str], lock
) -> tuple[str, dict | None, list[str]]:
    """Attention to a cached prefix, 3 slots of which are padding."""
    import torch

    from vla_inference.kernels import cached_attention as cached
    from vla_inference.kernels.few_rows import Parts

    d, m, kv, group, n, own = shape
    heads, generator = kv * group, torch.Generator("cuda").manual_seed(0)
    width = (heads + (2 * kv if own else 0)) * d
    q = torch.randn(m, width, generator=generator, device="cuda").bfloat16()
    cache = torch.randn(2, kv, n, d, generator=generator, device="cuda").bfloat16()
    seen = torch.ones(m, n + (m if own else 0), dtype=torch.bool, device="cuda")
    seen[:, n - 4 : n - 1] = False
    if own == "causal":
        seen[:, n:] = seen[:, n:].tril()
    parts = q.double().unflatten(1, (-1, d)).transpose(0, 1)
    keys, values = cache.double()
    if own:
        keys = torch.cat([keys, parts[heads : heads + kv]], 1)
        values = torch.cat([values, parts[heads + kv :]], 1)
    keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
    scores = (parts[:heads] @ keys.transpose(1, 2) / d**0.5).masked_fill(~seen, float("-inf"))
    exact = (scores.softmax(-1) @ values).transpose(0, 1).flatten(1)
    length = torch.tensor([n - 4], dtype=torch.int32, device="cuda")
    room = Parts(q.device)
    name = cached.key(d, m, group, own)
    return name, *_best(
        name,
        cached.candidates(d, m),
        lambda launch, c: cached.attend_cached(
            q, *c, length, room, heads=heads, resumes=n - 1, own=own, launch=launch
        ),
        [cache.clone() for _ in range(20)],
        exact,
        lock,
    )


def _best(name: str, candidates: list, work, inputs: list, exact, lock) -> tuple:
    """The fastest of the candidates that are right, of work(candidate, input) over all inputs in
    a row, and notes on those that failed."""
    import functools
    from dataclasses import asdict

    import torch

    def all_of_them(launch) -> None:
        for each in inputs:
            work(launch, each)

    tried, notes, timed = [], [], []
    for launch in candidates:
        try:
            found = work(launch, inputs[0])
            torch.cuda.synchronize()
        except Exception as error:  # a launch that the chip can't run is no candidate
            notes.append(f"{launch}: {str(error)[:80]}")
            continue
        error = ((found.double() - exact).norm() / exact.norm()).item()
        if error < 0.02:  # False for NaN
            tried.append(launch)
        else:
            notes.append(f"{launch}: error {error:.2g}")
    with lock:
        for launch in tried:
            spent = _graph_time(functools.partial(all_of_them, launch)) / len(inputs)
            timed.append((spent, launch))
    if not timed:
        return None, notes
    timed.sort(key=lambda t: t[0])
    others = [(round(t * 1e6, 2), str(c)) for t, c in timed[1:3]]
    spent, launch = timed[0]
    print(
        f"{name:28} {spent * 1e6:7.2f} us {launch}; {len(timed)} tried, next {others}", flush=True
    )
    return asdict(launch), notes


def tune_small() -> dict[str, dict]:
    """Of what stands between the products: warps a row, attention's launches."""
    import torch

    from vla_inference.kernels import attention, layers
    from vla_inference.kernels.launch_settings import tuned

    known, entries = tuned(), {}

    def best(name: str, candidates: list[dict], work) -> None:
        times = []
        for entry in candidates:
            known[name] = entry
            try:
                work()
                torch.cuda.synchronize()
                times.append((_graph_time(lambda: [work() for _ in range(50)]) / 50, entry))
            except Exception as error:
                print(f"{name} {entry}: {str(error)[:80]}")
        times.sort(key=lambda t: t[0])
        entries[name] = known[name] = times[0][1]
        print(f"{name:28}", [(round(t * 1e6, 2), *e.values()) for t, e in times], flush=True)

    def rows(k: int) -> torch.Tensor:
        return torch.randn(280, k, device="cuda").bfloat16()

    def product(k: int) -> layers.Product:  # of codes, with their scales
        return layers.Product(rows(k), rows(280)[:, :1].float(), rows(k)[0])

    x, y, wide = rows(4096), product(4096), product(22016)
    gain = torch.rand(4096, device="cuda") + 0.5
    warps = [{"warps": w} for w in (2, 4, 8, 16, 32)]
    key = layers.rows_key
    best(key("rms_norm", 4096), warps, lambda: layers.rms_norm(x, y, gain, 1e-5, "fp8"))
    best(key("gate_mul", 11008), warps, lambda: layers.gate_mul(wide, x.dtype, "fp8"))
    best(key("quantize", 4096), warps, lambda: layers.quantize_rows(x, "fp8"))
    for d in (1024, 1152):
        a, g = rows(d), gain[:d].bfloat16()
        best(key("layer_norm", d), warps, lambda a=a, g=g: layers.layer_norm(a, a, g, g, g, 1e-6))
    best("gelu", [{"block": b} for b in (512, 1024, 2048, 4096)], lambda: layers.gelu_(x))
    heads, d, n = 32, 128, 280
    angles = torch.rand(n + 1, d // 2, device="cuda")
    caches = torch.randn(32, 2, heads, n + 1, d, device="cuda").bfloat16()  # more than L2 holds
    one, rotary = rows(3 * heads * d)[0], (angles.cos(), angles.sin())

    def attend_in_all() -> torch.Tensor:
        attend = attention.Attend(heads, d, n + 1, "cuda")
        return torch.stack([attend(one, rotary, k, v, n, "int4")[0] for k, v in caches])

    name, right, wanted = attention.attend_key(d), [], None
    for launch in attention.attend_launches():
        known[name] = {"launch": list(launch)}
        found = attend_in_all().double()
        wanted = found if wanted is None else wanted  # the first is one program a head
        error = ((found - wanted).norm() / wanted.norm()).item()
        print(f"{name} {launch}: error {error:.2g}")
        right += [known[name]] if error < 0.01 else []
    best(name, right, attend_in_all)
    for d, heads, n, causal in TOGETHER:
        if causal:
            q = rows(heads * d)[:n].view(n, heads, d).transpose(0, 1)
            k, v = torch.randn(2, heads, 400, d, device="cuda").bfloat16()[:, :, :n]
        else:
            whole = torch.randn(n, 3, heads, d, device="cuda").bfloat16()
            q, k, v = whole.permute(1, 2, 0, 3)
        wanted = attention.library_attention(q.double(), k.double(), v.double(), causal)
        found = attention.attention(q, k, v, causal)
        error = ((found - wanted).norm() / wanted.norm()).item()
        print(f"attention {d}: error {error:.2g}")
        launches = [{"launch": list(a)} for a in [(), *attention.attention_launches()]]
        work = lambda q=q, k=k, v=v, c=causal: attention.attention(q, k, v, c)  # noqa: E731
        best(attention.attention_key(d, causal), launches, work)
    return entries


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


def _call(work, *arguments):
    return work(*arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--output", type=Path, help="write the entries here as well")
    args = parser.parse_args()
    from vla_inference.kernels.launch_settings import TUNED, write_tuned

    context = multiprocessing.get_context("spawn")
    begin = time.perf_counter()
    with context.Manager() as manager:
        lock = manager.Lock()
        kinds = [kind for kind in args.kinds if kind not in ("small", "flow")]
        jobs = [(tune, kind, s, lock) for kind in kinds for s in SHAPES]
        jobs = [j for j in jobs if j[1] == "dense" or j[2] != "head"]
        if "flow" in args.kinds:
            jobs += [(tune_cached, shape, lock) for shape in CACHED]
            jobs += [(tune_few_rows, shape, lock) for shape in FEW_ROWS]
        with context.Pool(max(1, min(args.workers, len(jobs))), maxtasksperchild=1) as pool:
            results = pool.starmap(_call, jobs, chunksize=1)
    entries = tune_small() if "small" in args.kinds else {}
    entries |= {name: launch for name, launch, _ in results if launch is not None}
    for name, _, notes in results:
        if notes:
            print(f"{name}: {len(notes)} candidates failed, first: {notes[0]}")
    write_tuned(entries)
    if args.output:
        args.output.write_text(TUNED.read_text())
    print(json.dumps({"tuned": len(entries), "s": round(time.perf_counter() - begin, 1)}))


if __name__ == "__main__":
    main()
