"""Trains the small model on generated demonstrations.

The recipe: all frames live on the device; random shift and colour jitter; a chunk of 8 actions
with L1 loss (OpenVLA-OFT); where the simulator's own poses were recorded, a second head has to
read them off the image, which teaches the model early where to look; where two orders are
possible, a share of the frames is asked about the other one, so that only the sentence has the
answer, and its wording is drawn at random each time; AdamW, warm-up then cosine; an exponential
moving average of the weights is kept.

Several devices share a batch (`world`): each holds all frames and computes its part, gradients are
averaged.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path

import torch
import torch.distributed as dist

from vla_inference.errors import VlaError
from vla_inference.system.files import only_one
from vla_inference.system.interrupts import handled
from vla_training.loop.graceful_stop import StopRequest
from vla_training.loop.logger import RunLog
from vla_training.loop.precision import tensor_cores
from vla_training.loop.training_state import find_states
from vla_training.small_model.config import SMALL, TrainConfig
from vla_training.small_model.episode_frames import frames_from_paths
from vla_training.small_model.model import begin_with, grid_positions
from vla_training.small_model.trainer import Trainer

__all__ = [
    "SMALL",
    "TrainConfig",
    "Trainer",
    "begin_with",
    "grid_positions",
    "train",
]
GLANCE = 5.0  # seconds between two reports of a run


def train(
    data: list[str],
    output: str | Path,
    config: TrainConfig,
    devices: int | None = None,
    resume: bool = False,
    report: Callable[[dict], None] = print,
    first: int = 0,
    processes: int = 1,
) -> Path:
    """Train on datasets of any format; state and checkpoint go into `output`.

    Returns the checkpoint.
    devices: GPUs to use, None for all there are, 0 for the CPU; first: the number of the first
    one. `report` must be a function of a module where there are several. processes: on the CPU, of
    one thread each where there are several: where others use its cores as well, a process waits
    for another one once a step, a thread many times.
    """
    available = torch.cuda.device_count()
    devices = available - first if devices is None else devices
    if devices and first + devices > available:
        asked = f"{devices} GPUs" + (f" from number {first} on" if first else "")
        raise VlaError(f"{asked} were requested, there are {available}", "ask for fewer")
    world = devices or processes
    args = (world, range(first, first + devices), data, str(output), config, resume, report)
    with only_one(output, "vla train"):
        if world == 1:
            _train_rank(0, "", *args)
        else:
            spawn(world, args)
    return Path(output) / "checkpoint"


def steps_done(output: str | Path) -> int:
    """Of a run, by its newest state."""
    states = find_states(Path(output) / "state")
    return int(states[-1].name.removeprefix("step-")) if states else 0


def spawn(world: int, args: tuple) -> None:
    """`_train_rank` in `world` processes; they meet in a file, so that no port can be taken."""
    with tempfile.TemporaryDirectory(prefix="vla_train_") as folder:
        meeting = Path(folder, "meeting").as_uri()
        workers = torch.multiprocessing.spawn(
            _train_rank, (meeting, *args), nprocs=world, join=False
        )
        with _passed_on(workers.pids()):
            while not workers.join():
                pass


@contextmanager
def _passed_on(processes: list[int]) -> Iterator[None]:
    """SIGTERM goes to these processes, which stop and save; they hear Ctrl-C by themselves."""

    def tell(number: int, _: object) -> None:
        if number == signal.SIGTERM:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, number)

    main = threading.current_thread() is threading.main_thread()
    with handled(tell) if main else nullcontext():
        yield


def _train_rank(rank, meeting, world, gpus, *more) -> None:
    if world > 1 and not gpus:
        torch.set_num_threads(1)
    with tensor_cores(bool(gpus)):
        _train(rank, meeting, world, gpus, *more)


def _train(rank, meeting, world, gpus, data, output, config, resume, report) -> None:
    device = f"cuda:{gpus[rank]}" if gpus else "cpu"
    if gpus:
        torch.cuda.set_device(gpus[rank])
    if world > 1:
        backend = "nccl" if gpus else "gloo"
        dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=world)
    if rank:
        report = _quiet
    shape = config.model_json()
    size = shape["vision_towers"][0]["image_size"]
    if config.shares and world > 1:
        if len(data) < world:
            raise VlaError(
                f"{len(data)} datasets cannot be shared by {world} devices", "give more"
            )
        data = data[rank::world]
    frames = frames_from_paths(
        data,
        size,
        device,
        lambda text: report({"message": text}),
        config.wordings,
        config.cameras,
        config.state,
        config.weights,
        config.reasoning,
    )
    shape["action_head"]["action_dim"] = len(frames.spec)
    if frames.states is not None:
        shape["action_head"]["proprio_dim"] = frames.states.shape[1]
    trainer = Trainer(frames, config, device, shape)
    state, checkpoint = Path(output) / "state", Path(output) / "checkpoint"
    if resume and find_states(state):
        trainer.load(state)

    def save() -> None:
        trainer.save(state)
        if rank == 0:
            trainer.export(checkpoint)

    with closing(RunLog(Path(output), config.steps, rank == 0, True, config.tensorboard)) as log:
        log.rewind(trainer.step)

        def told(values: dict) -> None:
            write(log, trainer.step, values)
            report(values)

        with StopRequest().watching() as stop:
            trainer.run(
                told,
                config.every,
                save,
                glance=GLANCE,
                save_minutes=config.save_minutes,
                stop=stop,
            )
    if rank == 0:  # once more where a run was killed between its last state and its checkpoint
        trainer.export(checkpoint)
    if world > 1:
        dist.destroy_process_group()


def write(log: RunLog, step: int, values: dict) -> None:
    """A report's lines in metrics.jsonl: of training, and of the held-out episodes if any."""
    if "message" in values:
        log.write("event", step, values)
        return
    kept = dict(values)
    held_out = kept.pop("validation", None)
    following = kept.pop("instruction_following", None)
    log.write("train", step, kept)
    if held_out is not None:
        found = {"l1": held_out[0], "scene": held_out[1], "instruction_following": following}
        log.write("validation", step, found)


def _quiet(_: dict) -> None:
    pass
