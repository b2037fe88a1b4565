"""`vla rollout` on LIBERO: checks what was asked for, evaluates, says how it went."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from vla_inference.errors import VlaError
from vla_inference.policies.base import Contract, LoadOptions
from vla_inference.policies.registry import check_policy
from vla_inference.serving.openpi.observation_maps import ObservationMap
from vla_sim_bridge.evaluation.report import RESULTS
from vla_sim_bridge.libero import environment
from vla_sim_bridge.libero.episodes import Setting, cameras
from vla_sim_bridge.libero.evaluation import evaluate
from vla_sim_bridge.libero.results import Work
from vla_sim_bridge.libero.world import SIZE
from vla_sim_bridge.tasks import get_task
from vla_sim_bridge.tasks.libero_suites import INITIAL_STATES, split_name

WORKER_MEMORY = 2.5e9  # bytes: LIBERO's process, the policy, films


def run(
    task: str,
    model: str,
    options: LoadOptions,
    *,
    episodes: int,
    seed: int,
    horizon: int = 0,
    execute_steps: int = 0,
    observation_map: str = "",
    width: int = 0,
    height: int = 0,
    parallel: int = -1,
    ray: str = "",
    films: int = 3,
    failures: int = 20,
    first: int = 0,
    only: Sequence[int] = (),
    output: Path | None = None,
) -> tuple[dict, Path]:
    """Results and their folder. Zeros and empty names become the benchmark's and the model's."""
    known = get_task(task)
    suite, one = split_name(known.name)
    most = INITIAL_STATES * (suite.tasks if one is None else 1)
    if not 1 <= episodes <= most:
        raise VlaError(
            f"{episodes} episodes of {known.name} were requested",
            f"ask for 1 to {most}: it has {INITIAL_STATES} initial states a task",
        )
    indices = sorted(set(only)) or range(first, first + episodes)
    if indices[-1] >= most:
        raise VlaError(
            f"{known.name} has no episode {indices[-1]}", f"its episodes are 0 to {most - 1}"
        )
    contract = check_policy(model, options)
    cameras(contract.needs)
    name = observation_map or usual_map(model)
    setting = Setting(
        task=known.name,
        model=model,
        options=options,
        observation_map=name,
        seed=seed,
        horizon=horizon or known.horizon,
        execute=steps_of(contract, ObservationMap.load(name), execute_steps),
        width=width or SIZE,
        height=height or SIZE,
    )
    folder = results_folder(output, known.name)
    environment.check_installed(suite.registered)
    if len(indices) < most:
        _say(f"{len(indices)} of the benchmark's {most} episodes of {known.name}, tasks in turn")
    count = parallel if parallel > 0 else workers()
    work = Work(indices, folder, count, ray, films, failures)
    return evaluate(setting, work, _say), folder


def usual_map(model: str) -> str:
    """The observation map of released models: served elsewhere (by openpi), or loaded here."""
    return "libero_pi" if "://" in model else "libero_oft"


def steps_of(contract: Contract, observations: ObservationMap, asked: int) -> int:
    """Executed steps of a chunk: those asked for, those of published clients, or all."""
    if asked > contract.chunk:
        raise VlaError(
            f"--execute-steps is {asked}, but the model's chunks have {contract.chunk}",
            f"give 1 to {contract.chunk}",
        )
    return asked or min(observations.execute or contract.chunk, contract.chunk)


def workers() -> int:
    """As many as cores and memory allow."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(os.cpu_count() or 1, int(memory / WORKER_MEMORY)))


def results_folder(given: Path | None, task: str) -> Path:
    """A new folder, or one whose run was stopped."""
    default = f"results/{task.replace('/', '_')}_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    folder = Path(given or default).expanduser().absolute()
    if (folder / RESULTS).exists():
        raise VlaError(f"{folder} contains results already", "choose another output folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VlaError(f"{folder} cannot be made ({error.strerror})", "choose another") from error
    return folder


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
