"""Tests of a policy family from another package: found, described, run by node and commands.

The package is test/plugins/wave_policy, installed as a dist-info folder beside it says.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from bags import write_bags
from demonstrations import write_set
from graphs import IMAGE, inference_graphs
from lifecycle_msgs.msg import Transition
from other_package import install
from PIL import Image

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.cli.main import main
from vla_inference.errors import CheckpointError, VlaError
from vla_inference.policies.base import LoadOptions, Needs
from vla_inference.policies.registry import (
    check_policy,
    families,
    find_family,
    load_policy,
)
from vla_inference.ros import qos
from vla_inference.ros.messages import msg_to_chunk
from vla_inference.system import plugins
from vla_inference.types import Observation, joint_spec
from vla_msgs.msg import ModelInfo
from vla_msgs.srv import LoadModel
from vla_sim_bridge.evaluation.rollout import rollout


@pytest.fixture
def package(monkeypatch):
    yield from install(monkeypatch)


def write_wave(folder: Path, **changes) -> Path:
    folder.mkdir()
    config = {"model_type": "wave", "chunk": 6, "reach": 0.01, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def wave(package, tmp_path):
    return write_wave(tmp_path / "hello")


# -- the registry -----------------------------------------------------------------------------


def test_a_family_is_found_by_the_checkpoints_own_model_type(wave):
    contract = check_policy(wave)
    assert contract.needs == Needs(cameras=("image",)) and contract.chunk == 6
    policy = load_policy(wave)
    assert type(policy).__module__ == "wave_policy.family" and policy.name == "hello"
    assert {"openvla", "wave"} <= set(families())


def test_a_policy_is_warmed_up_with_what_it_needs():
    needs = Needs(images=4, state=3, image_size=(32, 48), cameras=("top", "wrist"), history=1)
    grey = needs.grey()
    assert list(grey.images) == ["top", "wrist", "top-1", "wrist-1"]
    assert {i.shape for i in grey.images.values()} == {(32, 48, 3)} and grey.state.shape == (3,)
    assert len(Needs(images=2).grey().images) == 2 and Needs().grey().state is None


def test_lerobots_word_for_the_type_is_understood(package, tmp_path):
    folder = write_wave(tmp_path / "new", type="wave")
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load_policy(folder).chunk == 6


def test_a_model_served_elsewhere_goes_to_the_family_that_its_address_names(wave):
    family, where = find_family("wave:ws://robot:8000")
    assert family.__name__ == "wave_policy.family" and where == "ws://robot:8000"
    with pytest.raises(VlaError, match=r"no policy family 'surf'; known: .*openvla, .*wave"):
        find_family("surf:ws://robot:8000")


def test_an_unknown_type_names_the_families_there_are(package, tmp_path):
    known = "act, octo, openpi, openvla, pi0, pi05, smolvla, wave"
    with pytest.raises(CheckpointError, match=f"type 'surf', .*: {known}; other pack"):
        load_policy(write_wave(tmp_path / "a", model_type="surf"))
    with pytest.raises(CheckpointError, match=f"no model_type; say one; known: {known}"):
        load_policy(write_wave(tmp_path / "b", model_type=None))


def test_without_the_package_its_checkpoints_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="type 'wave', which no installed family runs"):
        load_policy(write_wave(tmp_path / "hello"))


def test_what_a_family_does_not_know_is_refused_by_name(wave):
    with pytest.raises(VlaError, match=r"family wave take no engine \('torch' was given\)"):
        load_policy(wave, LoadOptions(engine="torch"))
    assert load_policy(wave, LoadOptions(device="cpu", engine="plain")).chunk == 6
    with pytest.raises(VlaError, match="model hello has one action space, 'bridge' was requested"):
        load_policy(wave).in_space("bridge")


def test_two_packages_that_bring_one_name_and_one_that_is_broken(package, monkeypatch):
    def point(value):
        return EntryPoint("wave", value, "vla.policies")

    monkeypatch.setattr(plugins, "entry_points", lambda group: [point("a.b"), point("c.d")])
    with pytest.raises(VlaError, match=r"two packages bring 'wave' of vla.policies \(a.b and c.d"):
        families()
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point("no_such_package.family")])
    with pytest.raises(VlaError, match=r"no_such_package.family .* cannot be imported"):
        find_family("wave:ws://robot")


# -- commands ---------------------------------------------------------------------------------


def test_info_describes_it(wave, capsys):
    assert main(["info", str(wave)]) == 0
    assert "  answer      6 steps, waving 0.01 m at most" in capsys.readouterr().out
    assert main(["info", str(wave), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "wave"


def test_infer_runs_it_on_images(wave, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for i in range(2):
        Image.fromarray(IMAGE // (i + 1)).save(tmp_path / "images" / f"{i}.png")
    given = ["infer", "--model", str(wave), "--source", str(tmp_path / "images")]
    assert main([*given, "--instruction", "swim to me", "--json"]) == 0
    told = capsys.readouterr()
    first, second = (json.loads(line)["actions"] for line in told.out.splitlines())
    assert len(first) == 6 and 0 < second[0][0] < first[0][0] < 0.01
    assert "the model was trained without: swim" in told.err


def test_eval_measures_it_in_the_datasets_own_range(wave, tmp_path, capsys):
    data = write_set(tmp_path / "demo.hdf5")
    given = ["eval", "--model", str(wave), "--dataset", str(data), "--max-steps", "5"]
    assert main([*given, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["model"] == "hello" and told["mean"]["timesteps"] == 5
    assert any("accuracy is in the dataset's own" in note for note in told["notes"])
    assert main([*given, "--action-space", "bridge"]) == 2
    assert "has one action space" in capsys.readouterr().err


def test_validate_sets_it_beside_recorded_bags(wave, tmp_path, capsys):
    bags = write_bags(tmp_path / "bags", (3,))
    assert main(["validate", str(bags), "--model", str(wave), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["model"] == "hello" and told["mean"]["timesteps"] == 3


def test_what_is_for_openvla_alone_says_so(wave, tmp_path, capsys):
    made = ["--engine", "onnx", "--output", str(tmp_path / "out")]
    assert main(["compile", str(wave), *made]) == 2
    assert "is a model of type 'wave', this is for OpenVLA's alone" in capsys.readouterr().err


# -- the graph --------------------------------------------------------------------------------


@pytest.fixture
def graph():
    with inference_graphs(instruction="wave") as make:
        yield make


def test_the_node_answers_with_it(wave, graph):
    g = graph(model=str(wave))
    g.meet()
    chunk = g.answer(g.frame())
    policy = g.node.policy
    wanted = policy.act(Observation({"image": IMAGE}, "wave")).actions
    np.testing.assert_array_equal(msg_to_chunk(chunk).actions, wanted)
    assert chunk.model == "hello" and chunk.header.frame_id == "base"
    assert g.change(Transition.TRANSITION_DEACTIVATE)
    assert g.change(Transition.TRANSITION_CLEANUP)
    g.until(lambda: policy.closed, "the policy's end")


def test_the_node_publishes_joints_that_its_policy_speaks_of(package, graph, tmp_path):
    names = ["shoulder_pan", "shoulder_lift", "elbow_flex"]
    g = graph(model=str(write_wave(tmp_path / "joints", joints=names)), frame_id="panda_link0")
    infos: list[ModelInfo] = []
    g.client.create_subscription(ModelInfo, "inference/model", infos.append, qos.LATCHED)
    g.meet()
    msg = g.answer(g.frame())
    chunk = msg_to_chunk(msg)
    wanted = g.node.policy.act(Observation({"image": IMAGE}, "wave"))
    np.testing.assert_array_equal(chunk.actions, wanted.actions)
    assert chunk.spec == wanted.spec == joint_spec({"arm": names}, ("gripper",))
    assert msg.header.frame_id == msg.parts[0].frame_id == ""
    g.until(lambda: infos, "what the model is")
    assert [(p.name, p.kind) for p in infos[-1].parts] == [
        ("arm", "joint_position"),
        ("gripper", "gripper"),
    ]
    assert list(infos[-1].parts[0].dims) == names and list(infos[-1].parts[0].units) == ["rad"] * 3


def test_the_simulation_refuses_joints_by_name(package, tmp_path):
    model = write_wave(tmp_path / "joints", joints=["a", "b"])
    with pytest.raises(VlaError, match=r"arm \(joint_position\) cannot be executed"):
        rollout(str(model), "Stack_D0", 1, horizon=8, size=64)


def test_the_node_refuses_cameras_that_it_does_not_take(wave, graph):
    g = graph(start=False, model=str(wave), cameras=["image", "wrist"])
    assert not g.change(Transition.TRANSITION_CONFIGURE)
    assert "model hello takes 1 images, parameters 'cameras' and 'history' give 2" in (
        g.node.failure
    )


def test_the_node_changes_from_one_family_to_another(wave, graph, tmp_path):
    write_random_checkpoint(tmp_path / "tiny")
    g = graph(model=str(tmp_path / "tiny"), model_root=str(tmp_path), num_threads=1)
    g.meet()
    answer = g.call(LoadModel, "inference/load_model", LoadModel.Request(model="hello"))
    assert answer.success and answer.message == "chunk: 8 steps -> 6 steps"
    g.chunks.clear()
    assert len(msg_to_chunk(g.answer(g.frame()))) == 6


# -- the closed loop --------------------------------------------------------------------------


def test_a_rollout_plays_it(wave):
    (result,) = rollout(str(wave), "Stack_D0", 1, horizon=8, size=64)
    assert result.outcome == "timeout" and result.frames == 8


def test_the_rollout_command_plays_it_over_ros(wave, tmp_path):
    command = [sys.executable, "-m", "vla_inference.cli.main", "rollout", "--model", str(wave)]
    more = ["--episodes", "1", "--horizon", "8", "--record", "0", "--json"]
    size = ["--width", "64", "--height", "64", "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, *more, *size], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["episodes"] == 1
    refused = subprocess.run(
        [*command, "--execute-steps", "7"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2 and "7" in refused.stderr
