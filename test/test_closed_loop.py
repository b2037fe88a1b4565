"""Tests of `vla rollout`: both nodes from the launch file, real topics, a random-weight model."""

from __future__ import annotations

import json
import os
import signal
from functools import partial

import pytest
from graphs import domain, processes

from vla_inference.checkpoints.random_weights import write_random_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("model"), head="l1")


@pytest.fixture
def vla(tmp_path, monkeypatch):
    """Start `vla WORDS...` in a ROS domain of its own, in an empty folder."""
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "log"))
    with processes(domain(50)) as start:
        yield partial(start, "-m", "vla_inference.cli.main", cwd=tmp_path)


SMALL = ("--horizon", 8, "--record", 1, "--width", 96, "--height", 64)


def test_two_episodes_and_their_results_as_json(vla, checkpoint, tmp_path):
    process = vla("rollout", "--model", checkpoint, "--episodes", 2, "--seed", 3, "--json", *SMALL)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    found = json.loads(out)  # nothing else is on standard output
    assert found["complete"] and found["episodes"] == 2 and found["seed"] == 3
    assert found["checkpoint"] == str(checkpoint)
    assert found["latency_ms"]["count"] == found["frames_published"] == 4
    assert {"preprocess", "vision", "language"} <= set(found["stage_ms_median"])
    assert "episode 2/2" in err  # progress goes there
    (folder,) = (tmp_path / "results").iterdir()
    assert json.loads((folder / "results.json").read_text()) == found
    assert (folder / "report.html").exists() and (folder / "episodes.mp4").exists()


@pytest.mark.slow
def test_table_paths_and_a_success_rate_that_is_too_low(vla, checkpoint, tmp_path):
    process = vla(
        "rollout",
        "--model",
        checkpoint,
        "--episodes",
        1,
        "--output",
        "out",
        "--min-success",
        0.5,
        "--real-time",
        *SMALL,
    )
    out, err = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "success 0.000 is below 0.5" in err
    assert "0 of 1 = 0.0 %" in out and "out/report.html" in out and "out/results.json" in out
    again = vla("rollout", "--model", checkpoint, "--output", "out")
    assert again.wait(100) == 2
    assert "contains results already" in again.stderr.read()


def test_a_damaged_checkpoint_ends_it_all_at_once(vla, checkpoint, tmp_path):
    damaged = write_random_checkpoint(tmp_path / "damaged", head="l1")
    os.truncate(damaged / "model.safetensors", 5000)
    process = vla("rollout", "--model", damaged, "--output", "out")
    _, err = process.communicate(timeout=100)  # a missing answer's would be 120 s
    assert process.returncode not in (0, 130)
    assert "model.safetensors" in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_what_was_measured_is_kept_when_it_is_stopped(vla, checkpoint, tmp_path, number):
    process = vla("rollout", "--model", checkpoint, "--episodes", 500, "--output", "out", *SMALL)
    for line in process.stdout:
        if "episode 2/500" in line:
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 128 + number and "Traceback" not in err
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert not found["complete"] and found["episodes"] >= 2 and found["ended"] == "interrupted"
    assert "incomplete" in out and "out/report.html" in out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--model", "nowhere"), "nowhere does not exist; give --model FOLDER"),
        (("--model", "."), "has no config.json"),
        (("--episodes", "0"), "0 episodes were requested; ask for at least 1"),
        (("--task", "Lift_D0", "--language", "free"), "Lift_D0 has no free sentences; use"),
        (
            ("--execute-steps", "9"),
            "execute_steps is 9, but the model's chunks have 8; give 1 to 8",
        ),
        (("--execute-steps", "4", "--real-time"), "--execute-steps is of lock step; leave it out"),
        (("--mimicgen-python", "python3"), "--mimicgen-python is for tasks mimicgen/..., not"),
        (("--device", "gpu"), "unknown device 'gpu'; use cpu, cuda or cuda:N"),
        (("--engine", "x"), "there is no engine 'x'; known: plain, torch, tvm, mlc"),
        (("--vision", "x"), "there is no vision 'x'; known: onnx, tensorrt"),
        (("--quantization", "int5"), "'int5'"),
        (("--unnorm-key", "x"), "'x'"),
        (("--output", "afile"), "afile is a file; choose another output folder"),
        (("--task", "Stack_D7"), "there is no task 'Stack_D7'; did you mean"),
        (("--min-success", "95"), "--min-success is 95.0; give a share, 0 to 1"),
    ],
)
def test_mistakes_are_told_before_anything_starts(vla, checkpoint, tmp_path, words, complaint):
    (tmp_path / "afile").touch()
    given = words if "--model" in words else ("--model", checkpoint, *words)
    process = vla("rollout", *given)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 2 and out == ""
    assert len(err.splitlines()) == 1 and complaint in err
    assert [p.name for p in tmp_path.iterdir()] == ["afile"]


def test_what_only_the_nodes_can_tell_is_repeated_at_the_end(vla, checkpoint):
    process = vla("rollout", "--model", checkpoint, "--camera", "front")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    last = err.splitlines()[-1]
    assert last.startswith("vla rollout: there are no results: there is no camera 'front'; ")


@pytest.mark.slow
def test_two_evaluations_at_once_never_mix(vla, checkpoint, tmp_path):
    """Another model in the same domain changes no frame of what each does alone."""
    words = {
        "shipped": ("--task", "Stack_D0"),
        "random": ("--task", "Stack_D0", "--model", checkpoint),
    }

    def start(name: str, folder: str):
        given = ("--episodes", 2, "--horizon", 60, "--record", 0, "--device", "cpu")
        return vla("rollout", *words[name], *given, "--output", folder)

    def played(process, folder: str) -> list[dict]:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        found = json.loads((tmp_path / folder / "results.json").read_text())
        assert found["complete"]
        return [{k: v for k, v in e.items() if k != "seconds"} for e in found["per_episode"]]

    alone = {name: played(start(name, f"{name}_alone"), f"{name}_alone") for name in words}
    assert alone["shipped"] != alone["random"]
    both = {name: start(name, name) for name in words}
    assert {name: played(process, name) for name, process in both.items()} == alone


@pytest.mark.slow
def test_over_ros_the_model_does_what_it_does_without(vla, tmp_path):
    """The shipped model stacks in the graph, in as many frames as when called directly."""
    from vla_inference.policies.openvla.policy import OpenVLAPolicy
    from vla_sim_bridge.cli.rollout import find_model
    from vla_sim_bridge.envs.robosuite_sim import Simulation
    from vla_sim_bridge.evaluation.rollout import run_episode

    policy = OpenVLAPolicy.from_pretrained(find_model(None), device="cpu")
    sim = Simulation("Stack_D0")
    direct = run_episode(sim, policy.predict_action, seed=7, index=0, horizon=200, execute_steps=4)
    sim.close()
    process = vla(
        "rollout", "--episodes", 1, "--seed", 7, "--record", 0, "--json", "--device", "cpu"
    )
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    (found,) = json.loads(out)["per_episode"]
    assert (found["outcome"], found["seed"], found["index"]) == ("success", 7, 0)
    assert direct.outcome == "success"
    # The order in which threads add numbers up may differ.
    assert found["frames"] == pytest.approx(direct.frames, abs=4)
