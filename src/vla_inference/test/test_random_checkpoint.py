"""Tests of random-weight models, in small and in published shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vla_inference.checkpoints.random_weights import (
    main,
    random_config,
    random_model,
    tensor_shapes,
    write_random_checkpoint,
)
from vla_inference.cli.benchmark.speed import random_policy
from vla_inference.errors import VlaError
from vla_inference.openvla.config import ModelConfig
from vla_inference.policies.registry import describe_policy

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
# Parameters without each vision encoder's last block, its norm and SigLIP's pooling head.
PUBLISHED = {"openvla-7b": 7.5e9, "openvla-oft-7b": 7.7e9, "openvla-v01-7b": 7.1e9}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_shapes_have_their_size(size):
    shapes = tensor_shapes(ModelConfig.from_json(random_config(size)))
    count = sum(int(np.prod(s)) for s in shapes.values())
    assert count == pytest.approx(PUBLISHED[size], rel=0.03)
    assert shapes["language_model.lm_head.weight"] == (32064, 4096)
    if size == "openvla-7b":
        assert shapes["projector.fc1.weight"] == (8704, 2176)
    if size == "openvla-v01-7b":
        assert shapes["projector.fc1.weight"] == (4096, 1152)
    if size == "openvla-oft-7b":
        assert shapes["action_head.model.fc1.weight"] == (4096, 28672)


def test_a_random_model_is_one_model_in_every_precision():
    config = random_config("tiny", "tokens")
    a, b = random_model(config), random_model(config, dtype=torch.bfloat16)
    for key, value in a.state_dict().items():
        assert torch.equal(value.bfloat16(), b.state_dict()[key])
    other = random_model(config, seed=1)
    assert not torch.equal(other.state_dict()["projector.fc1.weight"], a.projector.fc1.weight)


def test_a_random_policy_answers():
    chunk = random_policy("small", "tokens").predict_action(IMAGE, "lift it")
    assert np.isfinite(chunk.actions).all()


def test_random_checkpoints_from_the_command_line(tmp_path, capsys):
    assert main([str(tmp_path / "m"), "--head", "tokens"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "m")
    assert describe_policy(tmp_path / "m").values["dtypes"] == ["BF16"]
    assert main([str(tmp_path / "n"), "--size", "huge"]) == 2
    assert "known: tiny, small, openvla-7b" in capsys.readouterr().err
    with pytest.raises(VlaError, match="known: float32"):
        write_random_checkpoint(tmp_path / "n", dtype="int4")
