#!/usr/bin/env python3
"""Makes the shipped model on a machine with GPUs: generates data, trains, evaluates.

    python tools/train_small_model.py WORKDIR --data Stack_D2:1100:21 --data Stack_L:2100:22 \
        --data Stack_D0:250:23 --data Lift_D1:350:24 --stills Stack_L:8000:31 --minutes 4.5 \
        --start models/stack-small --evaluate Stack_D2:200 --evaluate Stack_L:200 \
        --evaluate Stack_L:200:held-out

All tasks are generated side by side, each by its share of the processes. What a stage has made is
taken up by the next call, unless it was stopped in its midst. Of each task some further episodes
are made that training never sees: on them the predicted actions are compared with the true ones.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import as_completed
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for package in ("vla_inference", "vla_sim_bridge", "vla_training"):
    sys.path.insert(0, str(ROOT / "src" / package))
os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:3], os.environ.get("PYTHONPATH", "")])

UNSEEN = 1_000_000  # added to a task's seed for the episodes that training never sees
BEGUN = time.perf_counter()


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("workdir", type=Path)
    p.add_argument("--data", action="append", default=[], help="TASK:EPISODES:SEED")
    p.add_argument("--stills", action="append", default=[], help="TASK:STILLS:SEED")
    p.add_argument("--still-steps", type=int, default=4, help="the expert takes from a still")
    p.add_argument("--noise", type=float, default=0.2)
    p.add_argument("--recovery", type=float, default=0.0, help="share of episodes with a mishap")
    p.add_argument("--unseen", type=int, default=24, help="further episodes a task, to validate")
    p.add_argument("--parallel", type=int, default=os.cpu_count(), help="processes")
    p.add_argument("--generate-minutes", type=float, help="train on what there is then")
    p.add_argument("--render-gpus", type=int, default=1, help="GPUs that draw images")
    p.add_argument("--generate-only", action="store_true")
    p.add_argument("--minutes", type=float, default=11, help="length of the schedule")
    p.add_argument("--steps", type=int, help="the schedule by steps instead")
    p.add_argument("--until", type=float, help="seconds from the start when training ends instead")
    p.add_argument("--devices", type=int, help="GPUs; all by default, 0 for the CPU")
    p.add_argument("--batch-size", type=int, default=1024)
    p.add_argument("--learning-rate", type=float, default=1.5e-3)
    p.add_argument("--scene-weight", type=float, default=1.0)
    p.add_argument("--other-order", type=float, default=0.5, help="share of frames asked about it")
    p.add_argument("--wordings", type=int, default=64, help="sentences drawn for a scene")
    p.add_argument("--report-every", type=int, default=250, help="steps")
    p.add_argument("--ema", type=float, default=0.999)
    p.add_argument("--layers", type=int, default=4, help="of the language model")
    p.add_argument("--start", help="checkpoint to begin with")
    p.add_argument("--train-cores", type=int, help="cores that training uses; all by default")
    p.add_argument("--no-compile", action="store_true")
    p.add_argument("--evaluate", action="append", default=[], help="TASK:EPISODES[:LANGUAGE]")
    p.add_argument("--eval-seed", type=int, default=1000)
    p.add_argument("--eval-parallel", type=int, default=os.cpu_count(), help="processes")
    p.add_argument("--execute-steps", type=int, default=4)
    return p.parse_args()


def say(values: dict) -> None:
    print(json.dumps({"t": round(time.perf_counter() - BEGUN, 1), **values}), flush=True)


def main() -> None:
    args = parse()
    shards = generate(args)
    (args.workdir / "generated").touch()
    if args.generate_only:
        return
    checkpoint = train(args, shards)
    (args.workdir / "trained").touch()
    evaluate(args, checkpoint)


# -- data -----------------------------------------------------------------------------------


def generate(args) -> list[str]:
    """One HDF5 file of each process below WORKDIR/shards or stills; the unseen in WORKDIR/unseen.

    -> paths, episodes first
    """
    done = args.workdir / "data.json"
    if not done.exists():
        from vla_inference.system.worker_pool import WorkerPool

        for name in ("shards", "stills", "unseen"):
            (args.workdir / name).mkdir(parents=True, exist_ok=True)
        options = {
            "folder": str(args.workdir),
            "noise": args.noise,
            "recovery": args.recovery,
            "unseen": args.unseen,
            "gpus": args.render_gpus,
            "still_steps": args.still_steps,
            "until": time.time() + 60 * (args.generate_minutes or 1e6),
        }
        jobs = list(enumerate(places(args.data, args.stills, args.parallel)))
        counts: dict[str, dict[str, float]] = {}
        with WorkerPool(len(jobs)) as pool:
            for job in as_completed([pool.submit(fill, n, *j, options) for n, j in jobs]):
                if job.exception():  # the others have made theirs
                    say({"process_failed": repr(job.exception())})
                    continue
                entry, found = job.result()
                total = counts.setdefault(entry, dict.fromkeys(found, 0))
                counts[entry] = {k: total[k] + v for k, v in found.items()}
        if not counts:
            sys.exit("no process made any data")
        done.write_text(json.dumps(counts, indent=2))
        say({"generated": counts})
    found = [sorted((args.workdir / n).glob("*.hdf5")) for n in ("shards", "stills")]
    return [str(path) for paths in found for path in paths]


STILLS = "stills "  # ahead of their entries
COST = 1 / 16  # of a still, in episodes


def places(data: list[str], stills: list[str], count: int) -> list[tuple[str, int, int]]:
    """What each process makes: entry, number among its processes, how many there are."""
    wanted = [float(entry.split(":")[1]) for entry in data]
    wanted += [COST * float(entry.split(":")[1]) for entry in stills]
    data = data + [STILLS + entry for entry in stills]
    count = max(count, len(data))
    shares = [max(1, int(count * w / sum(wanted))) for w in wanted]
    while sum(shares) < count:
        shares[min(range(len(data)), key=lambda i: shares[i] / wanted[i])] += 1
    while sum(shares) > count:
        shares[max(range(len(data)), key=lambda i: shares[i] / wanted[i])] -= 1
    return [(e, i, n) for e, n in zip(data, shares, strict=True) for i in range(n)]


def fill(number: int, entry: str, place: int, among: int, options: dict) -> tuple[str, dict]:
    """Play attempts place, place + among, ... until the entry's share is there or time is up."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if options["gpus"] > 1:
        os.environ["MUJOCO_EGL_DEVICE_ID"] = str(number % options["gpus"])
    import h5py

    from vla_sim_bridge.envs.robosuite_sim import Simulation
    from vla_sim_bridge.generation.attempt import make_attempt
    from vla_sim_bridge.generation.generate import GenerateConfig
    from vla_sim_bridge.generation.hdf5 import write_episode, write_header
    from vla_sim_bridge.tasks import get_task

    name, episodes, seed = entry.removeprefix(STILLS).split(":")
    if entry.startswith(STILLS):
        return entry, _stills(name, int(seed), range(place, int(episodes), among), number, options)
    sim, horizon = Simulation(name), get_task(name).horizon
    made = {"episodes": 0, "attempts": 0, "frames": 0}

    def write(folder: str, wanted: int, seed: int, recovery: float) -> Iterator[int]:
        config = GenerateConfig(
            task=name, seed=seed, noise=options["noise"], horizon=horizon, recovery=recovery
        )
        path = Path(options["folder"], folder, f"{number:03d}_{name}.hdf5")
        kept, index = 0, place
        with h5py.File(path.with_suffix(".tmp"), "w") as file:
            write_header(file, name, 0, {})
            while kept < wanted and time.time() < options["until"]:
                attempt = make_attempt(sim, config, index)
                index += among
                if attempt.success:
                    group = file["data"].create_group(f"demo_{kept}")
                    write_episode(group, attempt.episode, compression=None)
                    kept += 1
                yield len(attempt.episode["actions"]) if attempt.success else 0
        if kept:
            path.with_suffix(".tmp").rename(path)
        else:
            path.with_suffix(".tmp").unlink()

    def part(total: int) -> int:
        return len(range(place, total, among))

    for _ in write("unseen", part(options["unseen"]), int(seed) + UNSEEN, 0.0):
        pass
    for length in write("shards", part(int(episodes)), int(seed), options["recovery"]):
        made["attempts"] += 1
        made["episodes"] += length > 0
        made["frames"] += length
    return entry, made


def _stills(task: str, seed: int, indices: range, number: int, options: dict) -> dict:
    from itertools import takewhile

    from vla_sim_bridge.envs.robosuite_sim import Simulation
    from vla_training.small_model.reset_images import write_reset_images

    path = Path(options["folder"], "stills", f"{number:03d}_{task}.hdf5")
    in_time = takewhile(lambda _: time.time() < options["until"], indices)
    return {
        "stills": write_reset_images(path, Simulation(task), seed, in_time, options["still_steps"])
    }


# -- training -------------------------------------------------------------------------------


def train(args, shards: list[str]) -> Path:
    import torch

    from vla_training.small_model.train import TrainConfig
    from vla_training.small_model.train import train as run

    devices = torch.cuda.device_count() if args.devices is None else args.devices
    minutes = args.minutes
    if args.until:  # starting the processes and reading the data takes a while
        minutes = max(0.5, (args.until - (time.perf_counter() - BEGUN) - 30) / 60)
    config = TrainConfig(
        batch_size=args.batch_size,
        steps=args.steps or 15_000,
        minutes=None if args.steps else minutes,
        learning_rate=args.learning_rate,
        scene_weight=args.scene_weight,
        other_order=args.other_order,
        wordings=args.wordings,
        every=args.report_every,
        ema=args.ema,
        compile=not args.no_compile,
        layers=args.layers,
        shares=devices > 1,
        start=args.start,
    )
    say({"training": asdict(config), "devices": devices})
    everywhere = os.sched_getaffinity(0)
    if args.train_cores:
        os.sched_setaffinity(0, sorted(everywhere)[: args.train_cores])
    try:
        return run(shards, args.workdir / "model", config, devices, resume=True, report=say)
    finally:
        os.sched_setaffinity(0, everywhere)


# -- evaluation -----------------------------------------------------------------------------


def evaluate(args, checkpoint: Path) -> None:
    """Closed loop and on unseen demonstrations; one JSON each, and all figures in results.json."""
    from vla_inference.system.worker_pool import WorkerPool

    folder = args.workdir / "evaluation"
    folder.mkdir(exist_ok=True)
    figures: dict = {"data": json.loads((args.workdir / "data.json").read_text())}
    unseen = sorted((args.workdir / "unseen").glob("*.hdf5"))
    initial = (str(checkpoint), args.execute_steps, args.render_gpus)
    with WorkerPool(args.eval_parallel, load, *initial) as pool:
        runs = {
            entry: [
                pool.submit(episode, *_evaluation(entry)[::2], args.eval_seed, i)
                for i in range(_evaluation(entry)[1])
            ]
            for entry in args.evaluate
        }
        compared = {path: pool.submit(compare, str(path)) for path in unseen}
        for entry, jobs in runs.items():
            figures[entry] = _write(folder, entry, [j.result() for j in jobs])
            say({"evaluated": entry, **figures[entry]})
            (args.workdir / "results.json").write_text(json.dumps(figures, indent=2))
        errors: dict[str, list] = {}
        for path, job in compared.items():
            errors.setdefault(path.stem.split("_", 1)[1], []).extend(job.result())
    every = [v for values in errors.values() for v in values]
    figures["accuracy_on_unseen"] = {
        "clipped_nrmse_accuracy": sum(every) / max(1, len(every)),
        "frames": len(every),
        "per_task": {task: sum(v) / len(v) for task, v in errors.items()},
    }
    say(figures["accuracy_on_unseen"])
    (args.workdir / "results.json").write_text(json.dumps(figures, indent=2))


def _evaluation(entry: str) -> tuple[str, int, str]:
    task, episodes, *language = entry.split(":")
    return task, int(episodes), language[0] if language else "train"


def _write(folder: Path, entry: str, results: list) -> dict:
    from vla_sim_bridge.evaluation.rollout import summarise

    summary = {**summarise(results), "language": _evaluation(entry)[2]}
    rows = [asdict(r) for r in results]
    path = folder / f"{entry.replace(':', '_')}.json"
    path.write_text(json.dumps({**summary, "results": rows}, indent=1))
    return summary


_policy, _simulations, _steps = None, {}, 4


def load(checkpoint: str, steps: int, gpus: int) -> None:
    global _policy, _steps
    if gpus > 1:
        os.environ["MUJOCO_EGL_DEVICE_ID"] = str(os.getpid() % gpus)
    import torch

    from vla_inference.policies.openvla.policy import OpenVLAPolicy

    torch.set_num_threads(1)
    _policy, _steps = OpenVLAPolicy.from_pretrained(checkpoint, device="cpu"), steps


def episode(task: str, language: str, seed: int, index: int):
    from vla_sim_bridge.envs.robosuite_sim import Simulation
    from vla_sim_bridge.evaluation.rollout import run_episode
    from vla_sim_bridge.tasks import get_task

    if (task, language) not in _simulations:
        _simulations.clear()  # one at a time: each holds images' memory
        _simulations[task, language] = Simulation(task, language=language)
    sim, horizon = _simulations[task, language], get_task(task).horizon
    return run_episode(sim, _policy.predict_action, seed, index, horizon, _steps)


def compare(path: str) -> list[float]:
    """Clipped accuracy of the first predicted action at every frame of a file."""
    import numpy as np

    from vla_sim_bridge.generation.hdf5 import Hdf5Episodes
    from vla_training.evaluation.accuracy import Range, clipped_accuracy

    data, found = Hdf5Episodes(path), []
    statistics = next(iter(_policy.action_spaces.values()))["action"]
    bounds = Range(statistics["q01"], statistics["q99"])
    for i in range(len(data)):
        images, texts = data.images(i, "agentview"), data.instructions(i)
        predicted = [
            _policy.predict_action(image, text).actions[0]
            for image, text in zip(images, texts, strict=True)
        ]
        found += clipped_accuracy(data.actions(i), np.array(predicted), bounds).tolist()
    return found


if __name__ == "__main__":
    main()
