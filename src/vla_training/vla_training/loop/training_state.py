"""Saves and restores training state atomically, for any number of devices.

Written by `torch.distributed.checkpoint`: each process writes its own part of sharded tensors, and
reading redistributes them. Only trained parameters are kept, with their optimiser's state.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from vla_inference.errors import CheckpointError
from vla_inference.system.files import replace_entry, sync, sync_tree
from vla_training.loop.distributed import Place

ABOUT = "about.json"
NAME = re.compile(r"step-(\d+)")


def find_states(folder: Path) -> list[Path]:
    """Complete states in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if NAME.fullmatch(p.name) and (p / ABOUT).is_file()]
    return sorted(found, key=lambda p: int(NAME.sub(r"\1", p.name)))


def save_state(
    folder: Path,
    step: int,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    about: dict[str, Any],
    place: Place,
    average: dict[str, Tensor] | None = None,
    keep: int = 1,
) -> Path:
    """Writes `folder`/step-N, then removes all but the `keep` newest.

    average: of the weights, by name, where the run keeps one.
    """
    target, partial = folder / f"step-{step}", folder / f".step-{step}.tmp"
    if place.first:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_halves(folder)
    place.barrier()
    model, optim = get_state_dict(objective, optimizer, options=_options())
    try:
        content: dict[str, Any] = {"model": model, "optimizer": optim}
        _quiet(dcp.save, content | _part("average", average), partial)
        if place.first:
            (partial / ABOUT).write_text(json.dumps({**about, "step": step}))
            sync_tree(partial)
            replace_entry(partial, target)
            sync(folder)
            shutil.rmtree(partial, ignore_errors=True)  # a state of the same step
            for old in find_states(folder)[:-keep]:
                remove_state(old)
    except (OSError, CheckpointException) as error:
        if place.first:
            shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"the state of step {step} cannot be written to {folder} ({_reason(error)})",
            "make room; the earlier state is still there, continue from it with --resume",
        ) from error
    place.barrier()
    return target


def _remove_halves(folder: Path) -> None:
    """Removes incomplete states of runs killed while writing or removing one."""
    for path in folder.iterdir():
        half = NAME.fullmatch(path.name) and not (path / ABOUT).is_file()
        if half or re.fullmatch(r"\.step-\d+\.tmp", path.name):
            shutil.rmtree(path)


def remove_state(path: Path) -> None:
    """Removes a state, its record first, so that a half-removed one is not a state."""
    (path / ABOUT).unlink()
    shutil.rmtree(path)


def read_about(state: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((state / ABOUT).read_text()))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{state} is not a training state ({error})", "give another, or start again"
        ) from error


def load_state(
    state: Path,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor] | None = None,
) -> dict:
    """Loads model, optimiser and average in place; returns the rest of the state.

    Any number of devices will do.
    """
    about = read_about(state)
    model, optim = get_state_dict(objective, optimizer, options=_options())
    content: dict[str, Any] = {"model": model, "optimizer": optim, **_part("average", average)}
    try:
        _quiet(dcp.load, content, state)
    except (Exception, CheckpointException) as error:  # the library raises its own and bare ones
        raise CheckpointError(
            f"{state} does not fit this run ({_reason(error)})",
            "resume with the model, the LoRA rank and the mode it was saved with",
        ) from error
    set_state_dict(
        objective,
        optimizer,
        model_state_dict=content["model"],
        optim_state_dict=content["optimizer"],
        options=StateDictOptions(ignore_frozen_params=True, strict=False),
    )
    return about


def _part(name: str, tensors: dict[str, Tensor] | None) -> dict[str, dict[str, Tensor]]:
    return {} if tensors is None else {name: tensors}


def _options() -> StateDictOptions:
    return StateDictOptions(ignore_frozen_params=True)


def _reason(error: BaseException) -> str:
    """In a few words; what the library wraps, with a traceback for each process, by its core."""
    if isinstance(error, CheckpointException):
        error = next((e for e, _ in error.failures.values()), error)
    return " ".join(str(error).split())[:300]


def _quiet(function, content: dict, folder: Path) -> None:
    import logging
    import warnings

    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            function(content, checkpoint_id=str(folder), no_dist=not dist.is_initialized())
        finally:
            logger.setLevel(level)
