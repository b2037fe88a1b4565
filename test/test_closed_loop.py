"""`vla rollout`: both nodes from the launch file, a model with random weights, real topics."""

from __future__ import annotations

import json
import os
import signal
from functools import partial

import pytest
from graphs import domain, processes

from vla_inference.random_checkpoint import write_random_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("model"), head="l1")


@pytest.fixture
def vla(tmp_path, monkeypatch):
    """Start `vla WORDS...` in a ROS domain of its own, in an empty folder."""
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "log"))
    with processes(domain(50)) as start:
        yield partial(start, "-m", "vla_inference.cli", cwd=tmp_path)


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
        "rollout", "--model", checkpoint, "--episodes", 1, "--output", "out",
        "--min-success", 0.5, "--real-time", *SMALL,
    )  # fmt: skip
    out, err = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "success 0.000 is below 0.5" in err
    assert "0 of 1 = 0.0 %" in out and "out/report.html" in out and "out/results.json" in out
    again = vla("rollout", "--model", checkpoint, "--output", "out")
    assert again.wait(100) == 2
    assert "holds results already" in again.stderr.read()


def test_a_damaged_checkpoint_ends_it_all_at_once(vla, checkpoint, tmp_path):
    damaged = write_random_checkpoint(tmp_path / "damaged", head="l1")
    os.truncate(damaged / "model.safetensors", 5000)
    process = vla("rollout", "--model", damaged, "--output", "out")
    _, err = process.communicate(timeout=100)  # a missing answer's would be 120 s
    assert process.returncode not in (0, 130)
    assert "model.safetensors" in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_ctrl_c_keeps_what_was_measured(vla, checkpoint, tmp_path):
    process = vla("rollout", "--model", checkpoint, "--episodes", 500, "--output", "out", *SMALL)
    for line in process.stdout:
        if "episode 2/500" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130 and "Traceback" not in err
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert not found["complete"] and found["episodes"] >= 2
    assert "incomplete" in out and "out/report.html" in out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--model", "nowhere"), "nowhere does not exist; give --model FOLDER"),
        (("--model", "."), "has no config.json"),
        (("--episodes", "0"), "0 episodes were asked for; ask for at least 1"),
        (("--task", "Stack_D7"), "there is no task 'Stack_D7'; did you mean"),
        (("--min-success", "95"), "--min-success is 95.0; give a share, 0 to 1"),
    ],
)
def test_mistakes_are_told_before_anything_starts(vla, checkpoint, words, complaint):
    given = words if "--model" in words else ("--model", checkpoint, *words)
    process = vla("rollout", *given)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 2 and out == ""
    assert len(err.splitlines()) == 1 and complaint in err


@pytest.mark.slow
def test_over_ros_the_model_does_what_it_does_without(vla, tmp_path):
    """The shipped model stacks in the graph, in as many frames as when called directly."""
    from vla_inference.policy import Policy
    from vla_sim_bridge.cli import find_model
    from vla_sim_bridge.rollout import run_episode
    from vla_sim_bridge.simulation import Simulation

    policy = Policy.from_pretrained(find_model(None), device="cpu")
    sim = Simulation("Stack_D0")
    direct = run_episode(sim, policy.predict_action, seed=7, index=0, horizon=200, execute_steps=4)
    sim.close()
    process = vla("rollout", "--episodes", 1, "--seed", 7, "--record", 0, "--json",
                  "--device", "cpu")  # fmt: skip
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    (found,) = json.loads(out)["per_episode"]
    assert (found["outcome"], found["seed"], found["index"]) == ("success", 7, 0)
    assert direct.outcome == "success"
    # The order in which threads add numbers up may differ.
    assert found["frames"] == pytest.approx(direct.frames, abs=4)
