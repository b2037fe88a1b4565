"""`python -m lerobot_policy_vla CHECKPOINT FOLDER`: write what LeRobot's --policy.path takes."""

from __future__ import annotations

import argparse
from pathlib import Path

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_policy_vla.configuration_vla import VLAConfig
from lerobot_policy_vla.modeling_vla import CAMERA
from lerobot_policy_vla.processor_vla import make_vla_pre_post_processors
from vla_inference.policies.registry import check_policy


def write_pretrained(checkpoint: str, folder: Path, **settings: object) -> Path:
    """Writes a folder that names the checkpoint and its features; the weights stay where they are.

    settings: more fields of `VLAConfig`. Raises VlaError if there is no such checkpoint.
    """
    if Path(checkpoint).is_dir():
        checkpoint = str(Path(checkpoint).resolve())
    contract = check_policy(checkpoint)
    needs = contract.needs
    inputs = {}
    if needs.image_size is not None:
        visual = PolicyFeature(FeatureType.VISUAL, (3, *needs.image_size))
        inputs = {CAMERA + name: visual for name in needs.cameras}
    if inputs and needs.state:
        inputs[OBS_STATE] = PolicyFeature(FeatureType.STATE, (needs.state,))
    config = VLAConfig(
        checkpoint=checkpoint,
        input_features=inputs,  # where they are not all known, LeRobot takes the environment's
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (len(contract.spec),))},
        **settings,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    for processor in make_vla_pre_post_processors(config):
        processor.save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="lerobot_policy_vla", description=write_pretrained.__doc__
    )
    parser.add_argument("checkpoint", help="folder, Hub id or NAME:ADDRESS")
    parser.add_argument("folder", type=Path, help="folder to write")
    given = parser.parse_args()
    print(write_pretrained(given.checkpoint, given.folder))


if __name__ == "__main__":
    main()
