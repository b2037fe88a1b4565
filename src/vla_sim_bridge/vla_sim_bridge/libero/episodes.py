"""One LIBERO episode in a worker process: the policy, the world, and what it gave."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from vla_inference.errors import VlaError
from vla_inference.policies.base import LoadOptions, Needs, Policy
from vla_inference.serving.openpi.observation_maps import ObservationMap
from vla_inference.serving.openpi.wire_actions import Conversion, with_open_gripper
from vla_inference.types import UNSTATED, ActionChunk
from vla_sim_bridge.envs.chunk_to_actions import sim_actions
from vla_sim_bridge.evaluation.episode import EpisodeResult, EpisodeRun
from vla_sim_bridge.evaluation.video import SIZE, Caption, draw
from vla_sim_bridge.libero.world import CAMERAS, LiberoWorld
from vla_sim_bridge.tasks import get_task


@dataclass(frozen=True)
class Setting:
    """What a run is played with. observation_map: name or file; execute: steps of a chunk."""

    task: str
    model: str
    options: LoadOptions
    observation_map: str
    seed: int
    horizon: int
    execute: int
    width: int
    height: int


@dataclass
class Played:
    """An episode and its measurements.

    task, state: indices in the suite. sentences: by the task's name and by its file. steps: that
    were executed. frames: its film, where one was asked for. seen: images that the model was given
    and at which steps, of an episode that failed.
    """

    result: EpisodeResult
    task: int
    state: int
    sentences: dict[str, str]
    model: str
    versions: dict[str, str]
    seconds: float = 0.0
    steps: int = 0
    latency_ms: list[float] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)
    seen: list[tuple[np.ndarray, int]] = field(default_factory=list)


class Player:
    """Plays episodes of one run, one after the other."""

    def __init__(self, setting: Setting):
        from vla_inference.policies.registry import load_policy

        self.setting, self.map = setting, ObservationMap.load(setting.observation_map)
        self.policy: Policy = load_policy(setting.model, setting.options)
        self.policy.warm_up()
        self.needs = self.policy.needs
        size = setting.width, setting.height
        names = cameras(self.needs)
        task = get_task(setting.task)
        self.world = LiberoWorld(task, names, *size, mirrored=self.map.mirrored)

    def play(self, index: int, number: int, of: int, film: bool) -> Played:
        """index: the benchmark's, of the episode. number: its place among the `of` of this run."""
        began = time.perf_counter()
        world, setting = self.world, self.setting
        run = EpisodeRun(world, setting.seed, index, setting.horizon)
        task, state = world.place(index)
        told = world.sentences[task]
        played = Played(run.result(), task, state, told, self.policy.name, world.versions)
        while not run.done:
            observation = world.observation()
            played.seen.append((next(iter(observation.images.values())), run.step_count))
            if film:
                caption = Caption(world.instruction, number, of, run.step_count, index=index)
                image = world.render(CAMERAS[0], SIZE, SIZE)
                played.frames.append(draw(image, caption))
            if not self.needs.state:
                observation.state = None
            chunk = self.policy.act(observation)
            played.latency_ms.append(float(chunk.timing.get("total", float("nan"))))
            for action in sim_actions(self._meant(chunk))[: setting.execute]:
                played.steps += 1
                if run.step(action):
                    break
        if run.outcome == "timeout" and world.other_placed():
            run.outcome = "wrong_object"
        played.result = run.result()
        if run.outcome == "success":
            played.seen.clear()
        if film:
            caption = Caption(world.instruction, number, of, run.step_count, run.outcome, index)
            played.frames.append(draw(world.render(CAMERAS[0], SIZE, SIZE), caption))
        played.seconds = time.perf_counter() - began
        return played

    def _meant(self, chunk: ActionChunk) -> ActionChunk:
        """Numbers of which the checkpoint does not say what they mean are as the map says."""
        spec = self.map.spec
        if spec is None or not any(d.unit in UNSTATED for d in _arm(chunk)):
            return chunk
        convert = Conversion.between(spec, with_open_gripper(spec))
        return ActionChunk(convert(chunk.actions), convert.spec, timing=chunk.timing)

    def close(self) -> None:
        self.world.close()
        self.policy.close()


def _arm(chunk: ActionChunk):
    return [dim for part in chunk.spec.parts if part.kind != "gripper" for dim in part.dims]


def cameras(needs: Needs) -> tuple[str, ...]:
    """LIBERO's cameras in the order of published models: from the front, from the hand."""
    if needs.history or not 1 <= needs.images <= len(CAMERAS):
        past = f" and {needs.history} earlier ones" if needs.history else ""
        raise VlaError(
            f"the model takes {needs.images} images{past}",
            f"LIBERO has {len(CAMERAS)} cameras, {' and '.join(CAMERAS)}",
        )
    if needs.state not in (0, 8):
        raise VlaError(
            f"the model takes {needs.state} numbers of state",
            "LIBERO's published state has 8: position 3, axis angle 3, fingers 2",
        )
    return CAMERAS[: needs.images]
