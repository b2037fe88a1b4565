#!/usr/bin/env python3
"""LoRA and QLoRA of the 7B shape on one GPU: samples/s, model-FLOPs utilisation, memory.

    python bench/training/finetune.py [--size openvla-7b] [--points lora,rival,memory,qlora]

One JSON line per measurement, as it is made. Weights are random, of the published shape, drawn on
the device. The rival is the original recipe's stack in the same run: transformers' Llama with
peft's LoRA r=32 on all linear layers (vision encoders included), bf16 autocast, logits of the
whole sequence, torch's AdamW; as published (batch 16, not compiled), and at further batches and
compiled, as a careful user would run it. Utilisation counts 4 operations per weight and
token plus 6 per adapter weight (`vla_training.finetune.flops`) over the GPU's dense bf16 peak.
Needs torch and numpy; the rival transformers and peft.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import add_output, keep

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from steps import MODES, Loop, synchronize
from torch import nn

from vla_inference.checkpoints.random_weights import SIZES, STATISTICS, random_config, random_model
from vla_inference.openvla.config import ModelConfig
from vla_inference.openvla.model import VLA
from vla_training.finetune.families.openvla.objective import OpenVLAObjective
from vla_training.finetune.families.openvla.train_modules import prepare
from vla_training.finetune.flops import peak_of, step_flops
from vla_training.loader.batch import Batch
from vla_training.lora.layers import LoraConfig, add_lora, swap

PROMPT = 26  # tokens of the usual prompt with a sentence of eight words


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="openvla-7b" if cuda else "tiny", choices=SIZES)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--points", default="lora,rival,memory,qlora")
    parser.add_argument(
        "--batches",
        default="64,96,80,16,128:0.5" if cuda else "2,4:0.5",
        help="batch sizes, each with the share of layers recomputed after a colon",
    )
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10 if cuda else 2)
    parser.add_argument("--warmup", type=int, default=3 if cuda else 1)
    parser.add_argument("--compile", default="inductor" if cuda else "no", help="or eager, no")
    parser.add_argument("--rival-batches", default="16,32,48" if cuda else "2")
    add_output(parser)
    parser.add_argument("--profile", action="store_true", help="kernels of the first lora point")
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    for point in args.points.split(","):
        POINTS[point](args)
        keep({"size": args.size, "rows": rows}, args.output, show=False)
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()


rows: list[dict] = []  # every line told, for --output


def tell(**values) -> None:
    rows.append(values)
    print(json.dumps(values), flush=True)


def seven_b(args, head: str = "tokens") -> VLA:
    raw = {**random_config(args.size, head), "norm_stats": STATISTICS}
    dtype = torch.bfloat16 if args.device != "cpu" else torch.float32
    return random_model(raw, args.device, dtype)


def random_batch(config: ModelConfig, size: int, device: str, seed: int = 0) -> Batch:
    """Noise of the right shapes; all prompts of one length, as one sentence per task gives."""
    g = torch.Generator(device).manual_seed(seed)
    options = {"device": device, "generator": g}
    head, side = config.head, config.encoders[0].image_size
    shape = (size, head.num_images, side, side, 3)
    return Batch(
        torch.randint(0, 256, shape, dtype=torch.uint8, **options),
        torch.randint(4, 256, (size, PROMPT), **options),
        torch.rand((size, head.chunk, head.action_dim), **options) * 2 - 1,
        torch.ones(size, head.chunk, dtype=torch.bool, device=device),
        proprio=torch.rand((size, head.proprio_dim), **options) if head.proprio_dim else None,
    )


def timed(step, batch, args) -> dict:
    """Median seconds of a step, and the most memory in use."""
    cuda = args.device.startswith("cuda")
    begin = time.perf_counter()
    for _ in range(args.warmup):
        loss = step(batch)
    synchronize(args.device)
    warm = time.perf_counter() - begin
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(args.steps):
        begin = time.perf_counter()
        loss = step(batch)
        synchronize(args.device)
        seconds.append(time.perf_counter() - begin)
    seconds.sort()
    return {
        "step_s": round(seconds[len(seconds) // 2], 4),
        "step_s_worst": round(seconds[-1], 4),
        "warm_up_s": round(warm, 1),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if cuda else None,
        "loss": round(float(loss), 4),
    }


def profile(step, batch, args) -> None:
    """Milliseconds of a step by kernel, the longest first."""
    from torch.profiler import ProfilerActivity

    cuda = args.device.startswith("cuda")
    with torch.profiler.profile(
        activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]
    ) as found:
        step(batch)
        synchronize(args.device)
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = sorted(found.key_averages(), key=lambda e: -getattr(e, key))[:30]
    for e in events:
        tell(point="kernel", ms=round(getattr(e, key) / 1e3, 3), calls=e.count, name=e.key[:90])


def utilisation(args, config, batch: int, adapters: int, step_s: float) -> dict:
    flops = step_flops(config, batch, PROMPT, adapters)
    found = {"samples_per_s": round(batch / step_s, 2), "tflops": round(flops / step_s / 1e12, 1)}
    if args.device.startswith("cuda"):
        peak = peak_of(torch.cuda.get_device_name())
        found["mfu"] = peak and round(flops / step_s / peak, 4)
    return found


# -- ours -------------------------------------------------------------------------------------


def lora(args) -> None:
    model = seven_b(args)
    add_lora(model, LoraConfig(args.rank))
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    loop = Loop(OpenVLAObjective(model))
    MODES[args.compile]  # an unknown name ends here
    tried = [args.compile] if args.compile == "no" else [args.compile, "no"]
    for text in args.batches.split(","):
        size, _, share = text.partition(":")
        size, share = int(size), float(share or 0)
        for mode in tried:
            compiled, backend = MODES[mode]
            prepare(model, compiled, share, backend)
            about = {"point": "lora", "batch": size, "recompute": share, "compile": mode}
            try:
                found = timed(loop.step, random_batch(model.config, size, args.device), args)
            except torch.cuda.OutOfMemoryError:
                tell(**about, out_of_memory=True)
                break
            except Exception as error:  # a compiler's fault must not end the measurement
                tell(**about, failed=f"{type(error).__name__}: {error}"[:600])
                continue
            finally:
                loop.optimizer.zero_grad(set_to_none=True)
                gc.collect()
                if args.device != "cpu":
                    torch.cuda.empty_cache()
            share_of = utilisation(args, model.config, size, adapters, found["step_s"])
            tell(**about, **found, **share_of, adapters=adapters)
            if args.profile:
                profile(loop.step, random_batch(model.config, size, args.device), args)
                args.profile = False
            break
    if args.compile != "no":
        frames = torch._dynamo.utils.counters
        tell(point="lora", graphs=dict(frames["stats"]), breaks=len(frames["graph_break"]))


# -- the original recipe ----------------------------------------------------------------------


class Original(nn.Module):
    """Our vision encoders and projector uncompiled (timm's arithmetic), transformers' Llama."""

    def __init__(self, config: ModelConfig, device: str, dtype: torch.dtype):
        from transformers import LlamaConfig, LlamaForCausalLM

        super().__init__()
        c = config.llm
        with torch.device(device):
            shape = LlamaConfig(
                hidden_size=c.hidden_size,
                intermediate_size=c.intermediate_size,
                num_hidden_layers=c.num_hidden_layers,
                vocab_size=c.vocab_size,
                num_attention_heads=c.num_attention_heads,
                attn_implementation="sdpa",
                num_key_value_heads=c.num_key_value_heads,
                use_cache=False,
            )
            default = torch.get_default_dtype()
            torch.set_default_dtype(dtype)
            self.language_model = LlamaForCausalLM(shape)
            torch.set_default_dtype(default)
        whole = random_model(ModelConfigWithoutLayers.of(config), device, dtype)
        self.vision_backbone, self.projector = whole.vision_backbone, whole.projector

    def forward(self, pixels, ids, labels):
        text = self.language_model.get_input_embeddings()(ids)
        patches = self.projector(self.vision_backbone(pixels))
        context = torch.cat([text[:, :1], patches, text[:, 1:]], dim=1)
        ignored = labels.new_full(patches.shape[:2], -100)
        labels = torch.cat([labels[:, :1], ignored, labels[:, 1:]], dim=1)
        mask = torch.ones(context.shape[:2], dtype=torch.long, device=ids.device)
        return self.language_model(
            inputs_embeds=context, attention_mask=mask, labels=labels, use_cache=False
        )


class ModelConfigWithoutLayers:
    """The same model with a Llama of one layer, used for vision encoders and projector."""

    @staticmethod
    def of(config: ModelConfig) -> ModelConfig:
        import dataclasses

        llm = dataclasses.replace(config.llm, num_hidden_layers=1)
        return dataclasses.replace(config, llm=llm)


def rival(args) -> None:
    try:
        import peft
        import transformers
    except ImportError as error:
        tell(point="rival", failed=str(error))
        return
    config = ModelConfig.from_json(
        {**random_config(args.size, "tokens"), "norm_stats": STATISTICS}, "config"
    )
    cuda = args.device.startswith("cuda")
    dtype = torch.bfloat16 if cuda else torch.float32
    model = Original(config, args.device, dtype)
    names = [
        n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in n
    ]
    model = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=args.rank,
            lora_alpha=min(args.rank, 16),
            lora_dropout=0.0,
            target_modules=names,
            init_lora_weights="gaussian",
        ),
    )
    model.train()
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    versions = {"transformers": transformers.__version__, "peft": peft.__version__}
    batches = [int(size) for size in args.rival_batches.split(",")]
    best: dict[float, int] = {}  # samples/s -> batch, not compiled
    for compiled in (False, True) if args.compile != "no" else (False,):
        if compiled:
            # What a careful user adds to the recipe: each block compiled, at the published batch
            # and at the one that was best without.
            torch._dynamo.config.recompile_limit = 64  # else it runs plain after eight kinds
            for block in blocks(model):
                block.compile(backend=args.compile, dynamic=False)
            batches = sorted({batches[0], best[max(best)]}) if best else []
        for size in batches:
            about = {"point": "rival", "batch": size, "compile": compiled, **versions}
            try:
                found = timed(rival_step(model, optimizer, config, size, args), None, args)
            except torch.cuda.OutOfMemoryError:
                tell(**about, out_of_memory=True)
                break
            except Exception as error:  # a compiler's fault must not end the measurement
                tell(**about, failed=f"{type(error).__name__}: {error}"[:600])
                break
            finally:
                optimizer.zero_grad()
                gc.collect()
                if cuda:
                    torch.cuda.empty_cache()
            share = utilisation(args, config, size, adapters, found["step_s"])
            best[share["samples_per_s"]] = size
            tell(**about, **found, **share, adapters=adapters)
            keep({"size": args.size, "rows": rows}, args.output, show=False)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of the language model and of both vision encoders."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    return [block for found in lists for block in found]


def rival_step(model, optimizer, config: ModelConfig, size: int, args):
    """A step of the original recipe on `size` samples that lie on the device."""
    cuda = args.device.startswith("cuda")
    dtype = torch.bfloat16 if cuda else torch.float32
    ours = random_batch(config, size, args.device)
    side = config.encoders[0].image_size
    channels = 3 * len(config.encoders)
    pixels = torch.randn(size, channels, side, side, device=args.device).to(dtype)
    end = config.action_vocab_end
    answer = torch.randint(end - 256, end, (size, config.head.action_dim), device=args.device)
    stop = torch.full((size, 1), config.stop_token_id, device=args.device)
    ids = torch.cat([ours.ids, answer, stop], dim=1)
    labels = torch.cat([torch.full_like(ours.ids, -100), answer, stop], dim=1)
    patches = config.num_patches

    def step(_):
        with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=cuda):
            out = model(pixels, ids, labels)
            loss = out.loss
        loss.backward()
        # As the original does at each step: token accuracy, read back to the host.
        best = out.logits[:, patches:-1].argmax(-1)
        wanted = labels[:, 1:]
        mask = wanted > config.action_vocab_end - 257
        ((best == wanted) & mask).sum().float().div(mask.sum()).item()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


# -- how little memory it takes ---------------------------------------------------------------


def memory(args) -> None:
    """LoRA at small batches, everything recomputed: what a 64 GB machine must hold."""
    model = seven_b(args)
    add_lora(model, LoraConfig(args.rank))
    prepare(model, False, 1.0)
    loop = Loop(OpenVLAObjective(model))
    for size in (1, 8, 16):
        found = timed(loop.step, random_batch(model.config, size, args.device), args)
        tell(point="lora-memory", batch=size, recompute=1.0, **found)


class Packed(nn.Module):
    """4-bit weights in groups of 64 along the input, symmetric; unpacked by `dequantize`."""

    GROUP = 64

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        group = next(g for g in (self.GROUP, 32, 16, 8, 2) if self.in_features % g == 0)
        w = weight.float().view(self.out_features, -1, group)
        scale = (w.abs().amax(-1, keepdim=True) / 7).clamp(min=1e-8)
        q = ((w / scale).round().clamp(-8, 7) + 8).to(torch.uint8).view(self.out_features, -1)
        self.register_buffer("packed", q[:, 0::2] | (q[:, 1::2] << 4))
        self.register_buffer("scale", scale.squeeze(-1).to(weight.dtype))
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def dequantize(self) -> torch.Tensor:
        low, high = (self.packed & 15).to(torch.int8) - 8, (self.packed >> 4).to(torch.int8) - 8
        q = torch.stack([low, high], -1).view(self.out_features, self.scale.shape[1], -1)
        return (q * self.scale[..., None]).view(self.out_features, self.in_features)


def qlora(args) -> None:
    """The Llama's linear layers in 4 bits, adapters on top."""
    model = seven_b(args)
    for name, module in list(model.language_model.model.layers.named_modules()):
        if isinstance(module, nn.Linear):
            swap(model.language_model.model.layers, name, Packed(module.weight, module.bias))
    gc.collect()
    if args.device != "cpu":
        torch.cuda.empty_cache()
    config = LoraConfig(args.rank)
    names = add_lora(model, config)
    packed = sum(isinstance(model.get_submodule(n).base, Packed) for n in names)
    prepare(model, False, 1.0)
    loop = Loop(OpenVLAObjective(model))
    held = torch.cuda.memory_allocated() / 1e9 if args.device != "cpu" else 0.0
    for size in (1, 4, 8):
        found = timed(loop.step, random_batch(model.config, size, args.device), args)
        adapters = sum(p.numel() for p in loop.trained)
        share = utilisation(args, model.config, size, adapters, found["step_s"])
        tell(
            point="qlora",
            batch=size,
            recompute=1.0,
            packed_layers=packed,
            at_rest_gb=round(held, 2),
            **found,
            **share,
        )


POINTS = {"lora": lora, "rival": rival, "memory": memory, "qlora": qlora}

if __name__ == "__main__":
    main()
