"""Turns external failures of a run (memory, disk, lost processes) into errors with remedies."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import torch

from vla_inference.errors import VlaError
from vla_training.finetune.config import FinetuneConfig
from vla_training.loop import distributed

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def explained(config: FinetuneConfig, place: distributed.Place) -> Iterator[None]:
    """Explains lack of memory, a full disk and lost processes; other errors pass through."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise VlaError(
            f"the GPU's memory is too small for {config.batch_size} samples "
            f"({str(error).split('. ')[0]})",
            "lower --batch-size, or raise --gradient-checkpointing; --resume continues",
        ) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise VlaError(
            f"{config.folder} cannot be written to ({error.strerror})",
            "make room; --resume continues from the last state",
        ) from error
    except RuntimeError as error:
        if not distributed.is_lost(error, place):
            raise
        raise VlaError(
            f"another process of the run has ended ({' '.join(str(error).split())[:160]})",
            "its own error says why; --resume continues from the last state",
        ) from error
