"""Untrained checkpoints for a dataset's robot, which training from scratch begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_inference.errors import DataError, VlaError
from vla_inference.options import Holds, check_options, option
from vla_inference.policies.act.backbone import VARIANTS
from vla_inference.policies.act.config import ACTConfig
from vla_inference.policies.act.untrained import write_untrained
from vla_inference.system.files import Staged
from vla_training.datasets import EpisodeSet


@dataclass(frozen=True, kw_only=True)
class UntrainedACT:
    """Sizes of a new ACT; the published ones if left out."""

    chunk: int = option(ACTConfig.chunk, "Steps of an answer.", low=1)
    width: int = option(
        ACTConfig.width, "Numbers of a token; a multiple of 4 and of --heads.", low=4
    )
    heads: int = option(ACTConfig.heads, "Attention heads.", low=1)
    mlp: int = option(ACTConfig.mlp, "Width inside the feed-forward layers.", low=1)
    encoder_layers: int = option(ACTConfig.encoder_layers, "Layers of the encoder.", low=1)
    decoder_layers: int = option(ACTConfig.decoder_layers, "Layers of the decoder.", low=1)
    backbone: str = option(ACTConfig.backbone, "Vision backbone.", choices=tuple(VARIANTS))
    backbone_weights: str = option(
        "",
        "Its weights: a safetensors file with torchvision's names; default: random.",
        holds=Holds.PATH,
    )
    seed: int = option(0, "Seed of the random weights.")


def write_act(
    options: UntrainedACT, data: EpisodeSet, cameras: Sequence[str], folder: Path
) -> None:
    """Writes an ACT for the robot of a dataset.

    cameras: those it sees, in this order; empty: all. Raises DataError if one is missing or
    their images are of several sizes.
    """
    check_options(options)
    if options.width % options.heads or options.width % 4:
        raise VlaError(
            f"--width is {options.width}, --heads {options.heads}",
            "the first must be a multiple of the second, and of 4",
        )
    seen = data[0].steps[0].observation
    names = list(cameras) or list(seen.images)
    if missing := [c for c in names if c not in seen.images]:
        raise data.lacks(missing[0])
    sizes = {seen.images[c].shape[:2] for c in names}
    if len(sizes) != 1:
        raise DataError(
            f"{data.path} has {'images of several sizes' if sizes else 'no images'}",
            "name cameras of one size by --cameras, or convert it with --width and --height",
        )
    height, width = sizes.pop()
    o = options
    config = ACTConfig(
        cameras=len(names),
        state_dim=0 if seen.state is None else len(seen.state),
        action_dim=len(data.spec),
        chunk=o.chunk,
        backbone=o.backbone,
        width=o.width,
        heads=o.heads,
        mlp=o.mlp,
        encoder_layers=o.encoder_layers,
        decoder_layers=o.decoder_layers,
    )
    weights = Path(o.backbone_weights) if o.backbone_weights else None
    with Staged(folder) as staged:
        write_untrained(staged, config, names, (height, width), o.seed, weights)
