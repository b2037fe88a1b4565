"""LoRA adapters on disk, as peft writes and reads them, and merged into a plain checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from vla_inference.checkpoint import load_tokenizer
from vla_inference.engines.compiled import Tensors
from vla_inference.errors import CheckpointError
from vla_inference.files import Staged
from vla_inference.model import VLA
from vla_inference.published import OVERRIDES, checkpoint_name, complete, load_component, override
from vla_inference.published import component_files as published_parts
from vla_inference.saving import save_checkpoint, save_tensors
from vla_inference.tensor_files import DTYPES, canonical, inventory, iterate_tensors, read_json
from vla_training.lora import WHOLE, LoraConfig, adapters, add_lora

CONFIG, WEIGHTS, OURS = "adapter_config.json", "adapter_model.safetensors", "vla_config.json"
BASE = "vla_base.json"  # which weights it was trained beside
PREFIX = "base_model.model."
BESIDE = ("preprocessor_config.json",)  # files that belong to a model whatever its weights


def raw_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json, completed from the files beside it as `load_config` does."""
    raw = read_json(folder / "config.json")
    if (folder / OVERRIDES).is_file():
        raw = override(raw, read_json(folder / OVERRIDES), str(folder / OVERRIDES))
    return complete(folder, raw, checkpoint_name(folder))


def save_adapter(
    folder: Path,
    model: VLA,
    config: LoraConfig,
    base: str,
    model_json: Mapping[str, Any],
    statistics: Mapping[str, Any],
) -> Path:
    """Write adapter and whole heads; `folder` appears complete, or the old one stays."""
    names = [n for n, _ in adapters(model)]
    whole = [n for n in WHOLE if hasattr(model, n)]
    about = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base,
        "r": config.rank, "lora_alpha": config.alpha_used, "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
        "target_modules": names, "modules_to_save": whole or None,
    }  # fmt: skip
    files = {CONFIG: about, OURS: dict(model_json), "dataset_statistics.json": dict(statistics),
             BASE: {"name": base, "digest": base_digest(Path(base))}}  # fmt: skip
    with Staged(folder) as staged:
        save_tensors(staged / WEIGHTS, adapter_state(model))
        for name, content in files.items():
            (staged / name).write_text(json.dumps(content, indent=2))
    return folder


def base_digest(folder: Path) -> str:
    """Of the names, shapes and a sample of every tensor: tells two models of one shape apart."""
    return Tensors(folder).digest(("",), None)


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Tensors by peft's names."""
    state = {}
    for name, module in adapters(model):
        state[f"{PREFIX}{name}.lora_A.weight"] = module.lora_A.detach().cpu().contiguous()
        state[f"{PREFIX}{name}.lora_B.weight"] = module.lora_B.detach().cpu().contiguous()
    for name, parameter in model.named_parameters():
        if name.startswith(WHOLE):
            state[PREFIX + name] = parameter.detach().cpu().contiguous()
    return state


class Adapter:
    """An adapter folder: `config`, low-rank tensors by layer, whole tensors by name."""

    def __init__(self, folder: Path):
        self.folder = folder
        about = read_json(folder / CONFIG)
        self.base = about.get("base_model_name_or_path") or ""
        unread = {"bias": ("none",), "fan_in_fan_out": (False, None), "use_rslora": (False, None),
                  "use_dora": (False, None), "peft_type": ("LORA",)}  # fmt: skip
        for key, plain in unread.items():
            if about.get(key, plain[0]) not in plain:
                raise CheckpointError(
                    f"{folder / CONFIG} has {key} {about[key]!r}", "only plain LoRA is read"
                )
        for key in ("rank_pattern", "alpha_pattern"):
            if about.get(key):
                raise CheckpointError(f"{folder / CONFIG} has a {key}", "only one rank is read")
        try:
            self.config = LoraConfig(int(about["r"]), float(about["lora_alpha"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder / CONFIG} has no r and lora_alpha ({error})", "give a LoRA adapter"
            ) from error
        self.low: dict[str, dict[str, Tensor]] = {}
        self.whole: dict[str, Tensor] = {}
        for key, tensor in self._read():
            name = key.removeprefix(PREFIX).replace(".modules_to_save.default", "")
            for part in ("lora_A", "lora_B"):
                if f".{part}." in name:
                    layer = canonical(name.split(f".{part}.")[0] + ".weight")
                    self.low.setdefault(layer.removesuffix(".weight"), {})[part] = tensor
                    break
            else:
                self.whole[name] = tensor
        odd = [n for n, p in self.low.items() if len(p) != 2]
        if odd or not self.low:
            raise CheckpointError(
                f"{folder / WEIGHTS} has no pair of lora_A and lora_B for {odd or 'any layer'}",
                "copy it again",
            )

    def _read(self) -> Iterator[tuple[str, Tensor]]:
        path = self.folder / WEIGHTS
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118
                    yield key, file.get_tensor(key)
        except Exception as error:  # the library raises its own and bare ones
            raise CheckpointError(f"{path} cannot be read ({error})", "copy it again") from error

    @property
    def model_json(self) -> dict[str, Any] | None:
        """The config of the merged model, where our own training wrote the adapter."""
        path = self.folder / OURS
        return read_json(path) if path.is_file() else None

    @property
    def statistics(self) -> dict[str, Any] | None:
        path = self.folder / "dataset_statistics.json"
        return read_json(path) if path.is_file() else None

    def check_base(self, folder: Path) -> None:
        """Where our own training wrote the adapter: that these are the weights it belongs to.

        Another model of the same shape would take it without a word, and answer nonsense.
        """
        path = self.folder / BASE
        if not path.is_file():
            return
        known = read_json(path)
        if known.get("digest") != base_digest(folder):
            raise CheckpointError(
                f"{self.folder} was trained on other weights than {folder} has, on those of "
                f"{known.get('name')}",
                "give the base it was trained on",
            )

    def delta(self, layer: str) -> Tensor | None:
        """float32 [out, in], or None where the layer has no adapter."""
        pair = self.low.get(layer)
        if pair is None:
            return None
        return self.config.scale * (pair["lora_B"].float() @ pair["lora_A"].float())

    def apply(self, model: VLA) -> None:
        """Put the adapter onto its base, unmerged."""
        vision = any(n.startswith("vision_backbone.") for n in self.low)
        config = LoraConfig(self.config.rank, self.config.alpha, vision)
        names = set(add_lora(model, config))
        if names != set(self.low):
            odd = sorted(names ^ set(self.low))
            raise CheckpointError(
                f"{self.folder} does not fit the model: {len(odd)} layers differ, {odd[0]} first",
                "give the base it was trained on",
            )
        for name, module in adapters(model):
            for part in ("lora_A", "lora_B"):
                value, own = self.low[name][part], getattr(module, part)
                if value.shape != own.shape:
                    raise CheckpointError(
                        f"{self.folder}: {name}.{part} is {list(value.shape)}, the model's "
                        f"{list(own.shape)}",
                        "give the base it was trained on",
                    )
                own.data.copy_(value)
        own = dict(model.named_parameters())
        for name, value in self.whole.items():
            if name not in own or own[name].shape != value.shape:
                raise CheckpointError(
                    f"{self.folder} brings {name} {list(value.shape)}, which the model has not",
                    "give the base it was trained on",
                )
            own[name].data.copy_(value)


def merge(
    base: Path,
    adapter: Path,
    output: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write base plus adapter as a plain checkpoint, one tensor at a time.

    Sums are taken in float32 and rounded to the base's dtype once.
    """
    given = Adapter(adapter)
    raw = given.model_json or raw_config(base)
    files = [(path, header) for path, header in inventory(base)]
    parts = {p: load_component(f) for p, f in published_parts(base).items()}
    empty, where = {}, {}
    for path, header in files:
        for key, entry in header.items():
            name = canonical(key)
            empty[name] = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]], device="meta")
            where[name] = path
    usual = next(iter(empty.values())).dtype
    for part, state in parts.items():
        empty |= {f"{part}.{k}": torch.empty_like(v, device="meta") for k, v in state.items()}
    for name, value in given.whole.items():
        empty[name] = torch.empty(value.shape, dtype=usual, device="meta")
    for layer, pair in given.low.items():
        shape = [pair["lora_B"].shape[0], pair["lora_A"].shape[1]]
        have = empty.get(f"{layer}.weight")
        if have is None or list(have.shape) != shape:
            raise CheckpointError(
                f"{adapter} adapts {layer} {shape}, {base} has "
                f"{'none' if have is None else list(have.shape)}",
                "give the base it was trained on",
            )
    given.check_base(base)

    def stream() -> Iterator[tuple[str, Tensor]]:
        for path, header in files:
            for key, value in iterate_tensors(path, header):
                name = canonical(key)
                if name in given.whole:
                    continue
                delta = given.delta(name.removesuffix(".weight"))
                if delta is not None and name.endswith(".weight"):
                    value = (value.float() + delta).to(value.dtype)
                yield name, value
        for part, state in parts.items():
            for k, v in state.items():
                if f"{part}.{k}" not in given.whole:
                    yield f"{part}.{k}", v
        for name, value in given.whole.items():
            yield name, value.to(usual)

    # Announced in the order they come.
    order: list[str] = []
    for _, header in files:
        named = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        order += [canonical(k) for k, _ in named if canonical(k) not in given.whole]
    order += [f"{p}.{k}" for p, s in parts.items() for k in s if f"{p}.{k}" not in given.whole]
    order += list(given.whole)
    statistics = given.statistics
    if statistics is None and (base / "dataset_statistics.json").is_file():
        statistics = read_json(base / "dataset_statistics.json")
    with Staged(output) as staged:
        save_checkpoint(
            staged, raw, {n: empty[n] for n in order}, load_tokenizer(base), statistics,
            stream=stream(), shard_bytes=5_000_000_000, progress=progress,
        )  # fmt: skip
        for name in BESIDE:
            if (base / name).is_file():
                shutil.copyfile(base / name, staged / name)
    return output
