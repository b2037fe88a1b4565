"""Tests of the bridge to an installed mimicgen, with stand-ins for that package."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_inference.errors import VlaError
from vla_sim_bridge.cli import generate, rollout
from vla_sim_bridge.envs.mimicgen_package.process import PYTHON_VARIABLE
from vla_sim_bridge.envs.other_python import process
from vla_sim_bridge.envs.other_python.server import FrameError, read_frame, write_frame
from vla_sim_bridge.envs.protocol import check_installed, make_world
from vla_sim_bridge.envs.robosuite_sim import Simulation, episode_rng
from vla_sim_bridge.evaluation.episode import SETTLE_STEPS, EpisodeRun
from vla_sim_bridge.tasks import get_task
from vla_sim_bridge.tasks.mimicgen_package import PUBLISHED, published_names

# A point that goes where it is told, on a base that is turned by 90 degrees. It has succeeded
# wherever it is 0.1 m or more above its start, which is drawn from numpy's global generator.
ROBOSUITE = """
import os, stat, sys, time
from types import SimpleNamespace
import numpy as np
from robosuite.environments.base import REGISTERED_ENVS
__version__ = "1.4.1"
TURNED = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])

def load_controller_config(default_controller):
    assert default_controller == "OSC_POSE"

class State(np.ndarray):
    pass

def make(name, robots, **kwargs):
    print("robosuite chatters on standard output")
    assert robots == "Panda" and kwargs["control_freq"] == 20 and kwargs["ignore_done"]
    return Env(name)

class Env:
    def __init__(self, name):
        self.name = name
        self.robots = [SimpleNamespace(eef_site_id=1, _ref_gripper_joint_pos_indexes=[0, 1])]
        data = SimpleNamespace(
            site_xpos=np.zeros((2, 3)), site_xmat=np.tile(np.eye(3).ravel(), (2, 1)),
            qpos=np.array([0.04, -0.04]), get_body_xpos=lambda n: np.array([-0.5, 0, 0.9]),
            get_body_xmat=lambda n: TURNED)
        model = SimpleNamespace(camera_names=("agentview",), cam_fovy=np.array([90.0]))
        self.sim = SimpleNamespace(
            data=data, model=model, render=self.render, get_state=self.state, forward=print,
            set_state_from_flattened=self.set_state)

    def reset(self):
        self.steps = 0
        self.sim.data.site_xpos[1] = self.start = np.random.uniform(size=3)

    def step(self, action):
        self.steps += 1
        if self.name == "Coffee_D0":
            time.sleep(60)
        if self.name == "Kitchen_D0" and self.steps == 3:
            print("lost my pot", file=sys.stderr, flush=True)
            os.kill(os.getpid(), 9)
        if self.name == "Square_D0":
            raise RuntimeError("no peg")
        if self.name == "Threading_D0":
            for fd in map(int, os.listdir("/proc/self/fd")):
                if fd > 2 and stat.S_ISFIFO(os.fstat(fd).st_mode):  # where replies go
                    os.write(fd, b"junk, much of it")
        self.sim.data.site_xpos[1] += 0.05 * action[:3]
        self.sim.data.qpos[:] = 0.04 * -action[6], 0.04 * action[6]

    def _check_success(self):
        return np.bool_(self.sim.data.site_xpos[1][2] >= self.start[2] + 0.1 - 1e-9)

    def render(self, camera_name, width, height):
        image = np.zeros((height, width, 3), np.uint8)
        image[0] = 255  # the lowest row
        return image

    def state(self):
        return self.sim.data.site_xpos[1].copy().view(State)

    def set_state(self, state):
        self.sim.data.site_xpos[1] = state
"""
MIMICGEN = """
from robosuite.environments.base import REGISTERED_ENVS
for name in "Stack_D0 Stack_D1 Coffee_D0 Kitchen_D0 Square_D0 Threading_D0".split():
    REGISTERED_ENVS[name] = object
"""
UP = np.array([0.0, 0, 0.05, 0, 0, 0, 1])


def other_python(folder: Path, python: str = sys.executable) -> str:
    """An interpreter that has the modules in `folder`."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {python} "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def there(tmp_path, monkeypatch):
    """Folder of the stand-in modules of the other Python, which is the one named."""
    for name, text in {
        "robosuite/__init__.py": ROBOSUITE,
        "robosuite/environments/__init__.py": "",
        "robosuite/environments/base.py": "REGISTERED_ENVS = {'Lift': object}",
        "mujoco.py": "__version__ = '2.3.2'",
        "mimicgen.py": MIMICGEN,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setenv(PYTHON_VARIABLE, other_python(tmp_path))
    yield tmp_path


@pytest.fixture
def world(there):
    made = []

    def make(name="mimicgen/Stack_D0", **kwargs):
        made.append(make_world(name, width=32, height=24, **kwargs))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_an_episode_counts_by_the_settle_rule_and_its_seed_alone_decides_it(world):
    sim = world("mimicgen/stack_d1")
    starts = []
    for index in (0, 1, 0):
        run = EpisodeRun(sim, 3, index, 30)
        starts.append(sim.eef_pose()[:3, 3])
        while not run.step(UP):
            pass
        result = run.result()
        assert (result.task, result.outcome, result.frames) == ("mimicgen/Stack_D1", "success", 2)
        assert result.instruction == "stack the red block on top of the green block"
        np.testing.assert_allclose(sim.eef_pose()[:3, 3], starts[-1] + [0, 0, 0.1], atol=1e-12)
    assert sim.versions["robosuite"] == "1.4.1" and sim.versions["mujoco"] == "2.3.2"
    assert (starts[0] == starts[2]).all() and (starts[0] != starts[1]).all()
    assert SETTLE_STEPS == 10


def test_actions_are_in_the_base_frame_and_images_upright(world):
    sim = world()
    sim.reset(episode_rng("evaluate", 0, 0))
    before = sim.eef_pose()
    sim.step(np.array([0.02, 0, 0, 0, 0, 0, 0]))
    np.testing.assert_allclose(sim.eef_pose()[:3, 3] - before[:3, 3], [0, 0.02, 0], atol=1e-12)
    np.testing.assert_allclose(sim.state()[6:], [-0.04, 0.04])  # closed is +1 over there
    assert sim.gripper == 0
    image = sim.observation().images["agentview"]
    assert image.shape == (24, 32, 3) and (image[-1] == 255).all() and not image[:-1].any()
    np.testing.assert_allclose(sim.camera_matrix("agentview")[:2], [[12, 0, 16], [0, 12, 12]])
    state = sim.get_mujoco_state()
    sim.step(UP)
    sim.set_mujoco_state(state)
    np.testing.assert_array_equal(sim.eef_pose()[:3, 3], state)
    for wrong, problem in (
        (lambda: sim.set_mujoco_state(np.zeros(9)), "9 numbers, this world has 3"),
        (lambda: sim.render("nose"), "no camera 'nose'; cameras: agentview"),
        (lambda: sim.step(np.full(7, np.nan)), "not 7 finite numbers"),
    ):
        with pytest.raises(VlaError, match=problem):
            wrong()
    sim.step(UP)  # none of these ended it


@pytest.mark.parametrize(
    ("module", "text", "problem"),
    [
        ("mimicgen.py", None, "mimicgen cannot be imported .No module named 'mimicgen'"),
        ("mimicgen.py", "import robomimic", "mimicgen cannot .* named 'robomimic'"),
        ("mujoco.py", "import no_gl", "robosuite cannot be imported .No module named 'no_gl'"),
        ("robosuite/__init__.py", "__version__ = '1.5.2'", "robosuite is 1.5.2; .* needs 1.4"),
        ("mimicgen.py", "", "registers no environment 'Stack_D0'; it has none"),
        ("mimicgen.py", "import os; os._exit(4)", r"ended at 'hello' \(exit status 4\)"),
        ("mimicgen.py", "raise RuntimeError('old')", "RuntimeError: old"),
    ],
)
def test_what_lacks_over_there_is_named(there, module, text, problem):
    (there / module).unlink() if text is None else (there / module).write_text(text)
    with pytest.raises(VlaError, match=problem):
        check_installed(get_task("mimicgen/Stack"))


def test_wrong_names_are_refused_before_anything_is_started(tmp_path, monkeypatch):
    with pytest.raises(VlaError, match=r"no task 'mimicgen/Sofa_D0'; of mimicgen's: .*Coffee_D2"):
        get_task("mimicgen/Sofa_D0")
    with pytest.raises(VlaError, match="can be rolled out, not generated from"):
        generate.generate(tasks=["mimicgen/Stack_D0"], output=tmp_path / "out")
    task = get_task("mimicgen/Stack_D0")
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    with pytest.raises(VlaError, match="is not named; set VLA_MIMICGEN_PYTHON"):
        check_installed(task)
    for name, problem in ((tmp_path / "no", "there is no Python"), ("cat", "something else")):
        monkeypatch.setenv(PYTHON_VARIABLE, str(name))
        with pytest.raises(VlaError, match=problem):
            check_installed(task)
    (tmp_path / "config.json").touch()
    with pytest.raises(VlaError, match="no Python '/nowhere'"):
        rollout.rollout(task="mimicgen/Stack_D0", model=str(tmp_path), mimicgen_python="/nowhere")
    assert len(PUBLISHED) == 12 and len(published_names()) == 28  # 26, and two other mugs


def test_its_death_in_an_episode_is_told_with_its_last_words_once_and_again(world):
    sim = world("mimicgen/Kitchen_D0")
    run = EpisodeRun(sim, 0, 0, 30)
    run.step(0 * UP)
    run.step(0 * UP)
    for _ in range(2):
        with pytest.raises(VlaError, match=r"ended at 'step' \(SIGKILL\); it said: .*lost my pot"):
            run.step(0 * UP)


def test_silence_an_error_and_garbage_are_told(world, monkeypatch):
    sim = world("mimicgen/Square_D0")
    sim.reset(episode_rng("evaluate", 0, 0))
    for _ in range(2):  # an exception over there is not its end
        with pytest.raises(VlaError, match="RuntimeError: no peg"):
            sim.step(UP)
    sim = world("mimicgen/Threading_D0")
    sim.reset(episode_rng("evaluate", 0, 0))
    with pytest.raises(VlaError, match=r"something else than a reply to 'step'.*junk"):
        sim.step(UP)
    sim = world("mimicgen/Coffee_D0")
    sim.reset(episode_rng("evaluate", 0, 0))
    monkeypatch.setattr(process, "QUICK", 0.3)
    with pytest.raises(VlaError, match=r"did not answer to 'step' within 0.3 s"):
        sim.step(UP)
    with pytest.raises(ProcessLookupError):
        os.kill(sim._process.pid, 0)


def test_it_does_not_outlive_us(there):
    text = textwrap.dedent("""
        import sys, time
        from vla_sim_bridge.envs.mimicgen_package.process import start
        print(start().pid, flush=True)
        time.sleep(60)
    """)
    parent = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    os.kill(pid, 0)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    for _ in range(300):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it has gone, maybe while we looked
            return
        if state == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the other Python still runs")


def test_our_own_simulation_refuses_such_a_task(there):
    with pytest.raises(VlaError, match="runs in the Python that has mimicgen"):
        Simulation("mimicgen/Stack_D0")


# -- frames ---------------------------------------------------------------------------------------

ARRAYS = st.dictionaries(
    st.text(max_size=5),
    st.sampled_from(["u1", "f4", "f8"]).flatmap(
        lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
    ),
    max_size=3,
)


def frame(header, arrays) -> bytes:
    parts = []
    write_frame(parts.append, header, arrays)
    return b"".join(parts)


def read(data: bytes):
    at = [0]

    def receive(count):
        at[0] += count
        if at[0] > len(data):
            raise EOFError
        return data[at[0] - count : at[0]]

    return read_frame(receive)


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text()), ARRAYS)
def test_frames_come_back_as_they_were(header, arrays):
    header.pop("arrays", None)
    back, out = read(frame(header, arrays))
    back.pop("arrays")
    assert back == header and out.keys() == arrays.keys()
    for name, array in arrays.items():
        assert out[name].dtype == array.dtype
        np.testing.assert_array_equal(out[name], array)


@given(ARRAYS, st.data())
def test_damage_is_a_frame_error_or_another_frame_and_nothing_else(arrays, data):
    good = bytearray(frame({"success": True}, arrays))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FrameError, EOFError):
        read(bytes(good[: data.draw(st.integers(0, len(good)))]))


@pytest.mark.parametrize(
    "arrays",
    [
        '[["a", "object", [1]]]',
        '[["a", "uint8", [1e400]]]',
        '[["a", "uint8", [-1]]]',
        '[["a", "float64", [1000000000]]]',
        '[["a", "uint8", [0, 1e30]]]',
        "7",
        '{"a": 1}',
    ],
)
def test_headers_that_ask_for_too_much_are_refused(arrays):
    text = b'{"arrays": ' + arrays.encode() + b"}"
    with pytest.raises(FrameError):
        read(b"VLAw" + len(text).to_bytes(4, "little") + text)
