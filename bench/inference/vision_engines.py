#!/usr/bin/env python3
"""Vision engines at full size against PyTorch in float32: error, action tokens, time.

    python bench/inference/vision_engines.py [--engines onnx] [--dtype float16]
        [--observations 200]

Vision encoders and projector have the size of openvla-7b and weights by the rules of the reference
cases (src/vla_inference/test/data/openvla/README.md), the language model its reduced shape. The
first images are those cases'; the others are blurred noise. Needs an NVIDIA GPU for tensorrt.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import torch
from common import add_output, keep

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src/vla_inference/test"))

from test_reference_parity import OPENVLA, prompt_ids, read, reference_weight

from vla_inference.checkpoints.random_weights import byte_tokenizer
from vla_inference.checkpoints.save import save_checkpoint
from vla_inference.engines import make_engine
from vla_inference.engines.vision import onnx
from vla_inference.openvla.config import ModelConfig
from vla_inference.openvla.model import VLA
from vla_inference.openvla.preprocessing import ImagePreprocessor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", default=["onnx"], choices=("onnx", "tensorrt"))
    parser.add_argument("--dtype", default="float16", choices=onnx.DTYPES)
    parser.add_argument("--observations", type=int, default=200)
    add_output(parser)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    raw = read(OPENVLA / "config.json")
    config = ModelConfig.from_json(raw)
    with torch.device("meta"):
        model = VLA(config)
    shapes = {k: list(p.shape) for k, p in model.state_dict().items()}
    state = {k: reference_weight(k, s) for k, s in shapes.items()}
    model.load_state_dict(state, assign=True)
    model.eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        checkpoint = save_checkpoint(Path(scratch) / "model", raw, state, byte_tokenizer())
        begin = time.perf_counter()
        folder = Path(scratch) / "onnx"
        record = onnx.export(checkpoint, folder, dtype=args.dtype)
        report = {
            "device": device,
            "dtype": args.dtype,
            "versions": record["versions"],
            "export_s": round(time.perf_counter() - begin, 1),
            "relative_error_at_export": float(f"{record['relative_error']:.3g}"),
            "graph_mb": round(sum(record["files"].values()) / 1e6, 1),
        }
        model.to(device)
        for name in args.engines:
            where = folder
            if name == "tensorrt":
                from vla_inference.engines.vision import tensorrt

                where = Path(scratch) / "tensorrt"
                begin = time.perf_counter()
                tensorrt.build(folder, where)
                report["build_s"] = round(time.perf_counter() - begin, 1)
            engine = make_engine("plain", model, vision=f"{name}:{where}", checkpoint=checkpoint)
            report[name] = compare(engine, model, args, device)
    keep(report, args.output)


def compare(engine, model: VLA, args: argparse.Namespace, device: str) -> dict:
    cases, rng = read(OPENVLA / "cases.npz"), np.random.default_rng(0)
    preprocess = ImagePreprocessor(model.config)
    errors, same, tokens, right, ours_ms, plain_ms = [], 0, 0, 0, [], []
    for i in range(max(4, args.observations)):
        if i < 4:
            image = cases[f"{i}/image"]
        else:
            cells = int(rng.integers(2, 32))
            small = rng.integers(0, 256, (cells, cells, 3), np.uint8)
            image = small.repeat(-(-256 // cells), 0).repeat(-(-256 // cells), 1)[:256, :256]
        pixels = torch.from_numpy(preprocess([np.ascontiguousarray(image)]))[None].to(device)
        ids = prompt_ids(model.config, cases[f"{i % 4}/input_ids"]).to(device)
        ours, spent = clock(engine.embed_images, pixels)
        theirs, plain = clock(model.embed_images, pixels)
        ours_ms.append(spent)
        plain_ms.append(plain)
        if i < 4:
            errors.append(onnx.relative_error(ours, theirs))
        text = model.embed_tokens(ids)
        a, b = (
            model.generate_tokens(torch.cat([text[:, :1], e, text[:, 1:]], 1))
            for e in (ours, theirs)
        )
        same += bool((a == b).all())
        tokens += a.numel()
        right += int((a == b).sum())
    count = len(ours_ms)
    return {
        "relative_error_on_reference_images": [float(f"{e:.3g}") for e in errors],
        "equal_answers": f"{same} of {count}",
        "equal_tokens": f"{right} of {tokens}",
        "median_ms": round(float(np.median(ours_ms)), 2),
        "pytorch_float32_median_ms": round(float(np.median(plain_ms)), 2),
    }


def clock(function, x: torch.Tensor) -> tuple[torch.Tensor, float]:
    if x.is_cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    y = function(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return y, 1e3 * (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
