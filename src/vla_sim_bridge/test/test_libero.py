"""Tests of LIBERO's rules, with stand-ins for its package; `make compat` has the real one."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from other_libero import write_other_python

from vla_inference.errors import VlaError
from vla_inference.policies.base import Contract, LoadOptions, Needs, Policy
from vla_inference.serving.openpi.observation_maps import ObservationMap
from vla_inference.serving.openpi.wire_actions import Conversion, with_open_gripper
from vla_inference.system.workers import WorkerDiedError
from vla_inference.types import ActionChunk, eef_delta_spec
from vla_sim_bridge.cli import rollout
from vla_sim_bridge.envs.chunk_to_actions import sim_actions
from vla_sim_bridge.envs.protocol import check_installed, make_world
from vla_sim_bridge.envs.robosuite_sim import episode_rng
from vla_sim_bridge.evaluation.episode import EpisodeRun
from vla_sim_bridge.libero import command, environment, evaluation
from vla_sim_bridge.libero.episodes import Setting, cameras
from vla_sim_bridge.libero.results import Work
from vla_sim_bridge.tasks import get_task
from vla_sim_bridge.tasks.libero_suites import SUITES

RIGHT = np.array([0.05, 0, 0, 0, 0, 0, 1.0])


@pytest.fixture
def there(tmp_path, monkeypatch):
    """Folder of the stand-ins of the other Python, which is the one named."""
    folder = tmp_path / "other"
    folder.mkdir()
    monkeypatch.setenv(environment.PYTHON_VARIABLE, str(write_other_python(folder)))
    return folder


@pytest.fixture
def world(there):
    made = []

    def make(name="libero_spatial", size=(16, 12), **kwargs):
        made.append(make_world(name, ("agentview",), *size, **kwargs))
        return made[-1]

    yield make
    for each in made:
        each.close()


# -- suites ---------------------------------------------------------------------------------------


def test_suites_have_the_published_limits_and_names_are_checked():
    limits = {name: get_task(name).horizon for name in ("libero_goal", "libero_10_swap")}
    assert limits == {"libero_goal": 300, "libero_10_swap": 520}
    assert get_task("LIBERO_Object/3").name == "libero_object/3" and len(SUITES) == 23
    for name, problem in (
        ("libero_sptial", "did you mean libero_spatial"),
        ("libero_goal/10", "no task '10'"),
        ("libero_goal/x", "no task 'x'"),
    ):
        with pytest.raises(VlaError, match=problem):
            get_task(name)


@given(st.sampled_from(sorted(SUITES)), st.integers(0, 4499))
def test_every_initial_state_of_every_task_is_one_episode(name, index):
    suite = SUITES[name]
    if index >= 50 * suite.tasks:
        with pytest.raises(VlaError, match=f"{50 * suite.tasks} episodes"):
            suite.place(index)
    else:
        task, state = suite.place(index)
        assert 0 <= task < suite.tasks and 0 <= state < 50
        assert state * suite.tasks + task == index


def test_a_perturbed_suite_takes_its_sentence_from_the_file(world):
    plain, perturbed = world("libero_spatial"), world("libero_spatial_task")
    for sim in (plain, perturbed):
        sim.start_episode("evaluate", 7, 3)
    assert plain.instruction == "pick up bowl 3"
    assert perturbed.instruction == "pick the akita 3"


# -- an episode -----------------------------------------------------------------------------------


def test_episodes_begin_at_the_benchmarks_states_after_ten_settling_steps(world):
    sim = world()
    sim.start_episode("evaluate", 7, 21)  # task 1, state 2
    start = sim.eef_pose()[:3, 3]
    assert start[0] == pytest.approx(-0.012) and start[2] == 0  # not as it was made
    np.testing.assert_allclose(sim.state()[6:], [0.04, -0.04])  # the gripper opened meanwhile
    sim.step(RIGHT * [1, 1, 1, 1, 1, 1, 0])  # closing: its memory was cleared
    sim.start_episode("evaluate", 7, 21)
    np.testing.assert_array_equal(sim.eef_pose()[:3, 3], start)  # furniture by the seed alone
    sim.start_episode("evaluate", 8, 21)
    assert sim.eef_pose()[1, 3] != start[1]
    for index in (500, 10**6):
        with pytest.raises(VlaError, match="500 episodes"):
            sim.start_episode("evaluate", 7, index)


def test_drawn_scenes_depend_on_their_seed_alone(world):
    """The stand-in refuses to draw while furniture is not where its model has it."""
    sim = world("libero_spatial/4")
    sim.start_episode("generate", 0, 0)
    first = sim.eef_pose()
    sim.reset(episode_rng("generate", 0, 1))
    assert sim.eef_pose()[1, 3] != first[1, 3] and sim.instruction == "pick up bowl 4"
    sim.start_episode("generate", 0, 0)
    np.testing.assert_array_equal(sim.eef_pose(), first)


def test_any_bowl_may_be_asked_for_by_where_it_is(world):
    sim = world("libero_spatial_any/4")
    told = set()
    for index in range(40):
        sim.start_episode("evaluate", 7, index)
        told.add(sim.instruction.removeprefix("pick up the black bowl "))
        assert not sim.other_placed()
    end = " and place it on the plate"
    places = {"on the cookie box", "on the stove", "not on the cookie box", "not on the stove"}
    assert told == {place + end for place in places}


def test_the_wrong_thing_in_place_is_known(world):
    sim = world()
    sim.start_episode("evaluate", 7, 0)
    for _ in range(4):
        sim.step(np.array([-0.05, 0, 0, 0, 0, 0, 1.0]))
    assert sim.other_placed() and not sim.succeeded()


def test_images_are_as_published_and_of_the_moment_that_sensors_saw(world):
    sim = world()
    sim.start_episode("evaluate", 7, 0)
    assert not sim.step(RIGHT).success
    assert sim.step(RIGHT).success  # at 0.1 m
    assert sim.eef_pose()[0, 3] == pytest.approx(0.075)
    upright, seen = sim.render("agentview"), sim.observation().images["agentview"]
    assert upright[-1, 5, 0] == 76 and not upright[:-1, :, 0].any()  # the lowest row is below
    assert (upright[:, 0, 1] == 200).all() and (seen[:, -1, 1] == 200).all()
    np.testing.assert_array_equal(seen, upright[:, ::-1])


def test_the_state_keeps_the_quaternions_sign(world):
    sim = world()
    sim.start_episode("evaluate", 7, 0)
    state = sim.state()
    angle = 2 * np.arccos(-0.6)  # beyond pi: a rotation vector would be turned round
    np.testing.assert_allclose(state[3:6], [0, angle, 0], atol=1e-6)
    assert angle > np.pi and state.dtype == np.float32


def test_success_is_known_by_both_rules(world):
    sim = world()
    run = EpisodeRun(sim, 7, 0, 20)
    while not run.step(RIGHT):
        pass
    assert (run.result().outcome, run.result().frames, run.ever_success) == ("success", 2, True)


# -- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("mujoco.py", "__version__ = '3.17.0'", "mujoco is 3.17.0.*; install mujoco 2.3.7"),
        ("robosuite/__init__.py", "__version__ = '1.5.2'", "robosuite is 1.5.2; .* needs 1.4"),
        ("libero/libero/benchmark.py", "import bddl_", "libero cannot be imported"),
        ("libero/libero/0.bddl", "broken", "cannot be made .Error opening.*install .* again"),
        ("libero/libero/0.bddl", None, "0.bddl is missing"),
    ],
)
def test_what_lacks_over_there_is_named(there, world, name, text, problem):
    (there / name).unlink() if text is None else (there / name).write_text(text)
    with pytest.raises(VlaError, match=problem):
        world("libero_spatial/0")


def test_a_suite_that_the_package_lacks_is_refused(there):
    with pytest.raises(VlaError, match="registers no environment 'libero_90'"):
        check_installed(get_task("libero_90"))


def test_its_death_is_told_with_its_last_words(world, monkeypatch):
    monkeypatch.setenv("DIE", "1")
    sim = world()
    sim.start_episode("evaluate", 7, 0)
    with pytest.raises(VlaError, match=r"ended at 'step' \(SIGKILL\); it said: .*lost my bowl"):
        for _ in range(3):
            sim.step(RIGHT)


def test_the_environment_is_made_once_and_a_failure_is_told(tmp_path, monkeypatch, capsys):
    ran, run = [], environment._run
    monkeypatch.setattr(environment, "_base_python", lambda: sys.executable)
    monkeypatch.setattr(environment, "_run", lambda title, words, log: ran.append(words))
    python = environment.make(tmp_path)
    assert environment.make(tmp_path) == python
    assert [words[1:3] for words in ran] == [["-m", "venv"], ["-m", "pip"]]
    assert "first use" in capsys.readouterr().err
    with pytest.raises(VlaError, match=r"pip failed .status 3.: no space left; see .*make.log"):
        run("pip", ["sh", "-c", "echo no space left; exit 3"], tmp_path / "make.log")


def test_what_cannot_be_run_is_refused_at_once():
    server = "openpi:ws://127.0.0.1:1"
    with pytest.raises(VlaError, match="ask for 1 to 500"):
        command.run("libero_spatial", server, LoadOptions(), episodes=501, seed=7)
    with pytest.raises(VlaError, match="ask for 1 to 50: "):
        command.run("libero_spatial/2", server, LoadOptions(), episodes=51, seed=7)
    for more in ({"only": (3, 500)}, {"first": 490, "episodes": 11}):
        given = {"episodes": 1, "seed": 7, **more}
        with pytest.raises(VlaError, match="has no episode 500; its episodes are 0 to 499"):
            command.run("libero_spatial", server, LoadOptions(), **given)
    with pytest.raises(VlaError, match="both --first and --only"):
        rollout.rollout(task="libero_goal", first=3, only="4")
    for more in ({"observation_map": "libero"}, {"parallel": 2}, {"ros": False}):
        with pytest.raises(VlaError, match="are for LIBERO without ROS"):
            rollout.rollout(task="Stack_D0", **more)
    with pytest.raises(VlaError, match="--real-time is over ROS 2"):
        rollout.rollout(task="libero_goal", lock_step=False)


# -- maps -----------------------------------------------------------------------------------------


def test_maps_say_which_checkpoints_want_mirrored_images():
    mirrored = {n: ObservationMap.load(n).mirrored for n in ("libero", "libero_oft", "libero_pi")}
    assert mirrored == {"libero": False, "libero_oft": True, "libero_pi": True}


@pytest.mark.parametrize(("name", "opens", "closes"), [("libero_pi", -1, 1), ("libero_oft", 1, 0)])
def test_the_gripper_opens_and_closes_by_the_maps_sign(name, opens, closes):
    spec = ObservationMap.load(name).spec
    convert = Conversion.between(spec, with_open_gripper(spec))
    actions = np.zeros((2, 7), np.float32)
    actions[:, :6], actions[:, 6] = 1, (opens, closes)
    si = sim_actions(ActionChunk(convert(actions), convert.spec))
    np.testing.assert_allclose(si[0], [0.05] * 3 + [0.5] * 3 + [1], rtol=1e-6)
    assert si[1, 6] == 0


def test_steps_of_a_chunk_are_those_of_published_clients():
    def steps(name, chunk, asked=0):
        contract = Contract(Needs(), eef_delta_spec(), chunk)
        return command.steps_of(contract, ObservationMap.load(name), asked)

    assert [steps("libero_pi", 10), steps("libero_oft", 8), steps("libero_oft", 1)] == [5, 8, 1]
    assert [steps("libero", 6), steps("libero_pi", 10, 7)] == [6, 7]
    with pytest.raises(VlaError, match="is 9, but the model's chunks have 8"):
        steps("libero_oft", 8, 9)


def test_over_ros_as_many_steps_of_a_chunk_are_executed_as_without(there, tmp_path, monkeypatch):
    asked = []

    def play(settings, *_):
        asked.append(settings.execute_steps)
        return 1, None

    contract = Contract(Needs(), eef_delta_spec(), 10)
    monkeypatch.setattr(rollout, "check_model", lambda *_: contract)
    monkeypatch.setattr(rollout, "play", play)
    for steps in (None, 7):
        rollout.rollout(
            task="libero_spatial", model="openpi:ws://there:1", ros=True, execute_steps=steps
        )
    assert asked == [5, 7]


def test_models_that_need_what_libero_lacks_are_refused():
    assert cameras(Needs(2, 8)) == ("agentview", "robot0_eye_in_hand")
    for needs, problem in ((Needs(3), "takes 3 images"), (Needs(1, 7), "7 numbers of state")):
        with pytest.raises(VlaError, match=problem):
            cameras(needs)


# -- a run ----------------------------------------------------------------------------------------


class HereAtOnce:
    """Workers that play in this process; `dies` at these calls of `finished`."""

    dies: set[int] = set()
    calls = 0

    def __init__(self, make, count):
        self.count, self._play, self._given = count, make(), []

    def start(self, number):
        self._given.append(number)

    def finished(self):
        type(self).calls += 1
        if self.calls in self.dies:
            raise WorkerDiedError
        number = self._given.pop(0)
        return [(number, self._play(number))]

    def close(self):
        self._given.clear()


class Right(Policy):
    """Moves to the right."""

    name, placement, needs, chunk = "right", "here", Needs(), 5

    def action_spec(self):
        return eef_delta_spec()

    def predict(self, observations):
        actions = np.tile(RIGHT.astype(np.float32), (self.chunk, 1))
        spec = self.action_spec()
        return [ActionChunk(actions, spec, timing={"total": 2.0}) for _ in observations]


@pytest.fixture
def run(there, monkeypatch):
    monkeypatch.setattr("vla_inference.policies.registry.load_policy", lambda *_: Right())
    monkeypatch.setattr(evaluation, "Processes", HereAtOnce)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(HereAtOnce, "dies", set())
    monkeypatch.setattr(HereAtOnce, "calls", 0)
    setting = Setting(
        "libero_spatial", "model", LoadOptions(), "libero_pi", 7, 30, 5, width=16, height=12
    )

    def evaluate(folder, episodes, tell=lambda _: None, failures=0, **change):
        indices = range(episodes) if isinstance(episodes, int) else episodes
        work = Work(indices, folder, parallel=1, films=0, failures=failures)
        return evaluation.evaluate(replace(setting, **change), work, tell)

    return evaluate


def test_a_run_counts_each_task_and_writes_its_report(run, tmp_path):
    results = run(tmp_path / "run", 20)
    assert (results["episodes"], results["ever_successes"], results["complete"]) == (20, 20, True)
    assert [t["episodes"] for t in results["tasks"]] == [2] * 10
    assert results["tasks"][3]["in_file"] == "pick the akita 3"
    assert results["latency_ms"]["median"] == 2.0
    assert "pick up bowl 9" in (tmp_path / "run" / "report.html").read_text()


def test_episodes_may_be_named_and_failures_become_films_of_what_the_model_saw(run, tmp_path):
    folder = tmp_path / "run"
    results = run(folder, [3, 14, 21], horizon=1, failures=2)  # too short for any success
    assert [e["index"] for e in results["per_episode"]] == [3, 14, 21]
    assert results["only_episodes"] == [3, 14, 21] and "--only 3,14,21" in results["command"]
    films = sorted(path.name for path in folder.glob("failures/*"))
    assert len(films) == 2 and {*films} < {f"episode_{i}.mp4" for i in (3, 14, 21)}
    assert f'href="failures/{films[0]}"' in (folder / "report.html").read_text()
    told = []
    again = run(folder, [14, 22], told.append, horizon=1)  # one of them is there already
    assert [e["index"] for e in again["per_episode"]] == [14, 22]
    assert told[0].startswith("1 of 2") and told[1].startswith("episode 2/2")
    later = run(tmp_path / "later", range(5, 8))
    assert later["first_episode"] == 5 and "--episodes 3 --first 5" in later["command"]


def test_a_stopped_run_goes_on_and_counts_nothing_twice(run, tmp_path):
    folder = tmp_path / "run"
    HereAtOnce.dies = {3, 4, 5}
    with pytest.raises(VlaError, match="workers die"):
        run(folder, 20)
    lines = (folder / "episodes.jsonl").read_text()
    (folder / "episodes.jsonl").write_text(lines[:-20])  # the last line was being written
    HereAtOnce.dies = {7}  # one death on the way is nothing
    results = run(folder, 20)
    assert [e["index"] for e in results["per_episode"]] == list(range(20))
    assert results["episodes"] == 20


def test_a_lost_process_of_libero_is_replaced_and_its_episodes_are_played_again(
    run, tmp_path, monkeypatch
):
    """The same results as undisturbed, each episode once."""
    plain = run(tmp_path / "plain", 12)
    once = tmp_path / "once"
    monkeypatch.setenv("DIE", str(once))
    once.touch()
    told = []
    results = run(tmp_path / "run", 12, tell=told.append)
    assert not once.exists()
    assert "SIGKILL" in told[0] and told[0].endswith("its episodes are played again")
    kept = [{k: v for k, v in e.items() if k != "seconds"} for e in results["per_episode"]]
    assert kept == [{k: v for k, v in e.items() if k != "seconds"} for e in plain["per_episode"]]


def test_a_process_that_is_lost_again_and_again_ends_the_run_which_goes_on_later(
    run, tmp_path, monkeypatch
):
    monkeypatch.setenv("DIE", "always")
    with pytest.raises(VlaError, match=r"ended at 'step' .SIGKILL.; it said: .*lost my bowl"):
        run(tmp_path / "run", 3)
    assert len((tmp_path / "run" / "episodes.jsonl").read_text().splitlines()) == 1  # its setting
    monkeypatch.delenv("DIE")
    assert run(tmp_path / "run", 3)["complete"]


def test_a_missing_file_of_a_task_ends_the_run_with_what_was_played(run, there, tmp_path):
    """It is no failure of the policy, and the same command goes on once it is there again."""
    (there / "libero/libero/1.bddl").write_text("broken")
    with pytest.raises(VlaError, match=r"cannot be made .*'bowl.obj'.*; install libero-pro"):
        run(tmp_path / "run", 3)
    (there / "libero/libero/1.bddl").write_text("")
    told = []
    results = run(tmp_path / "run", 3, tell=told.append)
    assert told[0] == "1 of 3 episodes are there already"
    assert [e["index"] for e in results["per_episode"]] == [0, 1, 2]


def test_a_folder_of_another_run_is_refused(run, tmp_path):
    run(tmp_path / "run", 2)
    with pytest.raises(VlaError, match="episodes of another run"):
        run(tmp_path / "run", 2, seed=8)


@given(st.lists(st.integers(0, 499), unique=True), st.integers(1, 16))
def test_batches_hold_each_episode_once_and_one_task_each(indices, parallel):
    setting = Setting("libero_spatial", "", LoadOptions(), "libero_pi", 7, 30, 5, 16, 12)
    groups = evaluation.batches(setting, indices, parallel)
    assert sorted(i for group in groups for i in group) == sorted(indices)
    assert all(len({i % 10 for i in group}) == 1 and len(group) <= 5 for group in groups)
