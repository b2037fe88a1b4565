"""Tests of what a training of the small model tells and keeps: reports, saved states, its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from finetune_runs import write_noise
from small_runs import make_trainer

from vla_training.loop.graceful_stop import StopRequest
from vla_training.loop.logger import Meter
from vla_training.loop.training_state import find_states


def test_a_meter_tells_the_recent_and_the_whole():
    meter = Meter()
    for value in (1.0, 3.0):
        meter.add({"loss": torch.tensor(value)})
    assert meter.recent() == {"loss": 2.0}
    meter.add({"loss": torch.tensor(8.0)})
    assert meter.recent() == {"loss": 8.0} and meter.means() == {"loss": 4.0}
    meter.add({"loss": torch.tensor(5.0)})
    assert meter.recent() == {"loss": 5.0}


def test_short_reports_come_by_the_clock_and_whole_ones_by_steps():
    told = []
    assert make_trainer().run(told.append, every=3, glance=0.0)
    assert [r["step"] for r in told] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in told if "validation" in r] == [3, 6]
    assert all(r["loss"] > 0 and r["samples_per_s"] >= 0 for r in told)


@pytest.mark.parametrize(("minutes", "saved"), [(1e-9, [1, 2, 3, 4, 5, 6]), (1e9, [6])])
def test_states_are_saved_by_the_clock(minutes, saved):
    trainer, found = make_trainer(), []
    trainer.run(save=lambda: found.append(trainer.step), save_minutes=minutes)
    assert found == saved


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_later(tmp_path):
    whole, first, second = make_trainer(), make_trainer(), make_trainer()
    whole.run()
    stop, told = StopRequest(), []

    def report(values):
        told.append(values)
        if values["step" if "step" in values else "message"] == 2:
            stop.ask("a test")

    def save():
        first.save(tmp_path / "state")

    assert not first.run(report, glance=0.0, save=save, stop=stop)
    assert told[-1] == {"message": "stopping after step 3 (a test)"}
    second.load(tmp_path / "state")
    assert second.step == 3 and second.run()
    for key, value in whole.average.items():
        assert torch.equal(value, second.average[key]), key


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_with_state_checkpoint_and_metrics(tmp_path, number):
    data, output = write_noise(tmp_path / "demo.hdf5"), tmp_path / "run"
    words = ["train", "--dataset", data, "--output", output, "--steps", 100_000, "--layers", 1]
    words += ["--batch-size", 2, "--wordings", 0, "--other-order", 0, "--devices", 0]
    process = subprocess.Popen(
        [sys.executable, "-m", "vla_inference.cli.main", *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    with process:
        assert process.stdout is not None
        lines = iter(process.stdout)
        first = next(line for line in lines if line.startswith("step "))
        assert "frames/s" in first and "s left" in first and "nan" not in first
        process.send_signal(number)
        rest = list(lines)
    assert process.returncode == 0
    assert any(f"({number.name})" in line for line in rest), rest
    (state,) = find_states(output / "state")
    assert (output / "checkpoint" / "model.safetensors").is_file()
    assert (output / "options.yaml").is_file() and list((output / "tensorboard").iterdir())
    kept = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in kept if line["kind"] == "train"]
    assert steps and state.name == f"step-{steps[-1]}"
