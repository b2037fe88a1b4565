"""An untrained SmolVLA, small enough to be trained from scratch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vla_inference.errors import VlaError
from vla_inference.options import option
from vla_inference.policies.lerobot.network.siglip import VisionDims
from vla_inference.policies.smolvla.config import ExpertDims, SmolVLAConfig, TextDims
from vla_inference.policies.smolvla.untrained import write_untrained
from vla_training.finetune.untrained.robot import Robot, Untrained

PATCH, HEAD = 16, 64  # pixels; width of an attention head


@dataclass(frozen=True, kw_only=True)
class UntrainedSmolVLA:
    """Sizes of a new SmolVLA. Its MLPs are four times as wide as what they read, gated ones three
    times; its expert has a layer for each of the language model."""

    image_size: int = option(
        224, "SmolVLA: side of the images it sees, pixels; a multiple of 32.", low=32
    )
    vision_width: int = option(
        192, "SmolVLA: width of the vision encoder; a multiple of 64.", low=HEAD
    )
    vision_layers: int = option(6, "SmolVLA: layers of the vision encoder.", low=1)
    text_width: int = option(
        256, "SmolVLA: width of the language model; a multiple of 128.", low=2 * HEAD
    )
    text_layers: int = option(6, "SmolVLA: layers of the language model.", low=1)
    expert_width: int = option(192, "SmolVLA: width of the action expert; an even number.", low=2)
    vocabulary: int = option(1024, "SmolVLA: tokens of a new tokenizer.", low=300)

    def check(self) -> None:
        for name, value, of in (
            ("image-size", self.image_size, 2 * PATCH),
            ("vision-width", self.vision_width, HEAD),
            ("text-width", self.text_width, 2 * HEAD),
            ("expert-width", self.expert_width, 2),
        ):
            if value % of:
                raise VlaError(f"--{name} is {value}", f"give a multiple of {of}")

    def config(self, robot: Robot, chunk: int) -> SmolVLAConfig:
        v, w, e = self.vision_width, self.text_width, self.expert_width
        heads, side = w // HEAD, self.image_size
        return SmolVLAConfig(
            VisionDims(v, self.vision_layers, v // HEAD, 4 * v, side, PATCH),
            TextDims(w, self.text_layers, heads, heads // 2, HEAD, 3 * w, self.vocabulary),
            ExpertDims(e, self.text_layers, 3 * e),
            shuffle=2,
            state_dim=max(32, robot.state),
            action_dim=max(32, robot.actions),
            chunk=chunk,
            image_size=(side, side),
        )

    def write(self, folder: Path, robot: Robot, common: Untrained) -> None:
        """With a tokenizer of the tasks' sentences; it encodes any other in more tokens."""
        from vla_training.small_model.tokenizer import task_sentences, train_tokenizer

        config = self.config(robot, common.chunk or SmolVLAConfig.chunk)
        tokenizer = train_tokenizer(task_sentences(), self.vocabulary)
        names = robot.cameras, robot.image_size, robot.state, robot.actions
        write_untrained(folder, config, *names, tokenizer, common.seed)
