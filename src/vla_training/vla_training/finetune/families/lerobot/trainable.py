"""What LeRobot's families have in common in fine-tuning."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_inference.errors import DataError, VlaError
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.lerobot.base import DTYPES, LeRobotPolicy
from vla_inference.policies.lerobot.checkpoint import ACTION, STATE, LeRobotCheckpoint
from vla_inference.policies.lerobot.loading import build
from vla_inference.policies.lerobot.save import (
    Statistics,
    check_writable,
    column_statistics,
    fit,
    save,
)
from vla_inference.system.files import Staged
from vla_training.finetune.config import FinetuneConfig
from vla_training.finetune.families.base import Trainable, whole_state
from vla_training.loader.frame_index import DatasetSource, FrameIndex
from vla_training.loader.mixture import Mixture, mix
from vla_training.loop.distributed import Place
from vla_training.loop.objective import Objective
from vla_training.lora.layers import adapt, adapters

SPACE = "robot"  # name of the one set of statistics


class LeRobotTrainable(Trainable):
    """A folder of LeRobot's. A family says what it leaves abstract, and how samples are made.

    start: the checkpoint as it is.
    """

    family: str
    betas = (0.9, 0.95)

    def __init__(self, config: FinetuneConfig, base: Path):
        other = ("action_head", "chunk", "quantize", "action_space", "merge", "reshard")
        past = ("history", "history_interval")
        config.refuse(self.family, *other, *past, "gradient_checkpointing")
        self.start = start = LeRobotCheckpoint.read(base, fitted=False)
        check_writable(base)
        if any(start.relative):
            raise VlaError(
                f"{base} gives actions relative to the state, which cannot be fine-tuned yet",
                "switch relative_actions_processor and absolute_actions_processor off, and train "
                "absolute actions",
            )
        says = start.settings
        filled = config.filled(
            train="expert" if says.flag("train_expert_only", False) else "all",
            lora_rank=0,
            learning_rate=says.number("optimizer_lr", 1e-4, high=1e3),
            weight_decay=says.number("optimizer_weight_decay", 0.0, high=1e3),
            max_grad_norm=says.number("optimizer_grad_clip_norm", 10.0),
        )
        super().__init__(filled, base)
        if says.values.get("optimizer_betas") is not None:
            first, second = says.numbers("optimizer_betas", 2, high=1)
            self.betas = (first, second)
        self.images = _given(config.num_images, len(start.cameras))
        self.state_dim = _given(config.proprio_dim, start.state_dim)
        self.action_dim = _given(config.action_dim, start.action_dim)
        self.checkpoint: LeRobotCheckpoint | None = None
        self.statistics: Statistics = {}
        self._check_sizes()
        self.tokenizer = self.find_tokenizer()

    @property
    def fitted(self) -> LeRobotCheckpoint:
        """The checkpoint as it will be."""
        assert self.checkpoint is not None  # a run has mixed its data
        return self.checkpoint

    # -- what a family says -------------------------------------------------------------------

    @property
    @abstractmethod
    def room(self) -> tuple[int | None, int | None]:
        """Most numbers of a state and of an action that the network takes; None: exactly the
        checkpoint's own."""

    @abstractmethod
    def make(self) -> nn.Module:
        """The network, with any weights."""

    @abstractmethod
    def our_name(self, published: str) -> str | None:
        """The network's name of a tensor; None of one that nothing depends on."""

    @abstractmethod
    def make_policy(self, model: nn.Module, options: LoadOptions) -> LeRobotPolicy:
        """The policy of the `fitted` checkpoint."""

    def find_tokenizer(self) -> Any:
        """Of the instructions; None for a family that reads none."""
        return None

    @abstractmethod
    def trained(self, name: str) -> bool:
        """Whether a weight of the network is trained, by `config.train` and what the checkpoint
        freezes."""

    def whole(self, name: str) -> bool:
        """Whether a weight is small, and trained itself beside LoRA's adapters."""
        return False

    @abstractmethod
    def loss(self, policy: LeRobotPolicy) -> Objective: ...

    def image_statistics(self) -> Statistics:
        """By which the network's images are normalised, of each camera."""
        return {}

    def image_size(self, source: DatasetSource) -> tuple[int, int] | None:
        """Height and width of the images that it will take; None: the checkpoint's."""
        return None

    # -- its data -----------------------------------------------------------------------------

    def _check_sizes(self) -> None:
        start = self.start
        if self.images > len(start.cameras):
            raise VlaError(
                f"{self.images} cameras were named, {self.base} has {len(start.cameras)} "
                f"({', '.join(start.cameras)})",
                "name as many by --cameras, in this order, or fewer",
            )
        for option, given, own, most in (
            ("proprio-dim", self.state_dim, start.state_dim, self.room[0]),
            ("action-dim", self.action_dim, start.action_dim, self.room[1]),
        ):
            if given != own and (most is None or given > most):
                raise VlaError(
                    f"--{option} is {given}, the network of {self.base} takes "
                    + (f"{own}" if most is None else f"at most {most}"),
                    "give that, or fine-tune another model",
                )

    @property
    def takes_state(self) -> bool:
        return self.state_dim > 0

    def cameras(self, source: DatasetSource) -> tuple[str, ...]:
        wanted = self.start.cameras[: self.images]
        there = source.open().cameras()
        given = source.cameras or wanted
        if missing := [c for c in given if c not in there]:
            raise DataError(
                f"{source.path} has no camera {missing[0]!r}"
                + ("" if source.cameras else f", which {self.base} names")
                + f"; it has {', '.join(there) or 'none'}",
                f"say by --cameras which of its cameras are {', '.join(wanted)}, in this order: "
                "the new checkpoint's rename_map will tell LeRobot",
            )
        return given

    def mix(
        self, sources: Sequence[DatasetSource], indices: Sequence[FrameIndex]
    ) -> tuple[Mixture, Mixture]:
        for source, index in zip(sources, indices, strict=True):
            states = 0 if index.states is None else index.states.shape[1]
            for what, option, has, takes in (
                ("states", "proprio-dim", states, self.state_dim),
                ("actions", "action-dim", index.actions.shape[1], self.action_dim),
            ):
                if has != takes:
                    raise DataError(
                        f"the {what} of {source.path} have {has} numbers, {self.base} takes "
                        f"{takes}",
                        f"give --{option} {has} to train it for these",
                    )
        train, held = mix(sources, indices, self.action_dim, self.config.val_split, SPACE)
        if self.checkpoint is None:
            statistics = {ACTION: _columns([i.actions for i in indices])}
            if self.takes_state:
                statistics[STATE] = _columns([i.states for i in indices])
            self.statistics = {**statistics, **self.image_statistics()}
            spec, own = indices[0].spec, self.start.spec
            assert spec is not None  # every dataset has one
            if spec.parts[0].kind == "unknown" and len(own) == len(spec):
                spec = own  # what the base says of the same numbers
            size = self.image_size(sources[0])
            self.checkpoint = fit(self.start, sources[0].cameras, self.statistics, spec, size)
        return train, held

    # -- its training -------------------------------------------------------------------------

    @property
    def sharded(self) -> bool:
        return self.config.train == "all" and self.config.lora is None

    def objective(self, device: str, dtype: torch.dtype, sharded: bool) -> Objective:
        c = self.config
        options = LoadOptions(device=device, dtype="float32")
        self.model = build(self.make, self.start, self.our_name, options)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self.trained(name))
        if c.lora:
            linear = [n for n, m in self.model.named_modules() if isinstance(m, nn.Linear)]
            weights = ((n, f"{n}.weight") for n in linear)
            chosen = [n for n, w in weights if self.trained(w) and not self.whole(w)]
            self.model.requires_grad_(False)
            adapt(self.model, chosen, c.lora, c.seed)
            for name, parameter in self.model.named_parameters():
                if self.whole(name) and self.trained(name):
                    parameter.requires_grad_(True)
        for parameter in self.model.parameters():
            if not (parameter.requires_grad or sharded):
                parameter.data = parameter.data.to(dtype)
        objective = self.loss(self.make_policy(self.model, options)).train()
        if dtype != torch.float32 and not sharded:
            objective.autocast = dtype
        if c.compile:
            objective.compile(dynamic=False)
        return objective

    # -- what comes of it ---------------------------------------------------------------------

    def empty(self) -> nn.Module:
        with torch.device("meta"):
            return self.make()

    def policy(self, model: nn.Module, device: str, dtype: torch.dtype) -> LeRobotPolicy:
        names = {d: name for name, d in DTYPES.items()}
        return self.make_policy(model, LoadOptions(device=device, dtype=names[dtype]))

    def export(self, folder: Path, place: Place, say: Callable[[str], None]) -> Path:
        """The whole checkpoint as LeRobot loads it, adapters merged, in the base's dtypes."""
        output = folder / "checkpoint"
        learned = {n for n, p in self.model.named_parameters() if p.requires_grad}
        state = {k: v.cpu() for k, v in whole_state(self.model, place.first) if k in learned}
        if place.first:
            with Staged(output) as staged:
                trained = _merged(self.model, state)
                save(staged, self.fitted, self.statistics, trained, self.our_name)
        place.barrier()
        return output


def _merged(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Trained tensors by the network's names, adapters added to their layers."""
    merged = {
        f"{name}.weight": layer.base.weight.float().cpu() + layer.delta().detach().cpu()
        for name, layer in adapters(model)
    }
    return {k: v for k, v in state.items() if "lora_" not in k} | merged


def _given(option: int | None, own: int) -> int:
    return own if option is None else option


def _columns(values: Sequence[np.ndarray | None]) -> dict[str, np.ndarray]:
    return column_statistics(np.concatenate([v for v in values if v is not None]))
