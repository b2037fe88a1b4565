"""Measured peak rates of a device, and the shortest possible time of a step at those rates."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.quantization import QuantLinear, get_format


def ceilings(device: str) -> dict[str, float]:
    """Peak rates of this device: bytes/s of a copy (read plus written), FLOP/s by type.

    "bf16 for long" is the product after two seconds of it: what the chip's power allows. The floor
    takes the others.
    """
    if device == "cpu":
        return {}
    a = torch.empty(4 * 2**30, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    found = {"copy": 2 * a.numel() / timed(lambda: b.copy_(a))}
    m = 8192
    x, y = (torch.randn(m, m, device=device, dtype=torch.bfloat16) for _ in range(2))
    found["bf16"] = 2 * m**3 / timed(lambda: x @ y)
    if torch.cuda.get_device_capability() >= (8, 9):
        x8, y8 = x.to(torch.float8_e4m3fn), y.to(torch.float8_e4m3fn).t().contiguous().t()
        one = torch.ones((), device=device)
        found["fp8"] = (
            2 * m**3 / timed(lambda: torch._scaled_mm(x8, y8, one, one, out_dtype=torch.bfloat16))
        )
    xi = torch.randint(-9, 9, (m, m), device=device, dtype=torch.int8)
    found["int8"] = 2 * m**3 / timed(lambda: torch._int_mm(xi, xi.t()))
    for _ in range(int(2 * found["bf16"] / (2 * m**3))):
        x @ y
    found["bf16 for long"] = 2 * m**3 / timed(lambda: x @ y)
    return found


def timed(work, repeats: int = 10) -> float:
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return float(np.median(times))


def work_of(policy: OpenVLAPolicy, positions: int) -> dict[str, float]:
    """FLOPs of one pass over `positions`, and the number of weights it reads."""
    model = policy.model
    layers = sum(
        m.in_features * m.out_features
        for m in model.language_model.model.modules()
        if isinstance(m, (nn.Linear, QuantLinear))
    )
    patches = policy.config.encoders[0].num_patches * policy.config.head.num_images
    vision = sum(
        p.numel() for n, p in model.named_parameters() if n.startswith(("vision", "projector"))
    )
    return {
        "llama_weights": layers,
        "vision_weights": vision,
        "llama_flops": 2.0 * layers * positions,
        "vision_flops": 2.0 * vision * patches,
    }


def floor_ms(
    policy: OpenVLAPolicy, positions: int, quantisation: str, rates: dict[str, float]
) -> float:
    """Shortest possible time: arithmetic of the prefill (vision included) plus weight bytes of
    the decode passes."""
    w = work_of(policy, positions)
    kind, bits = "bf16", 16.0
    if quantisation:
        form = get_format(quantisation)
        kind = {"int8": "int8", "fp8": "fp8"}.get(form.activations, "fp8")
        bits = form.bits + (32 / form.group if form.group and not form.symmetric else 0)
    rate = max(rates[kind], rates["bf16"])
    seconds = w["llama_flops"] / rate + w["vision_flops"] / rates["bf16"]
    if policy.config.head.decoding == "autoregressive":
        passes = policy.config.head.num_tokens - 1
        seconds += passes * w["llama_weights"] * bits / 8 / (rates["copy"])
    return 1e3 * seconds
