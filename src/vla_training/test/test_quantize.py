"""Tests of `vla quantize` with a calibration dataset, and of what it refuses."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.episodes.hdf5 import write_columns, write_header
from vla_inference.episodes.robosuite import to_robosuite
from vla_inference.errors import VlaError
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_training.cli.quantize import quantize


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(1)
    with h5py.File(tmp_path / "demo.hdf5", "w") as file:
        write_header(file, "Stack_D0", 2, {})
        for i, n in enumerate((5, 3)):
            actions = rng.uniform(-0.02, 0.02, (n, 7))
            actions[:, 6] = 1.0
            data = {
                "actions": to_robosuite(actions),
                "states": np.zeros((n, 3)),
                "rewards": np.zeros(n),
                "dones": np.zeros(n),
                "instructions": ["go"] * n,
                "obs": {"agentview_image": rng.integers(0, 256, (n, 64, 64, 3), np.uint8)},
            }
            write_columns(file.create_group(f"data/demo_{i}"), data)
    return tmp_path / "demo.hdf5"


@pytest.mark.parametrize("samples", [4, 100])
def test_gptq_takes_frames_of_a_data_set(tmp_path, data, capsys, samples):
    model = str(write_random_checkpoint(tmp_path / "ck", head="tokens"))
    output = tmp_path / "q"
    quantize(
        model,
        output,
        "int4-g32",
        "gptq",
        calibration=data,
        samples=samples,
        device="cpu",
        as_json=True,
    )
    told = json.loads(capsys.readouterr().out)
    assert told["method"] == "gptq" and 0 < told["bytes"] < told["bytes_before"]
    policy = OpenVLAPolicy.from_pretrained(output, device="cpu")
    assert policy.quantization == "int4-g32"
    assert policy.warm_up() > 0
    nearest = tmp_path / "r"
    quantize(model, nearest, "int4-g32", "rtn", device="cpu")
    weights = [(p / "model.safetensors").read_bytes() for p in (output, nearest)]
    assert len(weights[0]) == len(weights[1]) and weights[0] != weights[1]


def test_gptq_and_a_data_set_go_together(tmp_path, data):
    model = str(write_random_checkpoint(tmp_path / "ck"))
    with pytest.raises(VlaError, match="go together"):
        quantize(model, tmp_path / "q", method="gptq")
    with pytest.raises(VlaError, match="go together"):
        quantize(model, tmp_path / "q", calibration=data)
    with pytest.raises(VlaError, match="unknown rounding method 'up'"):
        quantize(model, tmp_path / "q", "int8", method="up", device="cpu")
    with pytest.raises(VlaError, match="GPTQ has no grid for fp8"):
        quantize(model, tmp_path / "q", "fp8", "gptq", calibration=data, device="cpu")
    assert not (tmp_path / "q").exists()
