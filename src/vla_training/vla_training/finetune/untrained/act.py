"""An untrained ACT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vla_inference.errors import VlaError
from vla_inference.options import Holds, option
from vla_inference.policies.act.backbone import VARIANTS
from vla_inference.policies.act.config import ACTConfig
from vla_inference.policies.act.untrained import write_untrained
from vla_training.finetune.untrained.robot import Robot, Untrained


@dataclass(frozen=True, kw_only=True)
class UntrainedACT:
    """Sizes of a new ACT; the published ones if left out."""

    width: int = option(
        ACTConfig.width, "ACT: numbers of a token; a multiple of 4 and of --heads.", low=4
    )
    heads: int = option(ACTConfig.heads, "ACT: attention heads.", low=1)
    mlp: int = option(ACTConfig.mlp, "ACT: width inside the feed-forward layers.", low=1)
    encoder_layers: int = option(ACTConfig.encoder_layers, "ACT: layers of the encoder.", low=1)
    decoder_layers: int = option(ACTConfig.decoder_layers, "ACT: layers of the decoder.", low=1)
    vae_layers: int = option(
        ACTConfig.vae_layers, "ACT: layers of the latent's encoder; 0: there is no latent.", low=0
    )
    backbone: str = option(ACTConfig.backbone, "ACT: vision backbone.", choices=tuple(VARIANTS))
    backbone_weights: str = option(
        "",
        "ACT: its weights, a safetensors file with torchvision's names; default: random.",
        holds=Holds.PATH,
    )

    def check(self) -> None:
        if self.width % self.heads or self.width % 4:
            raise VlaError(
                f"--width is {self.width}, --heads {self.heads}",
                "the first must be a multiple of the second, and of 4",
            )

    def write(self, folder: Path, robot: Robot, common: Untrained) -> None:
        config = ACTConfig(
            cameras=len(robot.cameras),
            state_dim=robot.state,
            action_dim=robot.actions,
            chunk=common.chunk or ACTConfig.chunk,
            backbone=self.backbone,
            width=self.width,
            heads=self.heads,
            mlp=self.mlp,
            encoder_layers=self.encoder_layers,
            decoder_layers=self.decoder_layers,
            vae_layers=self.vae_layers,
        )
        weights = Path(self.backbone_weights) if self.backbone_weights else None
        write_untrained(folder, config, robot.cameras, robot.image_size, common.seed, weights)
