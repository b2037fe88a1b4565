"""Reads LoRA adapters written by peft, exactly, or refuses unsupported features by name."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from vla_inference.checkpoints.load import no_answer_needs, raw_config
from vla_inference.checkpoints.openvla_compat import (
    check_trained_on,
    checkpoint_name,
    complete,
    component_files,
    load_component,
)
from vla_inference.checkpoints.safetensors_io import Tensors, canonical, read_json
from vla_inference.errors import CheckpointError
from vla_inference.openvla.model import VLA
from vla_training.lora.layers import LoraConfig, LoraLinear, is_linear, swap

CONFIG, OURS = "adapter_config.json", "vla_config.json"
WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
BASE = "vla_base.json"  # which weights it was trained beside
PREFIX = "base_model.model."
IN_A_RUN = "lora_adapter"  # OpenVLA-OFT's name for it inside a run's folder
ANOTHER_BASE = "give the base it was trained on"

# Starting points that take something out of the base, so that B A alone is no difference to it.
MUTATING = re.compile(r"pissa|olora|corda|lora_ga")
STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
# What says which layers are adapted (the tensors do), or how training went.
NEUTRAL = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
    "velora_config",
}
# A tensor's name: the layer, then what of it. All others take the place of the base's.
PART = re.compile(
    r"(?P<layer>.+)\.(?P<part>lora_[AB]\.(weight|bias)|lora_embedding_[AB]"
    r"|lora_magnitude_vector(\.weight)?|trainable_tokens_delta)$"
)
# What peft puts between a layer's name and its tensors.
WRAPPERS = re.compile(r"\.(modules_to_save(\.default)?|base_layer|token_adapter)(?=\.)")


@dataclass
class LowRank:
    """Low-rank update of one layer's weight, and of its bias.

    a: [r, in] (of a convolution with its kernel), b: [out, r]; of an embedding, whose weight
        lies the other way round, [r, words] and [width, r].
    magnitude: [out], the lengths that DoRA gives the sum's rows; columns of an embedding.
    bias: [out], what B adds for itself.
    """

    scale: float
    a: Tensor
    b: Tensor
    embedding: bool = False
    magnitude: Tensor | None = None
    bias: Tensor | None = None

    @property
    def plain(self) -> bool:
        return not self.embedding and self.magnitude is None and self.bias is None

    @property
    def shape(self) -> list[int]:
        """Shape of the layer's weight."""
        shape = [self.b.shape[0], *self.a.shape[1:]]
        return shape[::-1] if self.embedding else shape

    def merged(self, weight: Tensor) -> Tensor:
        """float32, like `weight`."""
        product = self.b.float().flatten(1) @ self.a.float().flatten(1)
        rows = self._rows(weight.float()) + self.scale * product
        if self.magnitude is not None:
            lengths = torch.linalg.norm(rows, dim=1, keepdim=True)
            rows = rows * (self.magnitude.float().flatten()[:, None] / lengths)
        return (rows.T if self.embedding else rows).reshape(weight.shape)

    def _rows(self, weight: Tensor) -> Tensor:
        return weight.T if self.embedding else weight.flatten(1)


@dataclass
class Change:
    """Everything that an adapter changes in a base.

    low: what is added, by layer. values: tensors that take the base's place, by name. rows: of
    an embedding the tokens that were trained and their rows, by the weight's name.
    """

    source: Path
    low: dict[str, LowRank] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, tuple[list[int], Tensor]] = field(default_factory=dict)

    def fit(
        self,
        shapes: Mapping[str, Sequence[int]],
        unused: Callable[[str], bool],
        new: Callable[[str], bool] = lambda name: False,
    ) -> Change:
        """The part for a model with these tensors; refuses parts that match none.

        unused: tells the names of tensors that no answer depends on; where the base lacks them,
            they are left out. new: those of tensors that the adapter may bring itself.
        """
        absent = {n for n in self._wanted() if n not in shapes and unused(n)}
        for name, shape in self._wanted().items():
            have = shapes.get(name)
            if name in absent or (have is None and new(name)) or have == shape:
                continue
            low = self.low.get(name.removesuffix(".bias"))
            if have is None and low is not None and name.endswith(".bias"):
                raise CheckpointError(
                    f"{self.source} has lora_bias and adds to {name}, which the base has not",
                    "train it without lora_bias: there is no plain checkpoint of it",
                )
            raise CheckpointError(
                f"{self.source} adapts {name} {shape}, the base has {have or 'none'}",
                ANOTHER_BASE,
            )
        for name, (indices, _) in self.rows.items():
            if max(indices, default=0) >= shapes[name][0]:
                raise CheckpointError(
                    f"{self.source} trained row {max(indices)} of {name} {shapes[name]}",
                    ANOTHER_BASE,
                )
        kept = {n: p for n, p in self.low.items() if f"{n}.weight" not in absent}
        values = {n: v for n, v in self.values.items() if n not in absent}
        return Change(self.source, kept, values, self.rows)

    def _wanted(self) -> dict[str, list[int]]:
        """The base tensors it changes, with their required shapes."""
        wanted = {name: list(value.shape) for name, value in self.values.items()}
        for layer, low in self.low.items():
            wanted[f"{layer}.weight"] = low.shape
            if low.bias is not None:
                wanted[f"{layer}.bias"] = list(low.bias.shape)
        return wanted

    def touches(self, name: str) -> bool:
        low = self.low.get(name.removesuffix(".weight")) or self.low.get(
            name.removesuffix(".bias")
        )
        biased = name.endswith(".weight") or (low is not None and low.bias is not None)
        return name in self.values or name in self.rows or (low is not None and biased)

    def merged(self, name: str, value: Tensor) -> Tensor:
        """A tensor of the base, changed: summed in float32 and rounded once, to its dtype."""
        if not self.touches(name):
            return value
        dtype = value.dtype
        value = self.values.get(name, value)
        layer, _, kind = name.rpartition(".")
        low = self.low.get(layer)
        if low is not None and kind == "weight":
            value = low.merged(value)
        elif low is not None and low.bias is not None:
            value = value.float() + low.scale * low.bias.float()
        if name in self.rows:
            indices, rows = self.rows[name]
            value = value.float().index_copy(0, torch.tensor(indices), rows.float())
        if not torch.isfinite(value).all():
            raise CheckpointError(
                f"{self.source} makes {name} hold numbers that are not finite", "train it again"
            )
        return value.to(dtype)

    def apply(self, model: VLA) -> None:
        """Applies it to its base; plain LoRA stays unmerged."""
        own = dict(model.named_parameters())
        shapes = {n: list(p.shape) for n, p in own.items()}
        linear = {n: m for n, m in model.named_modules() if is_linear(m)}
        shapes |= {f"{n}.weight": [m.out_features, m.in_features] for n, m in linear.items()}
        change = self.fit(shapes, no_answer_needs(model.config))
        beside = {n: p for n, p in change.low.items() if p.plain and n in linear}
        written = dataclasses.replace(
            change, low={n: p for n, p in change.low.items() if n not in beside}
        )
        for name, parameter in own.items():
            if written.touches(name):
                merged = written.merged(name, parameter.data.cpu().float())
                parameter.data = merged.to(parameter.device, parameter.dtype)
        for name, low in beside.items():
            rank = low.a.shape[0]
            layer = LoraLinear(linear[name], LoraConfig(rank, low.scale * rank), seed=0)
            layer.lora_A.data.copy_(low.a)
            layer.lora_B.data.copy_(low.b)
            swap(model, name, layer)


class Adapter:
    """An adapter folder and the files beside it."""

    def __init__(self, folder: Path):
        self.folder = folder
        about = read_json(folder / CONFIG)
        refuse_unread(about, folder / CONFIG)
        self.base = about.get("base_model_name_or_path") or ""
        self.change = read_change(folder, about)
        for part, path in component_files(self.run).items():
            self.change.values |= {f"{part}.{k}": v for k, v in load_component(path).items()}

    @property
    def run(self) -> Path:
        """The folder of the training run, for its name, statistics and heads."""
        folder = self.folder.resolve()
        return folder.parent if folder.name == IN_A_RUN else folder

    @property
    def model_json(self) -> dict[str, Any] | None:
        """The merged model's config, if the adapter was made by our own training."""
        path = self.folder / OURS
        return read_json(path) if path.is_file() else None

    @property
    def statistics(self) -> dict[str, Any] | None:
        places = (p / "dataset_statistics.json" for p in (self.folder, self.run))
        return next((read_json(p) for p in places if p.is_file()), None)

    def check_base(self, folder: Path) -> None:
        """For our own adapters: checks that these are the weights it was trained on.

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
                ANOTHER_BASE,
            )

    def config_on(self, base: Path) -> dict[str, Any]:
        """config.json of the merged model, without assumptions.

        Beside the base's own it has what the run's name and files tell, as they would of a
        checkpoint: OpenVLA-OFT's heads, and whether images were augmented.
        """
        own = self.model_json
        if own is not None:
            return own
        raw, name = raw_config(base), checkpoint_name(self.run)
        beside = base / "dataset_statistics.json"
        statistics = self.statistics
        if statistics is None:
            statistics = read_json(beside) if beside.is_file() else raw.get("norm_stats") or {}
            check_trained_on(name, {"norm_stats": statistics}, self.run)
        told = complete(self.run, {**raw, "norm_stats": statistics}, name)
        if self.statistics is None and not beside.is_file():
            return {k: v for k, v in told.items() if k != "assumed"}
        return {k: v for k, v in told.items() if k not in ("assumed", "norm_stats")}


def base_digest(folder: Path) -> str:
    """Hash of names, shapes and a sample of every tensor: distinguishes models of one shape."""
    return Tensors(folder).digest(("",), None)


def refuse_unread(about: Mapping[str, Any], where: Path) -> None:
    """Refuses, by key, adapters with features that are not supported."""
    if about.get("peft_type", "LORA") != "LORA":
        raise CheckpointError(f"{where} has peft_type {about['peft_type']!r}", "only LoRA is read")
    start = about.get("init_lora_weights", True)
    if isinstance(start, str) and MUTATING.match(start):
        raise CheckpointError(
            f"{where} has init_lora_weights {start!r}: it took a part out of the base, and is no "
            "difference to the base as it was published",
            "save it as one: save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )
    if start not in STARTS:
        raise CheckpointError(
            f"{where} has init_lora_weights {start!r}, after which the base may be another",
            f"known: {', '.join(map(str, STARTS))}",
        )
    for key, value in about.items():
        if value and key not in NEUTRAL:
            raise CheckpointError(
                f"{where} has {key} {value!r:.60}, which is not read",
                "merge it by peft itself (merge_and_unload) and give the merged checkpoint",
            )


def read_change(folder: Path, about: Mapping[str, Any]) -> Change:
    """Reads an adapter's tensors, grouped by their effect on the base."""
    change = Change(folder)
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _tensors(folder):
        name = WRAPPERS.sub("", key.removeprefix(PREFIX))
        found = PART.match(name)
        if found is None:
            change.values[canonical(name)] = tensor
            continue
        layer = canonical(f"{found['layer']}.weight").removesuffix(".weight")
        parts.setdefault(layer, {})[found["part"]] = tensor
    for layer, named in parts.items():
        if set(named) == {"trainable_tokens_delta"}:
            rows = named["trainable_tokens_delta"]
            change.rows[f"{layer}.weight"] = (_token_indices(folder, about, layer, rows), rows)
        else:
            change.low[layer] = _low_rank(folder, about, layer, named)
    if not (change.low or change.values or change.rows):
        raise CheckpointError(f"{folder} has no tensors of an adapter", "copy it again")
    return change


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    path = folder / WEIGHTS
    if not path.is_file() and (folder / PICKLED).is_file():
        yield from load_component(folder / PICKLED).items()
        return
    try:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                yield key, file.get_tensor(key)
    except Exception as error:  # the library raises its own and bare ones
        raise CheckpointError(f"{path} cannot be read ({error})", "copy it again") from error


def _low_rank(
    folder: Path, about: Mapping[str, Any], layer: str, parts: Mapping[str, Tensor]
) -> LowRank:
    """peft's scale: alpha / r, or alpha / sqrt(r); both may differ from layer to layer."""
    embedding = "lora_embedding_A" in parts
    a, b = (parts.get(f"lora_{'embedding_' * embedding}{x}") for x in "AB")
    if a is None:
        a, b = parts.get("lora_A.weight"), parts.get("lora_B.weight")
    if a is None or b is None:
        raise CheckpointError(
            f"{folder} has no pair of lora_A and lora_B for {layer}", "copy it again"
        )
    try:
        rank = int(_by_pattern(about.get("rank_pattern"), layer, about["r"]))
        alpha = float(_by_pattern(about.get("alpha_pattern"), layer, about["lora_alpha"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / CONFIG} has no r and lora_alpha ({error})", "give a LoRA adapter"
        ) from error
    magnitude = parts.get("lora_magnitude_vector", parts.get("lora_magnitude_vector.weight"))
    problem = ""
    if a.shape[0] != rank or b.shape[1] != rank:
        problem = f"lora_A {list(a.shape)} and lora_B {list(b.shape)} for rank {rank}"
    elif bool(about.get("use_dora")) != (magnitude is not None):
        problem = f"{'no' if magnitude is None else 'a'} lora_magnitude_vector for use_dora "
        problem += f"{about.get('use_dora')}"
    if problem:
        raise CheckpointError(
            f"{folder}: {layer} has {problem}, as {CONFIG} says", "copy both files from one place"
        )
    scale = alpha / (math.sqrt(rank) if about.get("use_rslora") else rank)
    return LowRank(scale, a, b, embedding, magnitude, parts.get("lora_B.bias"))


def _by_pattern(patterns: Any, layer: str, usual: Any) -> Any:
    """peft's rule: the first key that, as a regular expression, matches the layer's name or its
    end."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", layer):
            return value
    return usual


def _token_indices(folder: Path, about: Mapping[str, Any], layer: str, rows: Tensor) -> list[int]:
    given = about.get("trainable_token_indices") or []
    if isinstance(given, Mapping):
        given = next((v for k, v in given.items() if f".{layer}".endswith(f".{k}")), [])
    if len(given) != len(rows):
        raise CheckpointError(
            f"{folder} contains {len(rows)} rows of {layer}, trainable_token_indices names "
            f"{len(given)}",
            "copy both files from one place",
        )
    return [int(i) for i in given]
