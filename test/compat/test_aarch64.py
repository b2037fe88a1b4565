"""The shipped model on another processor's instructions: aarch64, as of a Jetson or Raspberry Pi.

QEMU runs them on this machine, about a hundred times slower than a processor that has them.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from elsewhere import elsewhere

from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.types import Observation

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "stack-small"
ANSWER = """
import json, platform, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.types import Observation

_, _, model, dtype, engine, images = sys.argv
policy = OpenVLAPolicy.from_pretrained(model, device="cpu", dtype=dtype, engine=engine)
actions = [
    policy.predict_action(Observation({"image": image}, "stack the red block on the green block"))
    for image in np.load(images)
]
print(json.dumps({
    "machine": platform.machine(),
    "engine": policy.engine.name,
    "actions": np.stack([chunk.actions for chunk in actions]).tolist(),
}))
"""


@pytest.mark.parametrize(
    ("dtype", "engine", "tolerance", "count"),
    [("float32", "torch", 1e-5, 2), ("float32", "plain", 1e-5, 2), ("bfloat16", "torch", 2e-2, 1)],
)
def test_the_shipped_model_answers_the_same_on_aarch64(tmp_path, dtype, engine, tolerance, count):
    cells = np.random.default_rng(0).integers(0, 256, (count, 7, 7, 3), np.uint8)
    images = cells.repeat(32, 1).repeat(32, 2)
    np.save(tmp_path / "images.npy", images)
    package = ROOT / "src" / "vla_inference"
    given = (package, MODEL, dtype, engine, tmp_path / "images.npy")
    there = elsewhere("VLA_AARCH64_PYTHON", tmp_path, ANSWER, *given)
    assert there["machine"] == "aarch64" and there["engine"] == engine
    policy = OpenVLAPolicy.from_pretrained(MODEL, device="cpu", dtype=dtype, engine=engine)
    sentence = "stack the red block on the green block"
    here = [policy.predict_action(Observation({"image": i}, sentence)).actions for i in images]
    torch.testing.assert_close(
        np.array(there["actions"]), np.stack(here).astype(float), rtol=0, atol=tolerance
    )
