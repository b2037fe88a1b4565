"""Tests of LeRobot's families in closed loop, served, and in the inference node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import IMAGE, inference_graphs
from lerobot_reference import pi_weight, write_checkpoint
from model_server import running
from sensor_msgs.msg import JointState

from vla_inference.policies.act.config import ACTConfig
from vla_inference.policies.act.untrained import write_untrained
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.lerobot.checkpoint import ACTION, STATE, LeRobotCheckpoint
from vla_inference.policies.lerobot.policy import FlowPolicy
from vla_inference.policies.lerobot.save import IMAGENET, column_statistics, fit, save
from vla_inference.policies.octo.config import OctoConfig
from vla_inference.policies.octo.untrained import write_untrained as write_untrained_octo
from vla_inference.policies.registry import load_policy
from vla_inference.ros.messages import msg_to_chunk
from vla_inference.types import Observation, eef_delta_spec
from vla_sim_bridge.evaluation.rollout import rollout
from vla_training.small_model.tokenizer import train_tokenizer

FAMILIES = ("act", "octo", "pi05")
TASK = "stack the red block on the green block"
JOINTS = np.linspace(-1, 1, 8, dtype=np.float32)
CPU = LoadOptions(device="cpu")


def write_fitted(folder: Path, family: str) -> Path:
    """A small checkpoint of random weights, for the simulation's camera, state and actions."""
    base = folder.parent / "base"
    if family == "act":
        sizes = ACTConfig(1, 8, 7, 8, width=32, heads=4, mlp=48)
        write_untrained(base, sizes, ("front",), (64, 64))
    elif family == "octo":
        config = OctoConfig(1, 8, 7, 8, (64, 64), 64, 1, 1, 128, 300)
        write_untrained_octo(base, config, ("front",), (64, 64), train_tokenizer([TASK], 300))
    else:
        write_checkpoint(base, family, pi_weight, bos=True)
    start, rng = LeRobotCheckpoint.read(base, fitted=False), np.random.default_rng(0)
    statistics = {
        ACTION: column_statistics(rng.normal(0, 0.005, (50, 7))),
        STATE: column_statistics(rng.normal(0, 1, (50, 8))),
    }
    if family == "act":
        statistics[start.image_features[0]] = IMAGENET
    fitted = fit(start, ("agentview",), statistics, eef_delta_spec())
    folder.mkdir()
    save(folder, fitted, statistics, {}, str)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rollout_plays_it(family, tmp_path):
    model = write_fitted(tmp_path / "model", family)
    (result,) = rollout(str(model), "Stack_D0", 1, horizon=6, size=64, device="cpu")
    assert result.outcome == "timeout" and result.frames == 6


@pytest.mark.parametrize("family", FAMILIES)
def test_it_answers_alike_when_it_is_served(family, tmp_path):
    model = write_fitted(tmp_path / "model", family)
    seen = Observation({"agentview": IMAGE}, TASK, JOINTS)
    with running(lambda: load_policy(model, CPU)) as server:
        there = load_policy(f"openpi:{server.url}")
        here = load_policy(model, CPU)
        for policy in (server.policy, here):
            if isinstance(policy, FlowPolicy):
                policy.seed(0)  # whatever it drew when it was warmed up
        found = there.act(seen)
    np.testing.assert_allclose(found.actions, here.act(seen).actions, atol=1e-6)
    assert found.spec == here.action_spec() == eef_delta_spec()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_node_answers_with_it(family, tmp_path):
    model, names = write_fitted(tmp_path / "model", family), [f"joint{i}" for i in range(8)]
    given = {"model": str(model), "state": ["joints"], "joint_names": names, "device": "cpu"}
    with inference_graphs(instruction=TASK, **given) as graph:
        g = graph(max_image_age=10.0)
        joints = g.client.create_publisher(JointState, "joint_states", 10)

        def look() -> None:
            image, state = g.frame(), JointState(name=names, position=JOINTS.tolist())
            state.header.stamp = image.header.stamp
            joints.publish(state)
            g.images.publish(image)

        g.until(lambda: look() or g.chunks, "an answer")
        msg = g.chunks[0]
    chunk, policy = msg_to_chunk(msg), load_policy(model, CPU)
    assert msg.model == "model" and chunk.spec == policy.action_spec()
    assert chunk.actions.shape == (policy.chunk, 7) and np.isfinite(chunk.actions).all()
    if family == "act":  # which draws nothing at random
        wanted = policy.act(Observation({"agentview": IMAGE}, TASK, JOINTS)).actions
        np.testing.assert_allclose(chunk.actions, wanted, atol=1e-6)
