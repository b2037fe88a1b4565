"""How exact products of float32 matrices are while a model is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tensor_cores(cuda: bool) -> Iterator[None]:
    """TF32 within, on a GPU. It is a setting of the whole process, so it is put back."""
    before = torch.get_float32_matmul_precision()
    if cuda:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
