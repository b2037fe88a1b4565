"""Tests that a recorded simulation run validates against itself, on disk and replayed live."""

from __future__ import annotations

import json
import re
import signal
import time

import pytest
from graphs import domain, processes

VLA = ("-m", "vla_inference.cli.main")


@pytest.mark.slow
def test_a_recorded_run_validates_against_itself(tmp_path):
    with processes(domain(70)) as start:
        recorder = start(*VLA, "record", "--output", "bags", "--episodes", 1, cwd=tmp_path)
        for line in recorder.stderr:  # what comes before it listens is in no bag
            if "ready to record" in line:
                break
        run = start(
            *VLA,
            "rollout",
            "--namespace",
            "/",
            "--episodes",
            1,
            "--seed",
            7,
            "--record",
            0,
            "--device",
            "cpu",
            "--output",
            "results",
            cwd=tmp_path,
        )
        told = run.communicate(timeout=200)
        assert run.returncode == 0, told
        out, err = recorder.communicate(timeout=100)
        assert recorder.returncode == 0 and "episode_000000  success" in out, err

        check = start(
            *VLA,
            "validate",
            "bags",
            "--device",
            "cpu",
            "--min-accuracy",
            0.999,
            "--max-gripper-flips",
            0,
            "--json",
            cwd=tmp_path,
        )
        out, err = check.communicate(timeout=200)
        assert check.returncode == 0, err
        found = json.loads(out)
        results = json.loads((tmp_path / "results" / "results.json").read_text())
        (episode,) = results["per_episode"]
        chunks = found["mean"]["timesteps"]
        assert 4 * (chunks - 1) < episode["frames"] <= 4 * chunks  # 4 steps of each were executed
        assert found["validation"]["chunk_accuracy"]["raw"] > 0.999

        live = start(
            *VLA,
            "launch",
            "vla_training",
            "bag_validation.launch.xml",
            "bag:=bags",
            "device:=cpu",
            "wait:=true",
            "output:=live",
            "min_accuracy:=0.999",
            "min_coverage:=1.0",
            cwd=tmp_path,
        )
        out, err = live.communicate(timeout=200)
        assert live.returncode == 0, out + err
        assert re.search(rf"frames, episodes +{chunks}, 1", out)
        assert (tmp_path / "live" / "report.html").exists()


def test_ctrl_c_leaves_no_half_bag(tmp_path):
    with processes(domain(71)) as start:
        recorder = start(*VLA, "record", "--output", "bags", "--split", "off", cwd=tmp_path)
        while not (tmp_path / "bags").exists() and recorder.poll() is None:
            time.sleep(0.01)
        recorder.send_signal(signal.SIGINT)
        assert recorder.wait(100) == 0
        assert list((tmp_path / "bags").iterdir()) == []
