"""Measures instruction following: answers for held-out frames under both orders."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vla_training.loader.batch import Batch
from vla_training.small_model.auxiliary_targets import COLOURS, NUMBERS
from vla_training.small_model.batches import Batches


@torch.no_grad()
def instruction_following(
    batches: Batches,
    index: Tensor,
    predict: Callable[[Batch], tuple[Tensor, Tensor]],
    most: int = 1024,
) -> dict[str, list[float]]:
    """Shares of answers that are nearer to the requested order than to the other one.

    "seen": where the scene head has the first object. "read": what colour it says that it has,
    right or not: of the sentence alone, wherever the object is. "acted": the chunk of actions, on
    frames where it is known for both orders. Each for the recorded order, then for the other; one
    half is a model that does not read. Without such frames a list is empty.
    index: frames to choose from. predict: batch -> (normalised actions, scene).
    """
    if batches.other is not None:
        index = index[batches.other[0][index] >= 0]
    if batches.other is None or not len(index):
        return {"seen": [], "read": [], "acted": []}
    index = index[:: max(1, len(index) // most)]
    seen: dict[bool, list[Tensor]] = {False: [], True: []}
    read: dict[bool, list[Tensor]] = {False: [], True: []}
    acted: dict[bool, list[Tensor]] = {False: [], True: []}
    for part in index.split(256):
        both = {other: batches.batch(part, other=other) for other in seen}
        for other in seen:
            mine, theirs = both[other], both[not other]
            actions, scene = (t.float() for t in predict(mine))
            assert mine.scene is not None and theirs.scene is not None  # as `Batches` makes them
            near, far = ((scene[:, :3] - s[:, :3]).norm(dim=1) for s in (mine.scene, theirs.scene))
            seen[other].append((near < far)[near.isfinite() & far.isfinite()])
            named = scene[:, NUMBERS : NUMBERS + len(COLOURS)].argmax(1)
            read[other].append(named == mine.scene[:, NUMBERS])
            inside = (mine.inside & theirs.inside)[..., None]
            near, far = (
                ((actions - b.targets).abs() * inside).sum((1, 2)) for b in (mine, theirs)
            )
            acted[other].append((near < far)[inside.any(1)[:, 0]])
    return {"seen": _shares(seen), "read": _shares(read), "acted": _shares(acted)}


def _shares(found: dict[bool, list[Tensor]]) -> list[float]:
    values = [torch.cat(v).float() for v in found.values() if v]
    return [round(v.mean().item(), 4) for v in values if len(v)]
