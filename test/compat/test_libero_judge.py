"""An independent judge of LIBERO sees the same observations and successes as `vla rollout`.

vla-evaluation-harness plays LIBERO's own package in the Python that VLA_JUDGE_PYTHON names, asks
our server through openpi's client, and counts by its own rules. The served policy replays what our
scripted expert did from the same initial states.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from elsewhere import elsewhere, interpreter
from model_server import running

from vla_inference.episodes.robosuite import to_robosuite
from vla_inference.policies.base import LoadOptions, Needs, Policy
from vla_inference.serving.openpi.observation_maps import ObservationMap, pad_to
from vla_inference.types import ActionChunk, Observation
from vla_sim_bridge.evaluation.episode import SETTLE_STEPS
from vla_sim_bridge.libero import command
from vla_sim_bridge.libero.environment import PYTHON_VARIABLE
from vla_sim_bridge.libero.world import LiberoWorld
from vla_sim_bridge.tasks import get_task

VARIABLE = "VLA_JUDGE_PYTHON"
SEED, EXECUTED = 7, 5  # steps of a chunk, as openpi's client has it
JUDGE = """
import contextlib, json, os, sys
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])
import numpy as np
from openpi_client import image_tools
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from vla_eval.api import evaluate
from vla_eval.model_servers.predict import PredictModelServer

port, suite, task, episodes, limit, out = sys.argv[1:]

class Openpi(PredictModelServer):
    "Asks a server as openpi's example for LIBERO does."

    def __init__(self):
        super().__init__(chunk_size=5)
        self.client = WebsocketClientPolicy("127.0.0.1", int(port))

    def predict(self, obs, ctx):
        front, hand = (np.asarray(obs["images"][name]) for name in ("agentview", "wrist"))
        return {"actions": self.client.infer({
            "observation/image": image_tools.resize_with_pad(front, 224, 224),
            "observation/wrist_image": image_tools.resize_with_pad(hand, 224, 224),
            "observation/state": np.asarray(obs["states"]),
            "prompt": obs["task_description"]})["actions"]}

with contextlib.redirect_stdout(sys.stderr):
    results = evaluate(Openpi(), {"benchmarks": [{
        "benchmark": "vla_eval.benchmarks.libero.benchmark:LIBEROBenchmark",
        "episodes_per_task": int(episodes), "tasks": [task], "max_steps": int(limit),
        "params": {"suite": suite, "seed": 7, "send_wrist_image": True, "send_state": True,
                   "quat_no_antipodal": True}}]}, docker=False, no_save=True, output_dir=out)
(task,) = results[0]["tasks"]
print(json.dumps([{key: episode.get(key) for key in ("metrics", "steps", "failure_detail")}
                  for episode in task["episodes"]]))
"""


@dataclass
class Replay(Policy):
    """Plays recorded episodes: the one that began with the arm where it is, which differs.

    plans: what an episode does, float32 [T, 7] as the wire has it. starts: the states that they
    began with. asked: what it was shown in each.
    """

    plans: list[np.ndarray]
    starts: list[np.ndarray]
    asked: list[list[Observation]] = field(default_factory=list)
    plan: np.ndarray = field(default_factory=lambda: np.zeros((0, 7)))

    name, placement, needs, chunk = "replay", "here", Needs(2, 8), 10

    def warm_up(self):
        """There is nothing to warm up, and no grey image to count."""
        return 0.0

    def action_spec(self):
        return ObservationMap.load("libero_pi").spec

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [self._answer(observation) for observation in observations]

    def _answer(self, seen: Observation) -> ActionChunk:
        for plan, start in zip(self.plans, self.starts, strict=True):
            if np.allclose(seen.state, start, atol=1e-6):
                self.plan = plan
                self.asked.append([])
        if not self.asked:  # a client warms up
            return ActionChunk(np.zeros((self.chunk, 7), np.float32), self.action_spec())
        begin = EXECUTED * len(self.asked[-1])
        self.asked[-1].append(seen)
        rows = np.minimum(begin + np.arange(self.chunk), len(self.plan) - 1)
        return ActionChunk(self.plan[rows], self.action_spec(), timing={"total": 1.0})


def recorded(suite: str, task: int, states: int) -> tuple[list[np.ndarray], list, str]:
    """What the expert does from each of these initial states, where it begins, the sentence."""
    world = LiberoWorld(get_task(f"{suite}/{task}"), cameras=())
    try:
        limit = world.task.horizon
        done = [world.attempt(task, SEED, k, limit, SETTLE_STEPS, 0.0) for k in range(states)]
        assert all(attempt.outcome == "success" for attempt in done)
        plans = [to_robosuite(a.columns["actions"]).astype(np.float32) for a in done]
        return plans, [a.columns["robot0_state"][0] for a in done], world.instruction
    finally:
        world.close()


@pytest.mark.parametrize(("suite", "task", "fails"), [("libero_object", 0, 1)])
def test_it_judges_as_we_do(tmp_path: Path, monkeypatch, suite, task, fails):
    """Episode by episode; one of them never closes the gripper, which must fail for both.

    Object's scenes have no furniture: the judge draws its places anew in each episode, we in none.
    """
    monkeypatch.setenv(PYTHON_VARIABLE, os.environ.get(PYTHON_VARIABLE) or interpreter(VARIABLE))
    plans, starts, sentence = recorded(suite, task, 2)
    assert not np.allclose(*starts, atol=1e-4)
    plans[fails][:, 6] = -1
    limit = max(map(len, plans))
    policies = [Replay(plans, starts) for _ in range(2)]
    with running(lambda: policies[0], map="libero_pi") as server:
        ours, _ = command.run(
            f"{suite}/{task}",
            f"openpi:{server.url}?map=libero_pi",
            LoadOptions(),
            episodes=2,
            seed=SEED,
            horizon=limit,
            parallel=1,
            films=0,
            output=tmp_path / "ours",
        )
    with running(lambda: policies[1], map="libero_pi") as server:
        found = [server.port, suite, sentence, 2, limit, tmp_path / "judge"]
        theirs = elsewhere(VARIABLE, tmp_path, JUDGE, *found)
    assert [e["failure_detail"] for e in theirs] == [None, None]
    succeeded = [e["metrics"]["success"] for e in theirs]
    assert succeeded == [number != fails for number in range(2)]
    assert [e["ever_success"] for e in ours["per_episode"]] == succeeded
    mine, judged = (policy.asked for policy in policies)
    assert [len(asked) for asked in judged] == [-(-e["steps"] // EXECUTED) for e in theirs]
    assert [len(asked) for asked in mine] == [len(asked) for asked in judged]
    for ours_seen, seen in zip(itertools.chain(*mine), itertools.chain(*judged), strict=True):
        assert ours_seen.instruction == seen.instruction
        np.testing.assert_allclose(ours_seen.state, seen.state, atol=1e-6)  # float32's rounding
        for one, other in zip(ours_seen.images.values(), seen.images.values(), strict=True):
            apart = np.abs(pad_to(one, other.shape[:2]).astype(int) - other)
            assert apart.mean() < 0.01 and (apart > 2).mean() < 1e-3  # single pixels, at edges
