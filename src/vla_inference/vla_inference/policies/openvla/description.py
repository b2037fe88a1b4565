"""Describes an OpenVLA checkpoint without loading its weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_inference.checkpoints.hub import resolve
from vla_inference.checkpoints.load import load_config, load_tokenizer
from vla_inference.checkpoints.openvla_compat import checkpoint_name
from vla_inference.checkpoints.prismatic.run_config import is_run
from vla_inference.checkpoints.prismatic.weights import run_headers
from vla_inference.checkpoints.safetensors_io import inventory, read_json
from vla_inference.errors import CheckpointError
from vla_inference.openvla.config import ModelConfig
from vla_inference.policies.action_specs import statistics_spec
from vla_inference.policies.base import Description
from vla_inference.policies.normalisation import Normalisation


def describe_checkpoint(where: str) -> Description:
    """Describes a folder, or a Hub id, which is fetched, from the config, the statistics and
    the headers of the weights. Raises CheckpointError."""
    values = _values(resolve(where))
    return Description(values, _lines(values))


def _values(folder: Path) -> dict[str, Any]:
    config = load_config(folder)
    parts: dict[str, int] = defaultdict(int)
    dtypes: set[str] = set()
    files = stored(folder)
    for _, header in files:
        for key, entry in header.items():
            parts[_part(key, config)] += _parameters(key, entry)
            dtypes.add(entry["dtype"])
    return {
        "name": checkpoint_name(folder),
        "family": "openvla",
        "folder": folder.resolve(),
        "size_mb": round(sum(f.stat().st_size for f, _ in files) / 1e6, 1),
        "dtypes": sorted(dtypes),
        "parameters": sum(parts.values()),
        "parts": dict(parts),
        "vision encoders": [
            {"key": t.key, "image_size": t.image_size, "patches": t.num_patches, "stem": t.stem}
            for t in config.encoders
        ],
        "quantization": config.quantization,
        "resize": config.image_resize_strategy,
        "center_crop": config.center_crop,
        "assumed": list(config.assumed),
        "images": config.head.num_images,
        "state": config.head.proprio_dim,
        "prompt": config.prompt,
        "vocabulary": load_tokenizer(folder).get_vocab_size(),
        "head": {
            "type": config.head.type,
            "decoding": config.head.decoding,
            "chunk": config.head.chunk,
        },
        "action_spaces": {name: _space(name, s, config) for name, s in config.norm_stats.items()},
    }


def stored(folder: Path) -> list[tuple[Path, dict[str, dict]]]:
    """The files with weights and the headers of their tensors."""
    if is_run(read_json(folder / "config.json")):
        return [run_headers(folder)]
    return inventory(folder)


def _parameters(key: str, entry: Mapping[str, Any]) -> int:
    """Number of weights; for a quantised weight those its codes stand for, without scales and
    zeros."""
    kind = key.rpartition(".")[2]
    if kind in ("scales", "zeros"):
        return 0
    return math.prod(entry["shape"]) * (8 if kind == "codes" and entry["dtype"] == "I32" else 1)


def _part(key: str, config: ModelConfig) -> str:
    first, second = (*key.split("."), "")[:2]
    return f"{first}.{second}" if first == "vision_backbone" else first


def _space(name: str, statistics: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    head = config.head
    spec = statistics_spec(statistics, head.action_dim, name)
    bounds = Normalisation.from_statistics(
        statistics.get("action", statistics), f"statistics {name!r}", head.bounds
    )
    if len(bounds) != len(spec):
        raise CheckpointError(
            f"statistics {name!r} have {len(bounds)} dimensions, the actions {len(spec)}",
            "fix dataset_statistics.json",
        )
    dimensions = [
        {
            "name": d.name,
            "unit": d.unit,
            "low": float(low) if scaled else None,
            "high": float(high) if scaled else None,
            "note": d.polarity,
        }
        for d, low, high, scaled in zip(
            spec.dims, bounds.low, bounds.high, bounds.mask, strict=True
        )
    ]
    parts = [
        {
            "name": p.name,
            "kind": p.kind,
            "frame": p.frame,
            "rotation": p.rotation,
            "meaning": str(p),
            "dimensions": dimensions[spec.slice(p.name)],
        }
        for p in spec.parts
    ]
    return {"dt": spec.dt, "parts": parts}


def _lines(d: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The description as text for people."""
    weights = (
        f"{d['parameters'] / 1e6:.2f} M parameters, {', '.join(d['dtypes'])}, {d['size_mb']} MB"
    )
    lines = [("weights", weights)]
    lines += [("", f"{name:<28} {n / 1e6:9.3f} M") for name, n in d["parts"].items()]
    if d["quantization"]:
        lines.append(("quantised", f"the language model's layers, {d['quantization']}"))
    for t in d["vision encoders"]:
        size = f"{t['image_size']} x {t['image_size']} pixels ({d['resize']})"
        text = f"{t['key']}: {size}, {t['patches']} patches, {t['stem']} stem"
        lines.append(("vision", text))
    state = f"{d['state']} numbers of state" if d["state"] else "no state"
    lines.append(("input", f"{d['images']} image(s), {state}"))
    if d["center_crop"]:
        lines.append(("crop", f"the central {d['center_crop']:g} of the area"))
    head = d["head"]
    lines += [
        ("prompt", f"{d['prompt']!r}, {d['vocabulary']} tokens in the vocabulary"),
        ("answer", f"{head['chunk']} step(s) by {head['type']}, {head['decoding']}"),
    ]
    for name, space in d["action_spaces"].items():
        lines += _space_lines(name, space)
    lines += [("assumed", text) for text in d["assumed"]]
    if not d["action_spaces"]:
        lines.append(("actions", "no statistics: only unnorm_key 'normalized' (-1 to 1)"))
    return lines


def _space_lines(name: str, space: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = [("actions", f"unnorm_key {name!r}: {space['dt']:g} s per step")]
    for part in space["parts"]:
        lines.append(("", part["meaning"]))
        lines += [("", f"  {_dimension(dim)}") for dim in part["dimensions"]]
    return lines


def _dimension(dim: Mapping[str, Any]) -> str:
    unit = "" if dim["unit"] == "1" else f" {dim['unit']}"
    bounds = f"not scaled{unit and f', in{unit}'}"
    if dim["low"] is not None:
        bounds = f"{dim['low']:+.4f} to {dim['high']:+.4f}{unit}"
    note = f"  ({dim['note']})" if dim["note"] else ""
    return f"{dim['name']:<8} {bounds}{note}"
