"""Checks that a merged checkpoint answers as base plus adapter does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_inference.checkpoints.load import load_model, load_tokenizer
from vla_inference.errors import CheckpointError
from vla_inference.openvla.model import VLA
from vla_inference.openvla.preprocessing import ImagePreprocessor, PromptTokenizer
from vla_training.finetune.families.openvla.model_setup import load_with_adapter

# The merged weight is rounded once more, to the base's dtype: what it may change of the answers.
TOLERANCE = {torch.float32: 0.02, torch.bfloat16: 0.1, torch.float16: 0.05}
TEXT = "put the red block on the green one"


def verify_merge(
    base: Path,
    adapter: Path,
    merged: Path,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    count: int = 4,
) -> dict[str, Any]:
    """Compares outputs on noise images, with one model in memory at a time.

    Returns {"answers", "equal", "difference"}: how many answers there were, how many are equal to
    the last token (L1: to 1e-3), and the relative difference of the outputs. Raises
    CheckpointError where that is more than rounding.
    """
    wanted, tokens = _outputs(load_with_adapter(base, adapter, device, dtype), base, count)
    given, others = _outputs(load_model(merged, device, dtype), merged, count)
    difference = float((given - wanted).norm() / wanted.norm())
    equal = sum(_equal(a, b) for a, b in zip(tokens, others, strict=True))
    found = {"answers": count, "equal": equal, "difference": difference}
    if not difference <= TOLERANCE[dtype]:
        raise CheckpointError(
            f"{merged} answers otherwise than {base} with {adapter} (relative difference "
            f"{difference:.2g})",
            "keep the adapter, and report this",
        )
    return found


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-3) if a.is_floating_point() else torch.equal(a, b)


@torch.inference_mode()
def _outputs(model: VLA, folder: Path, count: int) -> tuple[Tensor, Tensor]:
    """Logits or chunks float32 [count, ...], and what follows from them."""
    c, head = model.config, model.config.head
    preprocess = ImagePreprocessor(c)
    prompt = PromptTokenizer(c, load_tokenizer(folder))
    rng = np.random.default_rng(0)
    weight = model.language_model.output
    size = c.encoders[0].image_size
    values, answers = [], []
    for _ in range(count):
        cells = rng.integers(0, 256, (head.num_images, 16, 16, 3), np.uint8)
        images = [x.repeat(-(-size // 16), 0).repeat(-(-size // 16), 1) for x in cells]
        pixels = torch.from_numpy(preprocess(images))[None].to(weight)
        ids = torch.tensor([prompt(TEXT)], device=weight.device)
        state = torch.from_numpy(rng.uniform(-1, 1, (1, head.proprio_dim))).to(weight)
        context = model.context(ids, pixels, state if head.proprio_dim else None)
        if head.type == "l1":
            value = model.predict_chunk(context)
            answer = value.float()
        elif head.decoding == "parallel":
            value = model.action_logits(model.action_hidden(context))
            answer = value.argmax(-1)
        else:
            value = model.prefill(context)[0]
            answer = model.generate_tokens(context)
        values.append(value.float().cpu())
        answers.append(answer.cpu())
    return torch.stack(values), torch.stack(answers)
