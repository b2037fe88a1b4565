"""Tests of a served model in the node, in closed loop and in commands."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from demonstrations import write_set
from graphs import IMAGE, InferenceGraph
from model_server import running

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.cli.main import main
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.registry import load_policy
from vla_inference.ros.messages import msg_to_chunk
from vla_inference.types import Observation
from vla_sim_bridge.evaluation.rollout import rollout

SHIPPED = "models/stack-small"
TASK = "stack the red block on the green block"


def local(model):
    return load_policy(model, LoadOptions(device="cpu", engine="plain"))


@pytest.fixture(scope="module")
def shipped():
    with running(lambda: local(SHIPPED)) as found:
        yield found


def test_the_node_answers_with_it_names_a_loss_and_goes_on(tmp_path):
    write_random_checkpoint(tmp_path / "tiny")
    model = local(tmp_path / "tiny")
    with running(lambda: local(tmp_path / "tiny")) as server:
        g = InferenceGraph({"instruction": TASK, "model": f"openpi:{server.url}"}, True)
        try:
            g.meet()
            wanted = model.act(Observation({"image": IMAGE}, TASK)).actions
            chunk = g.answer(g.frame())
            np.testing.assert_array_equal(msg_to_chunk(chunk).actions, wanted)
            assert chunk.model == "tiny"
            server.stop()
            before = len(g.chunks)
            assert f"server 127.0.0.1:{server.port}: " in g.refuse(g.frame())
            assert len(g.chunks) == before
            with running(lambda: local(tmp_path / "tiny"), port=server.port):
                g.until(lambda: look(g) or len(g.chunks) > before, "an answer")
        finally:
            g.close()


def look(g: InferenceGraph) -> None:
    g.images.publish(g.frame())


def test_a_rollout_through_it_is_the_same_to_the_step(shipped):
    given = ("Stack_D0", 2, 7)
    there = rollout(f"openpi:{shipped.url}", *given, horizon=60)
    assert there == rollout(SHIPPED, *given, horizon=60, device="cpu")


def test_eval_through_it_measures_the_same_answers(shipped, tmp_path, capsys):
    """Accuracy is another: the range that errors are set against is the dataset's own here."""
    data, told = write_set(tmp_path / "demo.hdf5"), []
    for model, more in ((f"openpi:{shipped.url}", ()), (SHIPPED, ("--device", "cpu"))):
        given = ["eval", "--model", model, "--dataset", str(data), "--max-steps", "5"]
        assert main([*given, *more, "--engine", "plain", "--verbose"]) == 0
        lines = capsys.readouterr().out.splitlines()
        told.append([line.split("  accuracy")[0] for line in lines if "  predicted [" in line])
    assert told[0] == told[1] and len(told[0]) == 5


def test_the_rollout_command_plays_it_over_ros(shipped, tmp_path):
    command = [sys.executable, "-m", "vla_inference.cli.main", "rollout"]
    command += ["--model", f"openpi:{shipped.url}", "--episodes", "1", "--horizon", "8"]
    command += ["--record", "0", "--json", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["episodes"] == 1
