"""An untrained OpenVLA of the shipped model's size."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vla_inference.checkpoints.save import save_checkpoint
from vla_inference.errors import VlaError
from vla_inference.openvla.config import ModelConfig
from vla_inference.openvla.model import VLA
from vla_inference.options import option
from vla_training.finetune.untrained.robot import Robot, Untrained

HEADS = ("l1", "tokens")
CHUNK = 8  # of head l1; tokens are those of one action


@dataclass(frozen=True, kw_only=True)
class UntrainedOpenVLA:
    """Sizes of a new OpenVLA. Its other sizes are those of stack-small."""

    head: str = option(
        "l1",
        "OpenVLA: l1, a chunk in one pass (OpenVLA-OFT); tokens, one after the other (OpenVLA).",
        choices=HEADS,
    )
    openvla_image: int = option(
        224, "OpenVLA: side of the images it sees, pixels; a multiple of 16.", low=16
    )
    openvla_layers: int = option(4, "OpenVLA: layers of the language model.", low=1)

    def check(self) -> None:
        if self.openvla_image % 16:
            raise VlaError(f"--openvla-image is {self.openvla_image}", "give a multiple of 16")

    def shape(self, robot: Robot, chunk: int) -> dict[str, Any]:
        """config.json"""
        from vla_training.small_model.config import SMALL

        shape: dict[str, Any] = copy.deepcopy(SMALL)
        shape["name"] = f"openvla-{self.head}"
        shape["text_config"]["num_hidden_layers"] = self.openvla_layers
        shape["vision_towers"][0]["image_size"] = self.openvla_image
        head = {
            "action_dim": robot.actions,
            "num_images": len(robot.cameras),
            "proprio_dim": robot.state,
        }
        if self.head == "tokens":
            if chunk > 1:
                raise VlaError(f"--chunk is {chunk}, of tokens one action is said", "leave it out")
            form: dict[str, Any] = {"type": "tokens", "decoding": "autoregressive", "chunk": 1}
            form["slots_per_step"] = robot.actions
        else:
            form = {**shape["action_head"], "chunk": chunk or CHUNK}
        shape["action_head"] = {**form, **head}
        return shape

    def write(self, folder: Path, robot: Robot, common: Untrained) -> None:
        from vla_training.small_model.model import initialise
        from vla_training.small_model.tokenizer import task_sentences, train_tokenizer

        shape = self.shape(robot, common.chunk)
        config = ModelConfig.from_json(shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(common.seed)
            model = VLA(config)
            initialise(model)
        size = config.action_vocab_end - config.n_action_bins
        tokenizer = train_tokenizer(task_sentences(), size)
        save_checkpoint(folder, shape, model.state_dict(), tokenizer)
