"""Tests of fine-tuning faults: bad input, lost processes, full disks."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_world import FakeWorld
from finetune_runs import free_port, losses, make_home, settings

from vla_inference.checkpoints.quantize import quantize_checkpoint
from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.errors import CheckpointError, VlaError
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.quantization import get_format
from vla_training.finetune import closed_loop
from vla_training.finetune.errors import explained
from vla_training.finetune.families.openvla.model_setup import load_with_adapter
from vla_training.finetune.finetune import Finetuner, finetune
from vla_training.loop import distributed, training_state
from vla_training.loop.graceful_stop import StopRequest
from vla_training.lora.adapter import merge


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("faults"))


# -- bad input --------------------------------------------------------------------------------


def test_statistics_that_lack_something_are_named(home, tmp_path):
    base = shutil.copytree(home / "tokens", tmp_path / "base")
    path = base / "dataset_statistics.json"
    whole = json.loads(path.read_text())["random"]
    action = whole["action"]
    short = {k: v[:6] for k, v in action.items()}
    low = {k: v for k, v in action.items() if k != "q01"}
    for entry, message in (
        ({**whole, "action": low}, "'random' have no 'q01'"),
        ({"proprio": whole["proprio"]}, "'random' have no 'action'"),
        ({"action": action}, "'random' have no 'proprio'"),
        ({**whole, "action": short}, "have 7 dimensions, the model's 6"),
    ):
        path.write_text(json.dumps({"random": entry}))
        config = settings(
            home, tmp_path / "run", base=str(base), action_space="random", proprio_dim=8
        )
        with pytest.raises(VlaError, match=message):
            finetune(config)
    assert not (tmp_path / "run").exists()  # not even TensorBoard's files


def test_a_quantised_base_is_refused_before_hours_are_spent(home, tmp_path):
    quantize_checkpoint(home / "tokens", tmp_path / "int4", get_format("int4-g32"), "rtn")
    with pytest.raises(VlaError, match="quantised to int4-g32, no adapter can be merged"):
        finetune(settings(home, tmp_path / "run", base=str(tmp_path / "int4")))


def test_an_adapter_is_not_taken_by_other_weights_of_the_same_shape(home, tmp_path):
    adapter = finetune(settings(home, tmp_path / "run", merge=False, max_steps=1))
    other = write_random_checkpoint(tmp_path / "other", "tiny", "tokens", seed=1)
    with pytest.raises(CheckpointError, match=r"trained on other weights than .*other has"):
        merge(other, adapter, tmp_path / "merged")
    with pytest.raises(CheckpointError, match="trained on other weights"):
        load_with_adapter(other, adapter)
    assert not (tmp_path / "merged").exists()
    moved = shutil.copytree(home / "tokens", tmp_path / "moved")  # the same ones elsewhere
    assert merge(moved, adapter, tmp_path / "merged").is_dir()


def test_a_closed_loop_that_cannot_be_is_known_before_training(home, tmp_path, monkeypatch):
    def run(**changes):
        finetune(settings(home, tmp_path / "run", eval_steps=1, **changes))

    with pytest.raises(VlaError, match="Stack_D99"):
        run(eval_task="Stack_D99")
    with pytest.raises(VlaError, match="--eval-episodes is 0"):
        run(eval_task="Lift_D0", eval_episodes=0)
    monkeypatch.setattr(closed_loop, "make_world", lambda *_: FakeWorld())
    with pytest.raises(VlaError, match="state"):  # the model wants one, this world has none
        run(eval_task="Lift_D0", proprio_dim=8)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# -- the closed loop while training -----------------------------------------------------------


@pytest.mark.parametrize("lora_rank", [4, 0])
def test_closed_loop_plays_the_model_as_it_stands_sharded_or_not(
    home, tmp_path, monkeypatch, lora_rank
):
    worlds = []
    monkeypatch.setattr(
        closed_loop, "make_world", lambda *_: worlds.append(FakeWorld()) or worlds[-1]
    )
    config = settings(
        home,
        tmp_path / "run",
        "l1",
        lora_rank=lora_rank,
        max_steps=2,
        eval_steps=2,
        eval_task="Lift_D0",
        eval_episodes=5,
        learning_rate=1e-2,
    )
    try:
        run = Finetuner(config, distributed.start("cpu", sharded=not lora_rank))
        assert distributed.is_sharded(run.objective) == (not lora_rank)
        assert run.run(StopRequest())
        checkpoint = run.export()
    finally:
        distributed.stop()
    lines = [
        json.loads(line)
        for line in (tmp_path / "run/metrics.jsonl").read_text().split("\n")
        if line
    ]
    (found,) = [e for e in lines if e["kind"] == "closed_loop"]
    assert (found["step"], found["episodes"]) == (2, 5) and 0 < found["successes"] < 5
    (world,) = worlds
    assert world.played == 6  # once to try, before training
    # What it was played with is what was trained, not what training began with.
    world.reset(closed_loop_rng(4))
    policy = OpenVLAPolicy.from_pretrained(checkpoint, device="cpu")
    expected = policy.predict_action(world.observation(), action_space="noise").actions[0]
    begun = OpenVLAPolicy.from_pretrained(home / "l1", device="cpu")
    space = policy.config.norm_stats["noise"]
    before = begun.predict_action(world.observation(), action_space=space).actions[0]
    steps = 3 if world.good else world.task.horizon
    played = world.executed[-steps]  # the first action of the last episode
    # All weights are written in bfloat16, hence not to the last digit.
    assert np.abs(played - expected).max() < 0.25 * np.abs(played - before).max()


def closed_loop_rng(index: int) -> np.random.Generator:
    from vla_sim_bridge.envs.robosuite_sim import episode_rng

    return episode_rng("evaluate", closed_loop.SEED, index)


# -- processes that end -----------------------------------------------------------------------

RANK = """
import sys, time
sys.path[:0] = [{tests!r}]
import torch
from fake_world import FakeWorld
from vla_training.finetune import closed_loop
import vla_training.finetune.finetune as f
from vla_inference.errors import VlaError
from vla_training.finetune.config import FinetuneConfig, Online
from vla_training.loader.sample_weights import SampleWeights
from vla_training.loader.frame_index import DatasetSource
torch.set_num_threads(1)
closed_loop.make_world = lambda *_: FakeWorld()
report = f.RunLog.train
def slowly(self, step, values):
    report(self, step, values)
    time.sleep(0.1)
f.RunLog.train = slowly
try:
    f.finetune({config!r})
except VlaError as error:
    sys.exit(str(error))
"""


def test_a_process_that_dies_ends_the_others_and_fewer_go_on(home, tmp_path):
    config = settings(
        home,
        tmp_path / "run",
        batch_size=2,
        max_steps=300,
        save_steps=1,
        eval_steps=1,
        eval_task="Lift_D0",
        eval_episodes=3,
    )
    tests = str(Path(sys.modules["fake_world"].__file__).parent)
    script = tmp_path / "rank.py"
    script.write_text(RANK.format(tests=tests, config=config))
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script)],
            stderr=subprocess.PIPE,
            text=True,
            env={**shared, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]
    state, deadline = tmp_path / "run" / "state", time.monotonic() + 120
    log = tmp_path / "run" / "metrics.jsonl"
    while not training_state.find_states(state) or log.read_text().count('"train"') < 3:
        assert all(r.poll() is None for r in ranks) and time.monotonic() < deadline
        time.sleep(0.05)
    ranks[1].send_signal(signal.SIGKILL)
    _, said = ranks[0].communicate(timeout=120)
    ranks[1].communicate()
    assert ranks[0].returncode == 1
    assert "another process of the run has ended" in said and "--resume continues" in said
    # Its last state is whole: one process alone takes it up, with batches as large as both had.
    step = training_state.read_about(training_state.find_states(state)[-1])["step"]
    alone = replace(config, max_steps=step + 1)
    with pytest.raises(VlaError, match="saved with samples_per_step 4, now it is 2"):
        finetune(replace(alone, eval_steps=0), resume=True)
    finetune(replace(alone, eval_steps=0, batch_size=4), resume=True)
    # The two shared the episodes of their closed loops, and counted all of them.
    lines = [
        json.loads(line)
        for line in (tmp_path / "run/metrics.jsonl").read_text().split("\n")
        if line
    ]
    played = [e for e in lines if e["kind"] == "closed_loop"]
    assert {e["episodes"] for e in played} == {3}
    assert len({e["successes"] for e in played}) == 1


def test_full_disk_leaves_the_last_state_and_says_so(home, tmp_path):
    run = Finetuner(settings(home, tmp_path / "run"), distributed.start("cpu"))
    run.progress.step = 2
    run.save()
    run.progress.step = 3
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (4096, limits[1])
    )  # files end there, as on a full disk
    try:
        with pytest.raises(CheckpointError, match=r"step 3 cannot be written.*make room"):
            run.save()
        with (
            pytest.raises(VlaError, match="make room; --resume"),
            explained(run.config, run.place),
        ):
            for _ in range(1000):
                run.log.write("event", 3, {"filler": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in (tmp_path / "run" / "state").iterdir()] == ["step-2"]


def test_states_half_written_or_half_removed_by_a_kill_go_and_the_same_step_is_replaced(
    home, tmp_path
):
    run = Finetuner(settings(home, tmp_path / "run"), distributed.start("cpu"))
    folder = tmp_path / "run" / "state"
    for left in ("step-1", ".step-3.tmp"):  # removed and written by halves
        (folder / left).mkdir(parents=True)
        (folder / left / "weights.distcp").write_bytes(bytes(100))
    run.progress.step = 2
    run.save()
    assert [p.name for p in folder.iterdir()] == ["step-2"]
    pid = os.fork()
    if pid == 0:  # killed while it removes the old state: its note goes first
        training_state.shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        training_state.remove_state(folder / "step-2")
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert training_state.find_states(folder) == [] and (folder / "step-2").is_dir()
    for _ in range(2):  # the second time in place of a state of the same step
        run.save()
        assert [p.name for p in folder.iterdir()] == ["step-2"]
        assert training_state.read_about(folder / "step-2")["step"] == 2


def test_too_little_memory_says_what_to_lower(home, tmp_path):
    config = settings(home, tmp_path / "run")
    with (
        pytest.raises(VlaError, match=r"too small for 4 samples .*lower --batch-size"),
        explained(config, distributed.Place()),
    ):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    with pytest.raises(KeyError), explained(config, distributed.Place()):
        raise KeyError("ours")


def test_ctrl_d_asks_for_the_end_and_a_terminal_that_is_gone_does_not(monkeypatch):
    master, slave = os.openpty()
    threads = set(threading.enumerate())
    with open(slave, closefd=False) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        with StopRequest().watching() as stop:
            os.write(master, b"not yet\n\x04")
            deadline = time.monotonic() + 20
            while not stop.asked:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            (watcher,) = set(threading.enumerate()) - threads
            os.close(master)
            watcher.join(20)
            assert not watcher.is_alive()
    # Asked once: three times would have ended this process without saving.
    assert (stop.why, stop._times) == ("Ctrl-D", 1)


# -- who is told ------------------------------------------------------------------------------


class Told(list):
    """Stands in for the library of Weights & Biases."""

    def init(self, **settings):
        self.append(settings)
        return SimpleNamespace(log=self.append, define_metric=self.metric, finish=self.finish)

    def metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def finish(self):
        self.append("finished")


def test_weights_and_biases_hears_what_metrics_jsonl_holds(home, tmp_path, monkeypatch):
    told = Told()
    monkeypatch.setitem(sys.modules, "wandb", told)
    config = settings(home, tmp_path / "run", wandb="mine", max_steps=2, merge=False)
    finetune(config)
    begun, *logged, last = told
    assert begun["project"] == "mine" and begun["name"] == "run" and last == "finished"
    assert begun["config"]["batch_size"] == 4 and begun["config"]["sources"]
    assert {e["step"]: e["train/loss"] for e in logged if "train/loss" in e} == losses(
        tmp_path / "run"
    )
    assert all("train/error_6" in e for e in logged if "train/loss" in e)
    finetune(replace(config, max_steps=3), resume=True)
    again = [e for e in told if isinstance(e, dict) and "project" in e][1]
    assert again["id"] == begun["id"] and again["resume"] == "allow"


def test_weights_and_biases_not_there_or_not_willing(home, tmp_path, monkeypatch):
    config = settings(home, tmp_path / "run", wandb="mine")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(VlaError, match=r"cannot be imported.*requirements/wandb.txt"):
        finetune(config)
    refusing = SimpleNamespace(init=lambda **_: 1 / 0)
    monkeypatch.setitem(sys.modules, "wandb", refusing)
    with pytest.raises(VlaError, match=r"did not begin.*wandb login"):
        finetune(config)
    assert not list((tmp_path / "run").glob("state"))
