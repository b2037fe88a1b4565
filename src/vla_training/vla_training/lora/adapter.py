"""Reads and writes LoRA adapters in peft's layout, and merges them into a checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_inference.checkpoints.load import load_config, load_tokenizer, no_answer_needs
from vla_inference.checkpoints.openvla_compat import component_files, load_component
from vla_inference.checkpoints.safetensors_io import (
    DTYPES,
    canonical,
    inventory,
    iterate_tensors,
    read_json,
)
from vla_inference.checkpoints.save import save_checkpoint, save_tensors
from vla_inference.errors import CheckpointError
from vla_inference.openvla.config import ModelConfig
from vla_inference.openvla.model import VLA
from vla_inference.system.files import Staged
from vla_training.lora.layers import WHOLE, LoraConfig, adapters
from vla_training.lora.peft_adapter import (
    ANOTHER_BASE,
    BASE,
    CONFIG,
    OURS,
    PREFIX,
    WEIGHTS,
    Adapter,
    base_digest,
)

BESIDE = ("preprocessor_config.json",)  # files of a model that do not depend on its weights


def save_adapter(
    folder: Path,
    model: VLA,
    config: LoraConfig,
    base: str,
    model_json: Mapping[str, Any],
    statistics: Mapping[str, Any],
) -> Path:
    """Writes adapter and whole heads to `folder` atomically."""
    names = [n for n, _ in adapters(model)]
    whole = [n for n in WHOLE if hasattr(model, n)]
    about = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha_used,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "target_modules": names,
        "modules_to_save": whole or None,
    }
    files = {
        CONFIG: about,
        OURS: dict(model_json),
        "dataset_statistics.json": dict(statistics),
        BASE: {"name": base, "digest": base_digest(Path(base))},
    }
    with Staged(folder) as staged:
        save_tensors(staged / WEIGHTS, adapter_state(model))
        for name, content in files.items():
            (staged / name).write_text(json.dumps(content, indent=2))
    return folder


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Tensors under peft's names."""
    state = {}
    for name, module in adapters(model):
        state[f"{PREFIX}{name}.lora_A.weight"] = module.lora_A.detach().cpu().contiguous()
        state[f"{PREFIX}{name}.lora_B.weight"] = module.lora_B.detach().cpu().contiguous()
    for name, parameter in model.named_parameters():
        if name.startswith(WHOLE):
            state[PREFIX + name] = parameter.detach().cpu().contiguous()
    return state


def merge(
    base: Path,
    adapter: Path,
    output: Path,
    progress: Callable[[int, int], None] | None = None,
    check: Callable[[Path], None] | None = None,
) -> Path:
    """Writes base plus adapter as a plain checkpoint, one tensor at a time.

    Sums are taken in float32 and rounded to the base's dtype once. What does not fit is named
    before anything is written.

    check: called with the complete folder before it takes its place; where that raises, as
        after any other failure, nothing is left behind.
    """
    given = Adapter(adapter)
    if load_config(base).quantization:
        raise CheckpointError(
            f"{base} is quantised, no adapter can be merged into it",
            "give the checkpoint that it was made from",
        )
    raw = given.config_on(base)
    plan = _Plan(base, given, ModelConfig.from_json(raw, str(base)))
    given.check_base(base)
    statistics = given.statistics
    if statistics is None and (base / "dataset_statistics.json").is_file():
        statistics = read_json(base / "dataset_statistics.json")
    with Staged(output) as staged:
        save_checkpoint(
            staged,
            raw,
            plan.announced,
            load_tokenizer(base),
            statistics,
            stream=plan.tensors(),
            shard_bytes=5_000_000_000,
            progress=progress,
        )
        for name in BESIDE:
            if (base / name).is_file():
                shutil.copyfile(base / name, staged / name)
        if check is not None:
            check(staged)
    return output


class _Plan:
    """The tensors of a merged checkpoint, in order.

    announced: shapes and dtypes by name, on "meta". Raises CheckpointError where the adapter does
    not fit the base, or the two together not `config`.
    """

    def __init__(self, base: Path, adapter: Adapter, config: ModelConfig):
        self._files = inventory(base)
        self._parts = [
            (f"{part}.{key}", value)
            for part, path in component_files(base).items()
            for key, value in load_component(path).items()
        ]
        unused = no_answer_needs(config)
        with torch.device("meta"):
            wanted = {k: list(p.shape) for k, p in VLA(config).state_dict().items()}
        # Heads are the adapter's own where it brings any, and left where the model has none.
        brought = {n: v for n, v in adapter.change.values.items() if n.startswith(WHOLE)}
        there = {
            canonical(key): entry for _, header in self._files for key, entry in header.items()
        }
        shapes = {n: list(entry["shape"]) for n, entry in there.items()}
        shapes |= {n: list(v.shape) for n, v in self._parts}
        self._kept = {
            n for n in shapes if n not in brought and not (n.startswith(WHOLE) and n not in wanted)
        }
        self._change = adapter.change.fit(
            {n: shapes[n] for n in self._kept}, unused, new=brought.__contains__
        )
        usual = DTYPES[next(iter(there.values()))["dtype"]]
        self._heads = {n: v.to(usual) for n, v in brought.items()}
        self.announced = {
            n: _empty(shapes[n], DTYPES[there[n]["dtype"]]) for n in self._in_files()
        }
        self.announced |= {n: _empty(v.shape, v.dtype) for n, v in self._parts if n in self._kept}
        self.announced |= {n: _empty(v.shape, v.dtype) for n, v in self._heads.items()}
        have = {n: list(t.shape) for n, t in self.announced.items() if not unused(n)}
        odd = sorted(n for n in {**have, **wanted} if have.get(n) != wanted.get(n))
        if odd:
            raise CheckpointError(
                f"{base} with {adapter.folder} is not a model that could be loaded: {odd[0]} is "
                f"{have.get(odd[0], 'missing')}, the config says {wanted.get(odd[0], 'none')}",
                ANOTHER_BASE,
            )

    def _in_files(self) -> Iterator[str]:
        """In the order of `iterate_tensors`."""
        for _, header in self._files:
            for key, _ in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                if canonical(key) in self._kept:
                    yield canonical(key)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The merged tensors, in the announced order."""
        for path, header in self._files:
            for key, value in iterate_tensors(path, header):
                name = canonical(key)
                if name in self._kept:
                    yield name, self._change.merged(name, value)
        for name, value in self._parts:
            if name in self._kept:
                yield name, self._change.merged(name, value)
        yield from self._heads.items()


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")
