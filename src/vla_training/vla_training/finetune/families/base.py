"""What a policy family brings to the training stack, and the registry of those that do.

The loop, its schedule, sampling, augmentation, saved states, datasets and devices are the same for
all. A family brings a `Trainable`: its samples, its loss, which weights are trained, and how it
writes a checkpoint.

Other packages bring families by entry points of group `vla.trainables`: the name is the
`model_type` of the checkpoint's config.json, the value "module:Class" of a `Trainable`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vla_inference.checkpoints.hub import resolve
from vla_inference.errors import CheckpointError
from vla_inference.policies.base import Policy
from vla_inference.policies.registry import model_type
from vla_inference.system.plugins import find_plugins, load_plugin
from vla_training.finetune.config import FinetuneConfig
from vla_training.loader.frame_index import DatasetSource, FrameIndex
from vla_training.loader.mixture import Mixture
from vla_training.loader.sample_format import SampleFormat
from vla_training.loop.distributed import Place
from vla_training.loop.objective import Objective

GROUP = "vla.trainables"
TRAINABLES = {
    "act": "vla_training.finetune.families.act:ACTTrainable",
    "octo": "vla_training.finetune.families.octo:OctoTrainable",
    "openvla": "vla_training.finetune.families.openvla.trainable:OpenVLATrainable",
    "pi0": "vla_training.finetune.families.pi:Pi0Trainable",
    "pi05": "vla_training.finetune.families.pi:Pi05Trainable",
    "smolvla": "vla_training.finetune.families.smolvla:SmolVLATrainable",
}


class Trainable(ABC):
    """A checkpoint to fine-tune.

    config: the run's options; those that were left open are filled in as the family has them.
    base: the checkpoint's folder. betas: AdamW's. model: the network, once there is an objective.
    """

    config: FinetuneConfig
    base: Path
    betas: tuple[float, float] = (0.9, 0.999)
    model: nn.Module

    def __init__(self, config: FinetuneConfig, base: Path):
        """Reads the checkpoint's JSON, not its weights; refuses options that do not fit it."""
        self.config, self.base = config, base

    # -- its data -----------------------------------------------------------------------------

    @property
    @abstractmethod
    def takes_state(self) -> bool: ...

    @abstractmethod
    def cameras(self, source: DatasetSource) -> tuple[str, ...]:
        """Those of a dataset that the model sees, in its order; DataError where one is missing."""

    @abstractmethod
    def mix(
        self, sources: Sequence[DatasetSource], indices: Sequence[FrameIndex]
    ) -> tuple[Mixture, Mixture]:
        """What is trained on and what is held out (`loader.mixture.mix`).

        The first call settles what values are normalised by; later ones, of a run whose data
        grow, keep it.
        """

    @abstractmethod
    def form(self, mixture: Mixture) -> SampleFormat:
        """How samples of this mixture are made."""

    # -- its training -------------------------------------------------------------------------

    @property
    @abstractmethod
    def sharded(self) -> bool:
        """Whether several devices share the weights, rather than hold a copy each: where all are
        trained."""

    @abstractmethod
    def objective(self, device: str, dtype: torch.dtype, sharded: bool) -> Objective:
        """Loads the weights, and lets those require gradients that are to be trained.

        dtype: what is computed in. What is trained is float32, unless it is about to be sharded.
        """

    def share(self, name: str) -> float:
        """Of the learning rate, what a weight of the network is trained by."""
        return 1.0

    # -- what comes of it ---------------------------------------------------------------------

    @abstractmethod
    def empty(self) -> nn.Module:
        """The network without weights, on "meta"; `gathered` fills it."""

    @abstractmethod
    def policy(self, model: nn.Module, device: str, dtype: torch.dtype) -> Policy:
        """The model under training as a policy."""

    @abstractmethod
    def export(self, folder: Path, place: Place, say: Callable[[str], None]) -> Path:
        """Writes into the run's folder what a policy loads, and returns where. All processes
        call it; the first one writes."""


def find_trainable(config: FinetuneConfig) -> Trainable:
    """The checkpoint that a run starts from, by the family its config.json names."""
    known = find_plugins(GROUP, TRAINABLES)
    folder = resolve(config.vla_path)
    kind = model_type(folder)
    if kind not in known:
        raise CheckpointError(
            f"{folder} is a model of type {kind!r}, which cannot be fine-tuned here",
            f"known: {', '.join(known)}; other packages bring theirs as entry points of {GROUP}",
        )
    found: Trainable = load_plugin(known[kind])(config, folder)
    return found


def whole(value: Tensor) -> Tensor:
    """A tensor that may be sharded, whole; all processes must ask for it together."""
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach()


def whole_state(model: nn.Module, first: bool) -> Iterator[tuple[str, Tensor]]:
    """A model's tensors, whole, one at a time; nothing in all processes but the first, which
    take part all the same."""
    for key, value in model.state_dict().items():
        tensor = whole(value)
        if first:
            yield key, tensor
