"""Tests of bench/closed_loop/quantized_rollouts.py: differences paired by episode."""

from __future__ import annotations

import json
import sys

import quantized_rollouts as bench
from fake_world import FakeWorld

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_sim_bridge.evaluation.rollout import run_episode


def test_each_format_plays_the_same_episodes(tmp_path, monkeypatch):
    played = []

    def rollout(folder, task, episodes, seed, horizon, workers, device):
        """As the real one, with a world that needs no simulator, and worse luck for int4."""
        policy = OpenVLAPolicy.from_pretrained(folder, device=device)
        played.append((policy.quantization, task, seed, horizon))
        world = FakeWorld()
        results = [
            run_episode(world, policy.predict_action, seed, i, horizon, 1) for i in range(episodes)
        ]
        if policy.quantization == "int4-g32":
            next(r for r in results if r.success).outcome = "timeout"
        return results

    model = write_random_checkpoint(tmp_path / "model", "tiny", "l1")
    output = tmp_path / "report.json"
    words = ["--model", model, "--formats", "bf16", "int8", "int4-g32", "--task", "Lift_D0"]
    words += ["--episodes", "8", "--seed", "7", "--horizon", "5", "--output", output]
    monkeypatch.setattr(bench, "rollout", rollout)
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, words)])
    bench.main()
    assert played == [(f, "Lift_D0", 7, 5) for f in ("", "", "int8", "int4-g32")]
    rows = json.loads(output.read_text())["formats"]
    good = rows["fp32"]["successes"]
    assert 0 < good < 8
    for name in ("bf16", "int8"):
        assert rows[name]["minus_fp32"]["difference"] == rows[name]["other_outcomes"] == 0
    assert rows["int4-g32"]["successes"] == good - 1 and rows["int4-g32"]["other_outcomes"] == 1
    cost = rows["int4-g32"]["minus_fp32"]
    assert cost["difference"] == -1 / 8 and cost["low"] < -1 / 8 < cost["high"]
    # The same run twice over: as many of twice the episodes, and a narrower interval.
    report = json.loads(output.read_text())
    twice = bench.pool([report, report])["int4-g32"]
    assert twice["successes"] == 2 * (good - 1) and twice["episodes"] == 16
    both = twice["minus_fp32"]
    assert both["difference"] == -1 / 8 and both["high"] < cost["high"]
