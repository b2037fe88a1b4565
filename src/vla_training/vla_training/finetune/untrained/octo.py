"""An untrained model of Octo's kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vla_inference.errors import VlaError
from vla_inference.options import option
from vla_inference.policies.octo.config import PATCH, OctoConfig
from vla_inference.policies.octo.untrained import write_untrained
from vla_training.finetune.untrained.robot import Robot, Untrained

HEAD = 64  # width of an attention head


@dataclass(frozen=True, kw_only=True)
class UntrainedOcto:
    """Sizes of a new model of Octo's kind. Its MLPs are four times as wide as what they read."""

    octo_image: int = option(
        224, "Octo: side of the images it sees, pixels; a multiple of 16.", low=PATCH
    )
    octo_width: int = option(
        256, "Octo: width of the transformer, a multiple of 64; published: 384.", low=HEAD
    )
    octo_layers: int = option(8, "Octo: layers of the transformer; published: 12.", low=1)
    octo_vocabulary: int = option(1024, "Octo: tokens of a new tokenizer.", low=300)

    def check(self) -> None:
        for name, of in (("octo_image", PATCH), ("octo_width", HEAD)):
            if (value := getattr(self, name)) % of:
                told = name.replace("_", "-")
                raise VlaError(f"--{told} is {value}", f"give a multiple of {of}")

    def config(self, robot: Robot, chunk: int) -> OctoConfig:
        width = self.octo_width
        return OctoConfig(
            cameras=len(robot.cameras),
            state_dim=robot.state,
            action_dim=robot.actions,
            chunk=chunk,
            image_size=(self.octo_image, self.octo_image),
            width=width,
            layers=self.octo_layers,
            heads=width // HEAD,
            mlp=4 * width,
            vocabulary=self.octo_vocabulary,
        )

    def write(self, folder: Path, robot: Robot, common: Untrained) -> None:
        """With a tokenizer of the tasks' sentences; it encodes any other in more tokens."""
        from vla_training.small_model.tokenizer import task_sentences, train_tokenizer

        config = self.config(robot, common.chunk or OctoConfig.chunk)
        tokenizer = train_tokenizer(task_sentences(), self.octo_vocabulary)
        write_untrained(folder, config, robot.cameras, robot.image_size, tokenizer, common.seed)
