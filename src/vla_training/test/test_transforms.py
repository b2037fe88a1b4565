"""Training sees images and states exactly as the policy does that is made of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from finetune_runs import write_noise

from vla_inference.checkpoints.random_weights import byte_tokenizer, random_config, random_model
from vla_inference.openvla.config import ModelConfig
from vla_inference.policies.normalisation import Normalisation
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_training.finetune.families.openvla.format import OpenVLAFormat
from vla_training.loader.augment import Pixels
from vla_training.loader.frame_index import DatasetSource, index_frames
from vla_training.loader.mixture import Samples, mix


def caught(policy: OpenVLAPolicy) -> dict[str, torch.Tensor]:
    """Catches what the policy's engine is given to observe."""
    seen: dict[str, torch.Tensor] = {}
    observe = policy.engine.observe

    def catch(ids, images, proprio=None):
        pixels = policy.engine._preprocess.normalise(images[0])
        seen.update(ids=ids[0], pixels=pixels, proprio=proprio)
        return observe(ids, images, proprio)

    policy.engine.observe = catch
    return seen


@pytest.mark.parametrize("strategy", ["resize-naive", "resize-crop", "letterbox"])
@pytest.mark.parametrize("crop", [0.0, 0.9])
@pytest.mark.parametrize("side", [(64, 64), (48, 80)])
def test_a_sample_is_what_the_policy_sees(tmp_path, strategy, crop, side):
    data = write_noise(tmp_path / "noise.hdf5", episodes=2, length=4, side=side)
    raw = {
        **random_config("tiny", "l1-two-cameras"),
        "image_resize_strategy": strategy,
        "center_crop": crop or False,
    }
    config = ModelConfig.from_json(raw)
    proprio = config.head.proprio_dim > 0
    source = DatasetSource(str(data))
    index = index_frames(source, tmp_path / "index", proprio=proprio)
    mixture, _ = mix([source], [index], 7, shared="noise")
    raw["norm_stats"] = mixture.statistics
    policy = OpenVLAPolicy(random_model(raw), byte_tokenizer(), "cpu", torch.float32)
    seen = caught(policy)
    form = OpenVLAFormat(policy.config, byte_tokenizer(), mixture.statistics, mixture.spaces)
    samples = Samples(mixture, form, 0, augmented=False)
    episode = source.open()[1]
    for step in (0, 3):
        sample = samples.sample_of(0, 4 + step)
        policy.predict_action(episode.steps[step].observation, action_space="noise")
        images = torch.from_numpy(sample["images"])[None]
        pixels = Pixels(policy.config)(images, None, torch.float32)[0]
        if crop:  # of bytes there, of floats here
            scale = max(max(e.std) for e in config.encoders)
            assert float((pixels - seen["pixels"]).abs().max()) * scale < 1.01 / 255
        else:
            assert torch.equal(pixels, seen["pixels"])
        assert sample["ids"] == seen["ids"].tolist()
        if proprio:
            state = torch.from_numpy(sample["proprio"])
            assert torch.equal(state, seen["proprio"][0].float())


def test_targets_come_back_as_the_actions_they_were(tmp_path):
    config = ModelConfig.from_json(random_config("tiny", "l1"))
    source = DatasetSource(str(write_noise(tmp_path / "noise.hdf5", episodes=2, length=4)))
    mixture, _ = mix([source], [index_frames(source, tmp_path / "index")], 7, shared="noise")
    form = OpenVLAFormat(config, byte_tokenizer(), mixture.statistics, mixture.spaces)
    samples = Samples(mixture, form, 0, augmented=False)
    sample, actions = samples.sample_of(0, 4), source.open().actions(1)
    bounds = Normalisation.from_statistics(mixture.statistics["noise"]["action"])
    found = bounds.denormalise(sample["targets"])[: len(actions)]
    within = (np.abs(sample["targets"]) < 1).all(1)[: len(actions)]
    assert sample["inside"].sum() == min(len(actions), config.head.chunk) and within.any()
    np.testing.assert_allclose(found[within], actions[: len(found)][within], atol=1e-6)
