"""Launch settings of the kernels for the chip at hand."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
import triton
import triton.language as tl

TUNED = Path(__file__).with_name("tuned.json")


@cache
def chip() -> str:
    """ "sm_90" and the like, the key of this chip in `tuned.json`."""
    if not torch.cuda.is_available():
        return "cpu"
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


@cache
def early_launch() -> bool:
    """Whether a kernel may start before the previous one has ended (sm_90 on)."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def early() -> dict[str, bool]:
    """Launch arguments for programmatic dependent launch."""
    return {"launch_pdl": True} if early_launch() else {}


@cache
def tuned() -> dict[str, dict]:
    """The settings measured best on this chip, by kernel and shape (`tools/tune_kernels.py`)."""
    return json.loads(TUNED.read_text()).get(chip(), {}) if TUNED.exists() else {}


def write_tuned(entries: dict[str, dict], path: Path = TUNED) -> None:
    """Adds this chip's entries to the data file."""
    known = json.loads(path.read_text()) if path.exists() else {}
    known.setdefault(chip(), {}).update(entries)
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


@triton.jit
def largest(x, axis: tl.constexpr):
    """Largest magnitude of float32 numbers; NaN if any is NaN (a plain maximum would ignore
    it).

    As integers, the bits of magnitudes come in the same order, NaN above all.
    """
    bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.max(bits, axis).to(tl.float32, bitcast=True)
