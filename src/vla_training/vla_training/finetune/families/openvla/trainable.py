"""OpenVLA, OpenVLA-OFT and the small model, as fine-tuning sees them."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from vla_inference.checkpoints.load import load_tokenizer
from vla_inference.checkpoints.save import save_checkpoint
from vla_inference.errors import VlaError
from vla_inference.openvla.config import TRAINED_CROP
from vla_inference.openvla.model import VLA
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.system.files import Staged
from vla_training.finetune.config import FinetuneConfig
from vla_training.finetune.families.base import Trainable, whole_state
from vla_training.finetune.families.openvla.format import OpenVLAFormat
from vla_training.finetune.families.openvla.model_setup import choose_head, open_model, read_base
from vla_training.finetune.families.openvla.objective import OpenVLAObjective
from vla_training.finetune.families.openvla.train_modules import prepare
from vla_training.loader.frame_index import DatasetSource, FrameIndex
from vla_training.loader.mixture import Mixture, mix
from vla_training.loop.distributed import Place
from vla_training.lora.adapter import BESIDE, merge, save_adapter
from vla_training.lora.layers import add_lora


class OpenVLATrainable(Trainable):
    model: VLA

    def __init__(self, config: FinetuneConfig, base: Path):
        config.refuse("openvla", "train", "action_dim")
        usual = {"learning_rate": 5e-4, "weight_decay": 0.0, "max_grad_norm": 1.0}
        super().__init__(config.filled(lora_rank=32, **usual), base)
        given = read_base(base)
        if given.reasoning_tokens:
            raise VlaError(
                f"{base} reasons before it acts, and demonstrations have no reasoning",
                "choose a base that acts at once, or see `vla train --reasoning`",
            )
        head = choose_head(
            given.head,
            config.action_head,
            config.chunk,
            config.num_images,
            config.proprio_dim,
            config.history,
            config.history_interval,
        )
        crop = TRAINED_CROP if config.image_aug else given.center_crop
        self.shape = dataclasses.replace(given, head=head, center_crop=crop)
        self.tokenizer = load_tokenizer(base)
        # A name of the base's own keeps its bounds, and with them what its outputs mean.
        name, known = config.action_space, given.norm_stats
        own = name is not None and name in known
        self.statistics: Mapping[str, Any] = {name: known[name]} if name and own else {}
        self.model_json: dict[str, Any] = {}

    # -- its data -----------------------------------------------------------------------------

    @property
    def takes_state(self) -> bool:
        return self.shape.head.proprio_dim > 0

    def cameras(self, source: DatasetSource) -> tuple[str, ...]:
        return source.cameras or tuple(source.open().cameras())[: self.shape.head.views]

    def mix(
        self, sources: Sequence[DatasetSource], indices: Sequence[FrameIndex]
    ) -> tuple[Mixture, Mixture]:
        # Rounds are one dataset to the model: what the first says of actions holds for all.
        space = self.config.action_space or ("online" if self.config.online.tasks else None)
        size, known = self.shape.head.action_dim, self.statistics or None
        train, held = mix(sources, indices, size, self.config.val_split, space, known)
        self.statistics = train.statistics
        return train, held

    def form(self, mixture: Mixture) -> OpenVLAFormat:
        return OpenVLAFormat(self.shape, self.tokenizer, mixture.statistics, mixture.spaces)

    # -- its training -------------------------------------------------------------------------

    @property
    def sharded(self) -> bool:
        return self.config.lora is None

    def objective(self, device: str, dtype: torch.dtype, sharded: bool) -> OpenVLAObjective:
        c = self.config
        # A float32 copy of all weights exists only where they are trained on one device.
        kept = dtype if c.lora or sharded else torch.float32
        self.model, self.model_json = open_model(
            self.base, self.shape.head, self.statistics, c.image_aug, device, kept, c.seed
        )
        if c.quantize:
            from vla_inference.quantization import get_format
            from vla_inference.quantization.rounding import quantize_model

            quantize_model(self.model, get_format(c.quantize), "rtn")
        if c.lora:
            add_lora(self.model, c.lora, c.seed)
        else:
            self.model.requires_grad_(True)
            if c.freeze_vision:
                self.model.vision_backbone.requires_grad_(False)
        prepare(self.model, c.compile, c.gradient_checkpointing)
        objective = OpenVLAObjective(self.model).train()
        if kept != dtype:
            objective.autocast = dtype
        return objective

    # -- what comes of it ---------------------------------------------------------------------

    def empty(self) -> VLA:
        with torch.device("meta"):
            return VLA(self.model.config)

    def policy(self, model: nn.Module, device: str, dtype: torch.dtype) -> OpenVLAPolicy:
        policy = OpenVLAPolicy(cast("VLA", model), self.tokenizer, device, dtype)
        return policy.in_space(next(iter(policy.config.norm_stats)))

    def export(self, folder: Path, place: Place, say: Callable[[str], None]) -> Path:
        """Adapter and merged checkpoint, or the whole model in bfloat16, each atomically."""
        c = self.config
        output = folder / "checkpoint"
        if c.lora is None:
            self._save(output, place.first)
        else:
            adapter = folder / "adapter"
            output = output if c.merge else adapter
            if place.first:
                about = (c.lora, str(self.base), self.model_json, self.statistics)
                save_adapter(adapter, self.model, *about)
                if c.merge:
                    say(f"adapter {adapter}")
                    merge(self.base, adapter, output)
        place.barrier()
        return output

    def _save(self, output: Path, first: bool) -> None:
        """All processes gather sharded tensors one at a time."""
        stream = whole_state(self.model, first)
        if not first:
            for _ in stream:
                pass
            return
        low = torch.bfloat16
        shapes = {k: v.shape for k, v in self.model.state_dict().items()}
        with Staged(output) as staged:
            save_checkpoint(
                staged,
                self.model_json,
                {k: torch.empty(shape, dtype=low, device="meta") for k, shape in shapes.items()},
                self.tokenizer,
                self.statistics,
                stream=((k, v.to(low)) for k, v in stream),
                shard_bytes=5_000_000_000,
            )
            for name in BESIDE:
                if (self.base / name).is_file():
                    shutil.copyfile(self.base / name, staged / name)
