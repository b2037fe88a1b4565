"""Tests of fine-tuning end to end: it learns, stops cleanly, resumes bit for bit."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from finetune_runs import SENTENCES, free_port, losses, make_home, settings, write_noise

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.cli.main import run_subcommand
from vla_inference.episodes.hdf5 import write_header
from vla_inference.errors import CheckpointError, DataError, VlaError
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.types import Observation
from vla_training.cli.finetune import find_sources
from vla_training.finetune.config import Online
from vla_training.finetune.families.openvla.merge_check import verify_merge
from vla_training.finetune.families.openvla.model_setup import choose_head, load_with_adapter
from vla_training.finetune.finetune import Finetuner, finetune
from vla_training.finetune.online import OnlineRounds
from vla_training.loader.frame_index import DatasetSource
from vla_training.loader.sampler import Sampler
from vla_training.loop import distributed, training_state
from vla_training.loop.graceful_stop import StopRequest
from vla_training.loop.identity import check_identity
from vla_training.loop.logger import SpikeGuard
from vla_training.lora.adapter import Adapter, merge


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("finetune"))


def observation(seed: int = 0, cameras: int = 1) -> Observation:
    rng = np.random.default_rng(seed)
    images = {f"c{i}": rng.integers(0, 256, (64, 64, 3), np.uint8) for i in range(cameras)}
    return Observation(images, SENTENCES[0], rng.standard_normal(8).astype(np.float32))


# -- it learns and what comes out is the model that was trained -------------------------------


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        ("tokens", {"lora_rank": 16, "learning_rate": 1e-2}),
        ("tokens", {"lora_rank": 0}),
        ("tokens", {"action_head": "l1", "chunk": 2, "num_images": 2, "proprio_dim": 8}),
        ("l1", {"lora_rank": 0, "gradient_checkpointing": 0.5, "image_aug": True}),
    ],
)
def test_loss_falls_and_the_checkpoint_is_the_trained_model(home, tmp_path, base, changes):
    config = settings(home, tmp_path / "run", base, max_steps=30, batch_size=8, **changes)
    run = Finetuner(config, distributed.start("cpu"))
    assert run.run(StopRequest())
    found = losses(tmp_path / "run")
    assert np.mean([found[s] for s in (28, 29, 30)]) < 0.9 * np.mean([found[s] for s in (1, 2, 3)])
    policy = OpenVLAPolicy.from_pretrained(run.export(), device="cpu")
    assert policy.config.head == run.trainable.model.config.head
    assert policy.config.center_crop == (0.9 if config.image_aug else 0.0)
    trained = OpenVLAPolicy(
        run.trainable.model.eval(), run.trainable.tokenizer, "cpu", torch.float32
    )
    for seed in range(3):
        seen = observation(seed, policy.config.head.num_images)
        a, b = (p.predict_action(seen, action_space="noise").actions for p in (policy, trained))
        # All weights are written in bfloat16; adapters are merged in the base's float32.
        assert np.allclose(a, b, atol=1e-6 if config.lora_rank else 0.05)


def test_quantised_base_is_trained_by_adapters_alone(home, tmp_path):
    config = settings(home, tmp_path / "run", quantize="int4-g32-sym", merge=False)
    adapter = finetune(config)
    model = load_with_adapter(home / "tokens", adapter)
    layer = model.language_model.model.layers[0].self_attn.q_proj
    assert float(layer.delta().abs().max()) > 0


def test_two_processes_train_as_one_and_their_state_goes_on_in_one(home, tmp_path):
    words = [
        sys.executable,
        "-m",
        "vla_training.cli.finetune",
        "--vla_path",
        str(home / "tokens"),
        "--dataset_name=noise",
        "--data_root_dir",
        str(home),
        "--run_root_dir",
        str(tmp_path),
        "--run-id=run",
        "--batch_size=2",
        "--lora_rank=0",
        "--log-steps=1",
        "--workers=0",
        "--device=cpu",
        "--no-tensorboard",
        "--learning-rate=1e-3",
        "--max-steps=2",
    ]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared["OMP_NUM_THREADS"] = "1"
    ranks = [
        subprocess.Popen(words, env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank})
        for rank in "01"
    ]
    assert [r.wait(120) for r in ranks] == [0, 0]
    config = settings(
        home, tmp_path / "run", lora_rank=0, batch_size=4, max_steps=4, learning_rate=1e-3
    )
    config = replace(config, val_split=0.05, sources=(DatasetSource(str(home / "noise.hdf5")),))
    finetune(config, resume=True)
    whole = replace(config, folder=str(tmp_path / "whole"))
    finetune(whole)
    a, b = losses(tmp_path / "run"), losses(tmp_path / "whole")
    assert sorted(a) == sorted(b) == [1, 2, 3, 4]
    assert all(abs(a[s] - b[s]) < 1e-4 for s in a)


def test_the_base_s_own_action_space_keeps_its_bounds(home, tmp_path):
    config = settings(home, tmp_path / "run", action_space="random", max_steps=1, merge=False)
    known = OpenVLAPolicy.from_pretrained(home / "tokens").config.norm_stats
    assert Adapter(finetune(config)).statistics == {"random": known["random"]}


def test_rounds_of_online_training_are_awaited_and_drawn_from(home, tmp_path, monkeypatch):
    made: list[str] = []

    def make(stream, path, number):  # in the generator's place
        if not path.exists():
            made.append(str(path.relative_to(stream.folder)))
            path.parent.mkdir(parents=True)
            write_noise(path, episodes=1 + number, length=5, seed=number)

    monkeypatch.setattr(OnlineRounds, "_begin", make)
    online = Online(tasks=("A", "B"), episodes=1, steps=2)
    config = settings(home, tmp_path / "whole", sources=(), online=online, max_steps=5)
    finetune(config)
    assert made == [f"round-0000{r}/{t}/demo.hdf5" for r in range(3) for t in "AB"]
    part = replace(config, folder=str(tmp_path / "part"))
    run = Finetuner(part, distributed.start("cpu"))
    stop = StopRequest()
    stop.ask("the test")
    assert not run.run(stop)
    finetune(part, resume=True)
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")
    with pytest.raises(VlaError, match="have no end"):
        finetune(replace(config, max_steps=None))


def test_gradients_of_new_rounds_are_told_and_their_rate_rises_again(home, tmp_path, monkeypatch):
    def make(stream, path, number):
        if not path.exists():
            path.parent.mkdir(parents=True)
            write_noise(path, episodes=2, length=5, seed=number)

    monkeypatch.setattr(OnlineRounds, "_begin", make)
    online = Online(tasks=("A",), episodes=2, steps=4, warmup=1, fresh=0.5)
    config = settings(home, tmp_path / "run", sources=(), online=online, max_steps=8)
    finetune(config)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    told = [e for e in map(json.loads, lines) if e["kind"] == "train"]
    assert [e["round"] for e in told] == [0] * 4 + [1] * 4
    rates = [e["learning_rate"] / 3e-3 for e in told]
    assert rates == pytest.approx([1, 1, 1, 1, 0.5, 1, 1, 1])
    for e in told:
        assert e["gradient_norm_max"] == pytest.approx(e["gradient_norm"])
        assert e["clipped"] == float(e["gradient_norm"] > 1.0)


def test_the_newest_round_has_its_share_of_the_samples():
    given = (DatasetSource("given"), DatasetSource("twice", 2.0))
    newest = [DatasetSource("a"), DatasetSource("b")]
    mixed = Online(fresh=0.4).mixed(given, newest)
    assert [s.weight for s in mixed] == pytest.approx([0.2, 0.4, 0.2, 0.2])
    assert Online().mixed(given, newest) == [*given, *newest]
    assert Online(fresh=0.4).mixed((), newest) == newest
    with pytest.raises(VlaError, match="a round has 5 updates"):
        Online(steps=5, warmup=5).check()
    assert Online(tasks=("A",)).identity() == [["A"], 50, 500, 0]  # as runs before it have it


@pytest.mark.parametrize("weights", [(), (1.0, 0.25)])
@pytest.mark.parametrize("rounds", [2, 9, 90])
def test_a_share_that_the_sampler_would_refuse_later_is_refused_before(home, weights, rounds):
    given = tuple(DatasetSource(str(i), w) for i, w in enumerate(weights))

    def check(fresh: float) -> None:
        online = Online(tasks=("A", "B"), steps=10, fresh=fresh)
        settings(home, home, sources=given, online=online, max_steps=10 * rounds).check()

    def drawn(fresh: float) -> None:
        """In the last round, as training does it."""
        newest = [DatasetSource("a"), DatasetSource("b")]
        older = [*given, *(DatasetSource(str(r)) for r in range(2 * (rounds - 1)))]
        mixed = Online(fresh=fresh).mixed(older, newest)
        Sampler([5] * len(mixed), [s.weight for s in mixed], 0)

    for wrong in (1.0, 0.9999, 0.0009):
        with pytest.raises(VlaError, match=rf"in {rounds} rounds, a dataset would have") as told:
            check(wrong)
    low, high = map(float, re.search(r"give (\S+) to (\S+),", str(told.value)).groups())
    for right in (low, 0.1, high):
        check(right)
        drawn(right)
    with pytest.raises(VlaError, match="1/1000"):
        drawn(1.0)


def test_where_no_share_fits_the_remedy_is_another_number_of_rounds(home):
    online = Online(tasks=("A",), steps=1, fresh=0.5)
    with pytest.raises(VlaError, match="leave it out, or make fewer rounds"):
        settings(home, home, sources=(), online=online, max_steps=1500).check()
    online = Online(tasks=("A",), steps=1, fresh=1.0)
    settings(home, home, sources=(), online=online, max_steps=1).check()  # nothing is older


def test_ranges_of_online_options_hold_whether_or_not_tasks_are_named():
    for tasks in ((), ("Stack_D0",)):
        with pytest.raises(VlaError, match="--online-episodes is 0; give at least 1"):
            Online(tasks=tasks, episodes=0).check()


def test_a_round_that_cannot_be_made_ends_the_run_with_the_reason(home, tmp_path):
    online = Online(tasks=("Stack_D99",), parallel=1)
    with pytest.raises(VlaError, match=r"round 0 of Stack_D99 was not made .*Stack_D99"):
        finetune(settings(home, tmp_path / "run", sources=(), online=online))


# -- it ends well -----------------------------------------------------------------------------


def test_asked_to_stop_it_saves_and_goes_on_bit_for_bit(home, tmp_path):
    config = settings(home, tmp_path / "whole", max_steps=5, image_aug=True)
    finetune(config)
    part = replace(config, folder=str(tmp_path / "part"))
    run = Finetuner(part, distributed.start("cpu"))
    with StopRequest().watching() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert not run.run(stop)
    assert run.progress.step == 1
    checkpoint = finetune(part, resume=True)
    assert "assumed" not in json.loads((checkpoint / "config.json").read_text())
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")
    weights = [tmp_path / run / "checkpoint" / "model.safetensors" for run in ("part", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert (
        OpenVLAPolicy.from_pretrained(checkpoint).predict_action(observation()).actions.shape[1]
        == 7
    )


def kill_and_resume(home: Path, tmp_path: Path, kills: int, steps: int) -> None:
    """A run that is killed at random again and again has the losses of one that never was."""
    finetune(settings(home, tmp_path / "whole", max_steps=steps))
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "import torch\n"
        "from vla_training.finetune.finetune import finetune\n"
        "from vla_training.loop.training_state import find_states\n"
        "from vla_training.finetune.config import FinetuneConfig, Online\n"
        "from vla_training.loader.frame_index import DatasetSource\n"
        "from vla_training.loader.sample_weights import SampleWeights\n"
        "import vla_training.finetune.finetune as f\n"
        "torch.set_num_threads(1)\n"
        "report = f.RunLog.train\n"
        "def slowly(self, step, values):\n"
        "    report(self, step, values)\n"
        "    time.sleep(0.05)\n"
        "f.RunLog.train = slowly\n"
        f"config = {settings(home, tmp_path / 'part', max_steps=steps, save_steps=2)!r}\n"
        "finetune(config, resume=bool(find_states(Path(config.folder) / 'state')))\n"
    )
    rng, log = random.Random(0), tmp_path / "part" / "metrics.jsonl"
    for _ in range(kills):
        if not training_state.find_states(tmp_path / "part" / "state"):
            (tmp_path / "part" / "finetune.json").unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, str(script)])
        before = log.stat().st_size if log.exists() else 0
        deadline = time.monotonic() + 100
        while (log.stat().st_size if log.exists() else 0) == before:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        process.kill()
        process.wait()
    states = training_state.find_states(tmp_path / "part" / "state")
    if not states:
        (tmp_path / "part" / "finetune.json").unlink()
    finetune(settings(home, tmp_path / "part", max_steps=steps, save_steps=2), resume=bool(states))
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")


def test_killed_once_it_goes_on_with_the_same_losses(home, tmp_path):
    kill_and_resume(home, tmp_path, kills=1, steps=12)


@pytest.mark.slow
def test_killed_five_times_it_goes_on_with_the_same_losses(home, tmp_path):
    kill_and_resume(home, tmp_path, kills=5, steps=60)


def test_gradients_out_of_bounds_are_skipped_and_end_a_hopeless_run(home, tmp_path):
    run = Finetuner(settings(home, tmp_path / "run", max_steps=60), distributed.start("cpu"))
    before = [p.detach().clone() for p in run.trained]
    run.trainable.model.language_model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(VlaError, match="20 steps in a row"):
        run.run(StopRequest())
    assert all(torch.equal(a, b) for a, b in zip(before, run.trained, strict=True))
    assert training_state.find_states(tmp_path / "run" / "state")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines]  # no NaN: it is JSON


def test_spikes_are_told_from_a_new_level():
    guard = SpikeGuard(factor=10)
    assert not any(guard.skips(n) for n in [1.0, 2.0, 1.5] * 5)
    assert guard.skips(40.0) and guard.skips(float("nan")) and not guard.skips(2.0)
    assert guard.skipped == 2 and guard.in_a_row == 0
    told = [guard.skips(40.0) for _ in range(30)]
    assert told[0] and not told[-1] and not guard.hopeless


# -- adapters ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapted(home, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapted") / "run"
    finetune(settings(home, folder, merge=False, learning_rate=3e-2, max_steps=3))
    return folder / "adapter"


def test_merged_answers_as_base_and_adapter(home, adapted, tmp_path):
    output = merge(home / "tokens", adapted, tmp_path / "merged")
    assert verify_merge(home / "tokens", adapted, output)["equal"] == 4
    with pytest.raises(CheckpointError, match="answers otherwise"):
        verify_merge(home / "tokens", adapted, home / "tokens")


def test_adapter_of_another_base_is_refused(home, adapted, tmp_path):
    other = write_random_checkpoint(tmp_path / "small", "small", "tokens")
    with pytest.raises(CheckpointError, match="give the base it was trained on"):
        merge(other, adapted, tmp_path / "merged")
    with pytest.raises(CheckpointError, match="give the base it was trained on"):
        load_with_adapter(other, adapted)
    assert not (tmp_path / "merged").exists()


def test_peft_reads_our_adapter(home, adapted):
    peft = pytest.importorskip("peft")
    from vla_inference.checkpoints.load import load_model

    ours = load_with_adapter(home / "tokens", adapted)
    theirs = peft.PeftModel.from_pretrained(load_model(home / "tokens"), adapted)
    x = torch.randn(1, 5, 32)
    with torch.no_grad():
        a = ours.language_model.model(x)[0]
        b = theirs.base_model.model.language_model.model(x)[0]
    assert torch.allclose(a, b, atol=1e-6)


def test_adapter_of_a_kind_we_do_not_read_is_refused(adapted, tmp_path):
    about = json.loads((adapted / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**about, "use_qalora": True}))
    with pytest.raises(CheckpointError, match="use_qalora"):
        Adapter(tmp_path)


# -- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"learning_rate": float("nan")}, "--learning-rate is nan"),
        ({"lr_schedule": "stairs"}, "--lr-schedule is .stairs.; use constant, cosine or linear"),
        ({"quantize": "int4", "lora_rank": 0}, "quantised base"),
        ({"action_head": "diffusion"}, "unknown action head"),
        ({"chunk": 8}, "tokens one after the other give 1"),
        ({"num_images": 3}, "takes 3 images"),
        ({"proprio_dim": 5, "action_head": "l1"}, "have 8 numbers, the model takes 5"),
    ],
)
def test_bad_settings_are_named_before_anything_is_trained(home, tmp_path, changes, message):
    with pytest.raises(VlaError, match=message):
        finetune(settings(home, tmp_path / "run", **changes))


def test_bad_data_is_named(home, tmp_path):
    spoilt = DatasetSource(str(write_noise(tmp_path / "nan.hdf5", spoil="nan")))
    with pytest.raises(DataError, match=r"nan.hdf5: action 'y' of step"):
        finetune(replace(settings(home, tmp_path / "run"), sources=(spoilt,)))
    with h5py.File(tmp_path / "empty.hdf5", "w") as file:
        write_header(file, "empty", 0, {})
    with pytest.raises(DataError, match="has no demonstration"):
        none = DatasetSource(str(tmp_path / "empty.hdf5"))
        finetune(replace(settings(home, tmp_path / "run"), sources=(none,)))
    with pytest.raises(VlaError, match="no dataset 'nowhere'"):
        find_sources(tmp_path, "nowhere", [], [], None)
    with pytest.raises(VlaError, match=r"no dataset .*gone\.hdf5; check --dataset"):
        find_sources(tmp_path, "", [tmp_path / "gone.hdf5"], [], None)
    both = find_sources(tmp_path, "nan:2", [tmp_path / "empty.hdf5"], ["front"], None)
    assert [Path(s.path).name for s in both] == ["empty.hdf5", "nan.hdf5"]
    assert [s.weight for s in both] == [None, 2.0] and both[0].cameras == ("front",)
    with pytest.raises(VlaError, match="is not a weight"):
        find_sources(tmp_path, "nan:heavy", [], [], None)


def test_resuming_something_else_is_refused(home, tmp_path):
    config = settings(home, tmp_path / "run", max_steps=1)
    with pytest.raises(VlaError, match="no saved state"):
        finetune(config, resume=True)
    finetune(replace(config, folder=str(tmp_path / "other")))
    other = replace(config, folder=str(tmp_path / "other"))
    with pytest.raises(VlaError, match="earlier run"):
        finetune(other)
    with pytest.raises(VlaError, match="saved with lora_rank 4, now it is 8"):
        finetune(replace(other, lora_rank=8), resume=True)
    with pytest.raises(VlaError, match="samples_per_step"):
        finetune(replace(other, batch_size=2), resume=True)


def test_resuming_with_anything_that_changes_samples_or_meaning_is_refused(home, tmp_path):
    config = settings(home, tmp_path / "run", max_steps=1, merge=False)
    run = Finetuner(config, distributed.start("cpu"))
    run.save()
    config = run.config  # with what the family fills in
    source = config.sources[0]
    for changed in (
        {"lora_alpha": 1.0},
        {"learning_rate": 1e-4},
        {"lr_schedule": "cosine"},
        {"warmup_steps": 3},
        {"weight_decay": 0.1},
        {"max_grad_norm": 2.0},
        {"val_split": 0.3},
        {"chunk": 4},
        {"action_head": "l1"},
        {"num_images": 2},
        {"proprio_dim": 3},
        {"image_aug": True},
        {"seed": 9},
        {"freeze_vision": True},
        {"sources": (replace(source, weight=3.0),)},
        {"sources": (replace(source, cameras=("wrist",)),)},
        {"sources": (replace(source, options={"kind": "hdf5"}),)},
    ):
        (name,) = changed
        mine = {**replace(config, **changed).identity(1), "frames": run.identity["frames"]}
        with pytest.raises(VlaError, match=rf"was saved with {name.replace('sources', 'data')} "):
            check_identity(Path("state"), json.loads(json.dumps(run.identity)), mine)
    with pytest.raises(VlaError, match=r"was saved with learning_rate 0\.0\d*, now it is 0\.0001"):
        finetune(replace(config, learning_rate=1e-4), resume=True)
    # How fast it goes, what it tells, and how long it lasts where the rate does not follow it.
    free = replace(
        config,
        workers=1,
        log_steps=3,
        save_steps=7,
        val_steps=2,
        gradient_checkpointing=1.0,
        max_steps=5,
        compile=True,
        tensorboard=True,
        merge=True,
    )
    assert free.identity(1) == config.identity(1)
    cosine = replace(config, lr_schedule="cosine")
    assert replace(cosine, max_steps=5).identity(1) != cosine.identity(1)


def test_a_resumed_run_tells_each_step_once(home, tmp_path):
    config = settings(home, tmp_path / "run", max_steps=4, log_steps=1, merge=False)
    run = Finetuner(replace(config, max_steps=2), distributed.start("cpu"))
    run.run(StopRequest())
    run.close()
    path = tmp_path / "run" / "metrics.jsonl"
    beyond = json.dumps({"kind": "train", "step": 3, "loss": 99.0})  # of a run that was killed
    path.write_text(f'{path.read_text()}{beyond}\n{{"kind": "tra')
    finetune(config, resume=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    trained = [(e["step"], e["loss"]) for e in lines if e["kind"] == "train"]
    assert [step for step, _ in trained] == [1, 2, 3, 4]
    assert all(loss != 99.0 for _, loss in trained)


def test_gradients_are_summed_in_float32_where_layers_compute_in_bfloat16(home, tmp_path):
    place = distributed.start("cpu", sharded=True)
    try:
        config = settings(home, tmp_path / "run", lora_rank=0, precision="bf16", compile=False)
        run = Finetuner(config, place)
        batch = next(run._batches())

        def gradients(times: int) -> list[torch.Tensor]:
            for i in range(times):
                distributed.communicate(run.objective, i == times - 1)
                run.objective(batch)[0].backward()
            found = [p.grad.full_tensor().clone() for p in run.trained if p.grad is not None]
            run.optimizer.zero_grad(set_to_none=True)
            return found

        for once, often in zip(gradients(1), gradients(37), strict=True):
            # 37 in bfloat16 is off by percents: a sum stops growing at 256 times what is added
            torch.testing.assert_close(often / 37, once, rtol=1e-4, atol=1e-7)
    finally:
        distributed.stop()


def test_heads_that_cannot_be_are_refused(home):
    from vla_inference.checkpoints.load import load_config

    head = load_config(home / "tokens").head
    assert choose_head(head, "l1").chunk == 8
    with pytest.raises(VlaError, match="unknown action head"):
        choose_head(head, "flow")


def test_both_spellings_of_options_and_what_must_not_be_replaced(home, adapted, tmp_path):
    def subcommand(name: str, *words: str) -> int:
        point = EntryPoint(name, f"vla_training.cli.finetune:{name}", "vla.commands")
        return run_subcommand(point, [str(w) for w in words])

    where = ["--vla_path", home / "tokens", "--data-root-dir", home, "--dataset_name=noise"]
    for spelling in ("--batch_size", "--batch-size"):
        with pytest.raises(VlaError, match="--batch-size is 0"):
            subcommand("finetune", *where, "--run_root_dir", tmp_path, spelling, "0")
    with pytest.raises(VlaError, match="a folder's name"):
        subcommand("finetune", *where, "--run_root_dir", tmp_path, "--run-id", "../up")
    with pytest.raises(VlaError, match="no dataset"):
        subcommand("finetune", *where[:4], "--dataset_name=../noise", "--run_root_dir", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert subcommand("merge", home / "tokens", adapted, tmp_path / "merged", "--json") == 0
    with pytest.raises(VlaError, match=r"merged already exists.*--overwrite"):
        subcommand("merge", home / "tokens", adapted, tmp_path / "merged")
