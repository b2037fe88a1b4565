"""What the kernels need to know of the chip."""

from __future__ import annotations

from functools import cache

import torch


@cache
def chip() -> str:
    """ "sm_90" and the like, by which `tuned.json` knows the chip."""
    if not torch.cuda.is_available():
        return "cpu"
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


@cache
def early_launch() -> bool:
    """Whether a kernel may begin before the one ahead of it has ended (sm_90 on)."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
