"""Closed-loop evaluation without ROS: simulation and policy in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import replace

import numpy as np

from vla_inference.policies.base import Needs, Policy
from vla_inference.system.worker_pool import WorkerPool
from vla_inference.types import ActionChunk, Observation
from vla_sim_bridge.envs.protocol import World, make_world
from vla_sim_bridge.evaluation.confidence_intervals import wilson_interval
from vla_sim_bridge.evaluation.episode import WRONG, EpisodeResult, EpisodeRun
from vla_sim_bridge.evaluation.lookback import Lookback
from vla_sim_bridge.tasks import Language

Act = Callable[[Observation], ActionChunk]
NOTHING_PAST = Needs()


def run_episode(
    sim: World,
    act: Act,
    seed: int,
    index: int,
    horizon: int,
    execute_steps: int,
    delay: int = 0,
    needs: Needs = NOTHING_PAST,
) -> EpisodeResult:
    """Runs one episode: predict a chunk, execute its first `execute_steps` steps, repeat.

    delay: control steps that an answer takes. Meanwhile the robot goes on with the chunk before,
    and stands still where that has no step left; steps of the new one whose time is past by then
    are dropped. The model looks again once it is free, so `execute_steps` below `delay` are as
    many as `delay`.
    needs: the model's, where it takes past images.
    """
    run = EpisodeRun(sim, seed, index, horizon)
    look = _looks(run, needs) if needs.history else sim.observation
    plan: list[np.ndarray] = []
    while not run.done:
        actions = list(sim.actions(act(look())))
        period = max(delay, min(execute_steps, len(actions)))
        for step in range(period):
            if step == delay:
                plan = actions[delay:]
            if run.step(plan.pop(0) if plan else sim.still()):
                break
        if delay == period:
            plan = actions[delay:]
    return run.result()


def _looks(run: EpisodeRun, needs: Needs) -> Callable[[], Observation]:
    """Observations with past images; every control step of the run is seen from now on."""
    back, seen = Lookback(needs), [run.sim.observation()]
    back.see(seen[0].images)

    def see() -> None:
        seen[0] = run.sim.observation()
        back.see(seen[0].images)

    run.on_step = see
    return lambda: replace(seen[0], images=back.images(list(seen[0].images)))


def rollout(
    model: str,
    task: str,
    episodes: int,
    seed: int = 0,
    *,
    horizon: int = 200,
    execute_steps: int = 4,
    workers: int = 1,
    device: str | None = None,
    size: int = 224,
    language: Language = "train",
    cameras: Sequence[str] = ("agentview",),
    only: Sequence[int] | None = None,
    report: Callable[[EpisodeResult], None] = lambda _: None,
) -> list[EpisodeResult]:
    """Evaluates a checkpoint on episodes 0..N-1 of `seed`, or on these `only`, in several
    processes."""
    args = (model, task, tuple(cameras), size, device, language)
    indices = range(episodes) if only is None else only
    with contextlib.closing(WorkerPool(workers, _start, *args)) as pool:
        jobs = [pool.submit(_episode, seed, i, horizon, execute_steps) for i in indices]
        for job in as_completed(jobs):
            report(job.result())
        return [job.result() for job in jobs]


_state: tuple[World, Policy] | None = None


def _start(
    model: str,
    task: str,
    cameras: Sequence[str],
    size: int,
    device: str | None,
    language: Language,
) -> None:
    global _state
    import torch

    from vla_inference.policies.base import LoadOptions
    from vla_inference.policies.registry import load_policy

    torch.set_num_threads(1)
    policy = load_policy(model, LoadOptions.given(device=device, engine="plain"))
    world = make_world(task, cameras, size, size, language)
    _state = world, policy


def _episode(seed: int, index: int, horizon: int, execute_steps: int) -> EpisodeResult:
    assert _state is not None  # by `_start`
    sim, policy = _state
    policy.forget()
    return run_episode(sim, policy.act, seed, index, horizon, execute_steps, needs=policy.needs)


def summarise(results: list[EpisodeResult]) -> dict:
    """Counts, rates and mean frames of a set of episodes, as plain JSON values."""
    good = [r for r in results if r.success]
    low, high = wilson_interval(len(good), len(results))
    ever = sum(r.ever_success for r in results)
    return {
        "task": results[0].task if results else "",
        "seed": results[0].seed if results else 0,
        "horizon": results[0].horizon if results else 0,
        "episodes": len(results),
        "successes": len(good),
        "success_rate": len(good) / max(1, len(results)),
        "success_rate_wilson95": [low, high],
        "ever_successes": ever,
        "ever_success_wilson95": list(wilson_interval(ever, len(results))),
        **{name: sum(r.outcome == name for r in results) for name in WRONG},
        "mean_frames_success": sum(r.frames for r in good) / len(good) if good else None,
        "mean_frames_all": sum(r.frames for r in results) / max(1, len(results)),
        "failed_episodes": [r.index for r in results if not r.success],
    }
