"""Tests of the bridge to RoboCasa, with stand-ins for its package; `make compat` has the real."""

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from other_robocasa import write_other_python

from vla_inference.episodes import robocasa
from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk, base_twist_spec, eef_delta_spec
from vla_sim_bridge.cli import generate
from vla_sim_bridge.envs.base import episode_rng
from vla_sim_bridge.envs.protocol import check_installed, make_world
from vla_sim_bridge.envs.robocasa_package import server
from vla_sim_bridge.envs.robocasa_package.environment import PYTHON_VARIABLE
from vla_sim_bridge.evaluation.episode import EpisodeRun
from vla_sim_bridge.tasks import get_task

UP = np.array([0.0, 0, 0.05, 0, 0, 0, 1])
SPEC = robocasa.robocasa_spec()


@pytest.fixture
def there(tmp_path, monkeypatch):
    """Folder of the stand-ins of the other Python, which is the one named."""
    monkeypatch.setenv(PYTHON_VARIABLE, str(write_other_python(tmp_path)))
    return tmp_path


@pytest.fixture
def world(there):
    made = []

    def make(name="robocasa/OpenDrawer", cameras=("agentview", "wrist")):
        made.append(make_world(name, cameras, 32, 24))
        return made[-1]

    yield make
    for each in made:
        each.close()


@given(hnp.arrays(np.float64, (3, 12), elements=st.floats(-1, 1)))
def test_the_package_numbers_survive_the_way_to_si_and_back(actions):
    actions[:, 6] = np.where(actions[:, 6] > 0, 1, -1)
    moves = np.abs(actions[:, 7:11] * [1, 1, 1, 0.05]).max(axis=1) > 1e-5
    still = np.abs(actions[:, 7:11]).max(axis=1) == 0
    actions[:, 11] = np.where(moves, 1, -1)
    back = robocasa.to_robocasa(robocasa.from_robocasa(actions))
    np.testing.assert_allclose(back[moves | still], actions[moves | still], atol=1e-12)
    assert robocasa.from_robocasa(actions).shape == (3, len(SPEC))


def test_an_episode_has_its_kitchen_sentence_and_success_from_the_package(world):
    sim, told = world(), []
    assert sim.task.horizon == 750 and sim.versions["robosuite"] == "1.5.2"
    for index in (0, 1, 0):
        run = EpisodeRun(sim, 3, index, sim.task.horizon)
        told.append((sim.instruction, dict(sim.kitchen), sim.state().tolist()))
        before = sim.eef_pose()[:3, 3]
        while not run.step(UP):
            pass
        result = run.result()
        assert (result.task, result.outcome, result.frames) == (
            "robocasa/OpenDrawer",
            "success",
            2,
        )
        assert result.instruction in ("Open the left drawer.", "Open the right drawer.")
        np.testing.assert_allclose(sim.eef_pose()[:3, 3], before + 2 * UP[:3], atol=1e-9)
    assert told[0] == told[2] != told[1]
    assert told[0][1]["layout"] > 0 and told[0][1]["style"] == -1


def test_hand_and_base_move_in_the_axes_of_the_base(world):
    sim = world()
    sim.start_episode("evaluate", 0, 0)
    heading = 2 * np.arctan2(*sim.state()[[5, 6]])
    ahead, base = np.array([np.cos(heading), np.sin(heading), 0]), sim.base_position()
    before = sim.eef_pose()[:3, 3]
    sim.step(np.array([0.02, 0, 0, 0, 0, 0, 0.0]))
    np.testing.assert_allclose(sim.eef_pose()[:3, 3], before + 0.02 * ahead, atol=1e-6)
    np.testing.assert_allclose(sim.state()[14:], [0, 0], atol=1e-6)  # closed
    sim.step(np.array([0, 0, 0, 0, 0, 0, 1.0, 0.4, 0, 0, 0]))
    np.testing.assert_allclose(sim.base_position(), base + 0.05 * 0.4 * ahead, atol=1e-6)
    assert sim.hold().success is False and sim.still().shape == (11,)
    images = sim.observation().images
    assert images["agentview"][-1].max() == 255 and images["wrist"][-1].max() == 100
    assert not images["agentview"][:-1].any() and sim.state().dtype == np.float32
    np.testing.assert_allclose(sim.camera_matrix("agentview")[1, 2], 12)
    for wrong, problem in (
        (lambda: sim.step(np.zeros(9)), "not 7 or 11 finite numbers"),
        (lambda: sim.step(np.full(11, np.inf)), "not 7 or 11 finite numbers"),
        (lambda: sim.render("nose"), "no camera 'nose'; cameras: robot0_agentview_left"),
    ):
        with pytest.raises(VlaError, match=problem):
            wrong()


def test_chunks_of_any_of_its_parts_are_executed(world):
    sim = world()
    sim.start_episode("evaluate", 0, 0)
    whole = np.random.default_rng(0).uniform(-0.01, 0.01, (2, 11)).astype(np.float32)
    whole[:, 6] = 1
    np.testing.assert_allclose(sim.actions(ActionChunk(whole, SPEC)), whole, atol=1e-7)
    arm = ActionChunk(whole[:, :7], eef_delta_spec())
    assert sim.actions(arm).shape == (2, 7)
    with pytest.raises(VlaError, match=r"the chunk's base \(base_twist, m/s, rad/s\) cannot"):
        sim.actions(ActionChunk(whole[:, :2], base_twist_spec()))


def test_what_lacks_over_there_is_named(there):
    def problem(of: str):
        return pytest.raises(VlaError, match=of)

    with problem("registers no environment 'OpenDraw'; it registers 4, such as OpenDrawer"):
        check_installed(get_task("robocasa/OpenDraw"))
    shutil.rmtree(there / "robocasa" / "models" / "assets" / "objects")
    with problem("has no assets .*objects is missing.*download_kitchen_assets"):
        check_installed(get_task("robocasa/OpenDrawer"))
    (there / "robosuite" / "__init__.py").write_text("__version__ = '1.4.1'  # old")
    with problem("robosuite is 1.4.1; robocasa needs 1.5"):
        check_installed(get_task("robocasa/OpenDrawer"))
    shutil.rmtree(there / "robosuite")
    with problem("robosuite cannot be imported .*; install robosuite 1.5"):
        check_installed(get_task("robocasa/OpenDrawer"))


def test_names_are_refused_before_anything_is_started(tmp_path, monkeypatch):
    assert get_task("RoboCasa/target/OpenDrawer").name == "robocasa/OpenDrawer"
    assert get_task("robocasa/pretrain/OpenDrawer").name == "robocasa/pretrain/OpenDrawer"
    for name in ("robocasa/", "robocasa/a/b/c", "robocasa/test/OpenDrawer", "robocasa/a b"):
        with pytest.raises(VlaError, match="there is no task"):
            get_task(name)
    with pytest.raises(VlaError, match="can be rolled out, not generated from"):
        generate.generate(tasks=["robocasa/OpenDrawer"], output=tmp_path / "out")
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    with pytest.raises(VlaError, match="is not named; set VLA_ROBOCASA_PYTHON"):
        check_installed(get_task("robocasa/OpenDrawer"))
    monkeypatch.setenv(PYTHON_VARIABLE, "/nowhere")
    with pytest.raises(VlaError, match="no Python '/nowhere'"):
        check_installed(get_task("robocasa/OpenDrawer"))


def test_its_death_and_its_errors_are_told_and_an_error_is_survived(world):
    sim = world("robocasa/Fails")
    sim.reset(episode_rng("evaluate", 0, 0))
    for _ in range(2):
        with pytest.raises(VlaError, match="RuntimeError: no sink"):
            sim.step(UP)
    sim = world("robocasa/pretrain/Dies")
    run = EpisodeRun(sim, 0, 0, 30)
    run.step(0 * UP)
    run.step(0 * UP)
    for _ in range(2):
        with pytest.raises(VlaError, match=r"ended at 'step' \(SIGKILL\).*lost my kitchen"):
            run.step(0 * UP)


def test_both_sides_agree_on_the_published_state():
    assert server.STATE == robocasa.STATE
