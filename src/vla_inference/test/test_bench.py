"""Tests of `vla bench`: every path runs on the same inputs and is reported in the table."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.cli.bench import bench
from vla_inference.cli.benchmark.ceilings import floor_ms
from vla_inference.cli.benchmark.reference import RIVALS
from vla_inference.cli.benchmark.speed import (
    BenchConfig,
    lines,
    observation,
    random_policy,
    run,
    table,
)
from vla_inference.errors import VlaError


def test_every_path_is_measured_on_the_same_inputs(tmp_path, capsys):
    model = str(write_random_checkpoint(tmp_path / "ck", head="tokens"))
    output = tmp_path / "speed.json"
    bench(
        model=model,
        paths="plain,plain:fp32,plain:int4-g32",
        device="cpu",
        repeats=3,
        output=output,
    )
    report = json.loads(output.read_text())
    rows = report["paths"]
    assert list(rows) == ["plain", "plain:fp32", "plain:int4-g32"]
    for row in rows.values():
        assert 0 < row["median_ms"] <= row["p95_ms"]
        assert set(row["stages_ms"]) == {"preprocess", "vision", "prefill", "decode", "total"}
    assert rows["plain:fp32"]["tokens_equal_plain"] == 1.0
    assert rows["plain:int4-g32"]["tokens_equal_plain"] < 1.0  # it was quantised
    assert rows["plain"]["times_first"] == 1.0
    out, err = capsys.readouterr()
    assert out.splitlines() == lines(table(report))
    first, *told = err.splitlines()
    assert first.startswith("ck on cpu, torch") and len(told) == 3
    assert [line.partition(":")[0] for line in told[:1]] == ["plain"]
    assert all(" ms median, " in line for line in told)
    assert report["size"] == "ck" and report["head"] == "tokens"
    heading = "path median ms p95 ms stages ms times first"  # no columns of a GPU's
    assert out.split("\n")[0].split() == heading.split()


def test_transformers_with_a_static_cache_says_what_it_says_with_a_growing_one():
    pytest.importorskip("transformers", reason="needs requirements/peft.txt")
    policy = random_policy("tiny", "tokens")
    growing, static = (make(policy) for make in RIVALS.values())
    for seed in range(4):
        seen = observation(seed, images=1, state=0)
        assert (growing(seen) == static(seen)).all()
    paths = ["plain", *RIVALS]
    rows = run(BenchConfig(size="tiny", device="cpu", paths=paths, repeats=2))["paths"]
    best = min(rows[path]["median_ms"] for path in RIVALS)
    for row in rows.values():
        assert row["times_best_rival"] == pytest.approx(best / row["median_ms"], abs=0.01)


def test_minivla_is_measured_against_transformers_with_the_same_tokens():
    pytest.importorskip("transformers")
    size = BenchConfig(size="tiny-qwen", head="vq", device="cpu", repeats=1)
    rows = run(replace(size, paths=("plain", "torch", "reference")))["paths"]
    assert rows["torch"]["tokens_equal_plain"] == 1.0
    # The original may answer by any token; those of the vocabulary's end are ours alone.
    assert set(rows["reference"]) >= {"median_ms", "tokens_equal_plain"}


def test_steps_can_be_rested_between(monkeypatch):
    rests = []
    monkeypatch.setattr("vla_inference.cli.benchmark.speed.time.sleep", rests.append)
    report = run(BenchConfig(size="tiny", device="cpu", paths=["plain"], repeats=4, pause=0.25))
    assert rests == [0.25] * 4 and report["pause_s"] == 0.25


def test_what_cannot_be_measured_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(VlaError, match=r"transformers is not installed.*name other --paths"):
        run(BenchConfig(size="tiny", device="cpu", paths=["reference"], repeats=1))
    with pytest.raises(VlaError, match="give --model"):
        run(BenchConfig(size="tiny", device="cpu", paths=["tvm:somewhere"]))
    with pytest.raises(
        VlaError, match="no path 'warp'; known: reference, transformers-static, plain, torch"
    ):
        run(BenchConfig(size="tiny", device="cpu", paths=["warp"]))
    with pytest.raises(VlaError, match="leave one out"):
        run(BenchConfig(size="tiny", model="models/stack-small"))
    with pytest.raises(VlaError, match="--method is of random weights"):
        run(BenchConfig(model="m", method="hqq"))
    with pytest.raises(VlaError, match="cpu has no kernels to list; leave out --profile"):
        run(BenchConfig(size="tiny", device="cpu", profile=3))
    with pytest.raises(VlaError, match="--head is of random weights"):
        run(BenchConfig(head="l1", model="models/stack-small"))


def test_the_floor_is_arithmetic_and_bytes():
    policy = random_policy("tiny", "tokens")
    weights = 2 * (4 * 32 * 32 + 3 * 32 * 64)  # layers' linear ones
    # Bytes alone: six passes over 2 bytes a weight, or over 4 bits and group scales and zeros.
    slow = {"bf16": 1e30, "fp8": 1e30, "int8": 1e30, "copy": 1e3}
    assert floor_ms(policy, 40, "", slow) == pytest.approx(6 * 2 * weights)
    assert floor_ms(policy, 40, "int4-g32", slow) == pytest.approx(6 * weights * 5 / 8)
    # Arithmetic alone.
    fast = {**slow, "bf16": 1e3, "copy": 1e30}
    encoders = sum(
        p.numel()
        for n, p in policy.model.named_parameters()
        if n.startswith(("vision_backbone", "projector"))
    )
    assert floor_ms(policy, 40, "", fast) == pytest.approx(2 * (40 * weights + 16 * encoders))
