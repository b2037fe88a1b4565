"""Tests of every engine that runs on this machine against the plain path."""

from __future__ import annotations

import importlib
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from vla_inference.checkpoints.quantize import quantize_checkpoint
from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.engines import ENGINES, LANGUAGES, VISIONS, usual_engine
from vla_inference.errors import VlaError
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.quantization import get_format
from vla_inference.types import Observation

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEVERAL = 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("engines")
    return {
        h: write_random_checkpoint(base / h, "small", h)
        for h in ("tokens", "parallel", "l1", "l1-two-cameras")
    }


def answers(policy: OpenVLAPolicy) -> tuple[np.ndarray, np.ndarray | None]:
    head, size = policy.config.head, policy.config.encoders[0].image_size
    actions, tokens = [], []
    for seed in range(SEVERAL):
        rng = np.random.default_rng(seed)
        shape = (head.num_images, size, size, 3)
        images = {f"c{i}": p for i, p in enumerate(rng.integers(0, 256, shape, np.uint8))}
        text = "go" * (1 + seed % 3)  # three lengths of context
        seen = Observation(images, text, rng.uniform(-1, 1, head.proprio_dim))
        chunk = policy.predict_action(seen)
        actions.append(chunk.actions)
        tokens.append(chunk.tokens)
    return np.stack(actions), None if tokens[0] is None else np.stack(tokens)


@pytest.mark.parametrize("head", ["tokens", "parallel", "l1-two-cameras"])
def test_the_torch_engine_answers_as_the_plain_one(folders, head):
    plain, fast = (
        OpenVLAPolicy.from_pretrained(folders[head], device=DEVICE, dtype="float32", engine=engine)
        for engine in ("plain", "torch")
    )
    (a, ids), (b, same) = answers(plain), answers(fast)
    statistics = plain.config.norm_stats["random"]["action"]
    span = np.subtract(statistics["q99"], statistics["q01"])
    if ids is None:
        assert np.abs((a - b) / span).max() < 1e-3
    else:
        # A tie under rounding may fall the other way, and what follows it with it.
        assert (ids == same).mean() > 0.95
        assert (
            fast.predict_batch([np.zeros((64, 64, 3), np.uint8)] * 2, "go")[0].tokens is not None
        )


@pytest.mark.parametrize("format", ["int8", "int4-g32"])
def test_the_torch_engine_on_quantised_weights(folders, tmp_path, format):
    """Inputs may be rounded there as well, by which random weights' answers move a little."""
    quantize_checkpoint(folders["l1"], tmp_path / "q", get_format(format), "rtn")
    plain, fast = (
        OpenVLAPolicy.from_pretrained(
            tmp_path / "q", device=DEVICE, dtype="float32", engine=engine
        )
        for engine in ("plain", "torch")
    )
    (a, _), (b, _) = answers(plain), answers(fast)
    statistics = plain.config.norm_stats["random"]["action"]
    span = np.subtract(statistics["q99"], statistics["q01"])
    bound = 0.03 if DEVICE == "cpu" else 0.2  # there inputs have the three bits of FP8
    assert np.sqrt((((a - b) / span) ** 2).mean()) < bound


def test_the_fast_engine_is_the_usual_one_where_it_can_run(monkeypatch):
    assert usual_engine("cpu") == "torch"
    assert usual_engine("cpu", draft=True) == "plain"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no Triton
    assert usual_engine("cuda:0") == "plain"
    assert usual_engine("cpu") == "torch"


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_every_engine_is_where_the_registry_says():
    for known in (ENGINES, VISIONS, LANGUAGES):
        for place in known.values():
            for device in ("cpu", "cuda"):
                module, name = place.format(device=device).split(":")
                assert callable(getattr(importlib.import_module(module), name))


def test_options_that_contradict_are_refused_before_weights_are_read(folders, tmp_path):
    with pytest.raises(VlaError, match="no engine 'warp'; known: plain, torch"):
        OpenVLAPolicy.from_pretrained(folders["l1"], engine="warp")
    with pytest.raises(VlaError, match=r"'tvm:x' brings the language model's weights"):
        OpenVLAPolicy.from_pretrained(folders["l1"], engine="tvm:x", quantization="int8")
