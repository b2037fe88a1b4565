"""Tests of training frames from any dataset, and a model fitted to the Bridge slice."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
from finetune_runs import write_noise

from vla_inference.errors import DataError
from vla_inference.openvla.config import ModelConfig
from vla_inference.openvla.preprocessing import ImagePreprocessor
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.types import Episode, Observation, Step, eef_delta_spec
from vla_training.datasets import EpisodeSet, open_dataset
from vla_training.evaluation.evaluate import evaluate
from vla_training.small_model.episode_frames import frames_from_episodes, frames_from_paths
from vla_training.small_model.train import SMALL, TrainConfig, Trainer

ROOT = Path(__file__).resolve().parents[3]
BRIDGE = Path(os.environ.get("VLA_TEST_DATA") or ROOT.parent / "shared" / "data") / "bridge_rlds"
needs_bridge = pytest.mark.skipif(
    not BRIDGE.is_dir(), reason=f"no {BRIDGE} (VLA_TEST_DATA names the folder of bridge_rlds)"
)


class InMemory(list, EpisodeSet):
    """Episodes of noise; lengths may be 0."""

    path, name = Path("memory"), "memory"

    def __init__(self, lengths=(3, 0, 2), side=40, text="go", spec=eef_delta_spec("rpy")):
        rng = np.random.default_rng(0)
        self.spec = spec

        def step():
            image = rng.integers(0, 256, (side, side + 8, 3), np.uint8)
            return Step(Observation({"cam": image}, text), rng.uniform(0, 1, 7))

        super().__init__(Episode([step() for _ in range(n)], spec) for n in lengths)

    def actions(self, index):
        return self[index].actions

    def cameras(self):
        return ["cam"]


def test_frames_know_their_episode_and_its_end():
    data = InMemory()
    frames = frames_from_episodes([data])
    assert frames.end.tolist() == [3, 3, 3, 5, 5]
    assert frames.episode.tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_allclose(frames.actions[3], data[2].actions[0])
    np.testing.assert_array_equal(frames.images[4], data[2].steps[1].observation.images["cam"])
    assert (frames.name, frames.spec.rotation) == ("memory", "rpy")


def test_images_are_squashed_as_a_policy_squashes_them():
    config = ModelConfig.from_json(SMALL)
    data = InMemory(lengths=(1,))
    frames = frames_from_episodes([data], size=config.encoders[0].image_size)
    preprocess = ImagePreprocessor(config)
    whole = preprocess([data[0].steps[0].observation.images["cam"]])
    np.testing.assert_array_equal(whole, preprocess([frames.images[0].numpy()]))


def test_what_cannot_be_trained_on_together_is_refused():
    with pytest.raises(DataError, match="don't mean the same"):
        other = InMemory(spec=eef_delta_spec("rotvec"))
        other.name = "other"
        frames_from_episodes([InMemory(), other])
    with pytest.raises(DataError, match=r"is \(30, 38\), the first was \(40, 48\)"):
        frames_from_episodes([InMemory(), InMemory(side=30)])
    with pytest.raises(DataError, match="has no instruction"):
        frames_from_episodes([InMemory(text=" ")])
    with pytest.raises(DataError, match="no images of camera 'top'; cameras: cam"):
        frames_from_episodes([InMemory()], ["top"])
    with pytest.raises(DataError, match="hold no frame"):
        frames_from_episodes([InMemory(lengths=(0,))])


def test_what_other_images_cost_is_told(tmp_path):
    data, told = write_noise(tmp_path / "demo.hdf5", episodes=1, length=2), []
    frames = frames_from_paths([data], size=32, report=told.append)
    assert frames.scene is None and "without the simulator's poses" in told[0]


@needs_bridge
def test_a_model_trained_on_the_bridge_slice_speaks_its_action_space(tmp_path):
    """A few steps only: whether it fits is for tools/fit_bridge.py to show."""
    tiny = copy.deepcopy(SMALL)
    tiny["vision_towers"][0].update(
        image_size=64, embed_dim=64, num_heads=2, mlp_hidden=64, depth=2
    )
    tiny["text_config"].update(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    data = open_dataset(BRIDGE)
    frames = frames_from_episodes([data], size=64)
    assert len(frames) == 200 and len(frames.sentences) == 4
    config = TrainConfig(batch_size=16, steps=4, shift=0, validation=0.0)
    trainer = Trainer(frames, config, "cpu", tiny)
    trainer.run()
    policy = OpenVLAPolicy.from_pretrained(trainer.export(tmp_path / "checkpoint"), device="cpu")
    result = evaluate(policy, data)
    assert result.action_space == "bridge_dataset" and len(result.frames) == 200
    assert result.spec == data.spec
    bounds = data.statistics()["action"]
    np.testing.assert_allclose(result.bounds.low, bounds["q01"])
    np.testing.assert_allclose(result.truth, np.concatenate([data.actions(i) for i in range(25)]))
