"""Tests of a workspace that was pulled and not built: one line says so, from any process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vla_inference.cli import main
from vla_inference.system import workspace
from vla_inference.system.workspace import needs_ros, or_build, stale_build, unexpected
from vla_msgs.msg import CommandStatus

ROOT = Path(__file__).resolve().parents[3]


def raised(code: str) -> Exception:
    with pytest.raises(Exception) as caught:
        exec(code, {"CommandStatus": CommandStatus})
    return caught.value


@pytest.fixture
def changed(tmp_path, monkeypatch):
    """A workspace whose set-up has something to do."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "setup.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.setenv("VLA_WORKSPACE", str(tmp_path))


@pytest.mark.parametrize(
    "code",
    [
        "from vla_msgs.msg import Tomorrow",
        "import vla_msgs.msg\nvla_msgs.msg.Tomorrow",
        "CommandStatus().tomorrow",
        "CommandStatus.TOMORROW",
        "raise AssertionError('Invalid arguments passed to constructor: tomorrow')",  # Humble's
        "import vla_msgs.tomorrow",
    ],
)
def test_messages_that_lack_what_the_code_asks_for(code):
    told = unexpected(raised(code), " in here")
    assert "\n" not in told
    assert told.startswith("the built messages do not fit") and told.endswith("run `make setup`")


@pytest.mark.parametrize("code", ["1 / 0", "import tomorrow", "'a'.tomorrow", "assert False"])
def test_other_errors_are_reported_as_they_are(code, monkeypatch):
    monkeypatch.delenv("VLA_WORKSPACE", raising=False)
    error = raised(code)
    assert not stale_build(error)
    assert unexpected(error).startswith(f"unexpected {type(error).__name__}: ")


def test_a_changed_workspace_explains_missing_modules_and_commands(changed, capfd):
    assert "has changed since it was built" in stale_build(raised("import tomorrow"))
    assert not stale_build(raised("1 / 0"))
    assert (
        or_build("look there")
        == "run `make setup`, for the workspace has changed; else: look there"
    )
    assert main.main(["tomorrow"]) == 2
    assert "make setup" in capfd.readouterr().err


def test_messages_that_are_broken_without_a_change_are_built_anew(changed):
    error = raised("from vla_msgs.msg import Tomorrow")
    assert stale_build(error).endswith("run `make setup`")
    setup = Path(os.environ["VLA_WORKSPACE"], "tools", "setup.py")
    setup.write_text("")
    assert stale_build(error).endswith("run `make clean setup`")


def test_an_unchanged_one_does_not(monkeypatch):
    monkeypatch.delenv("VLA_WORKSPACE", raising=False)
    assert or_build("look there") == "look there"


@pytest.mark.parametrize(
    "code",
    [
        "from vla_inference.cli.main import main; sys.exit(main(['teleop']))",
        "from vla_inference.ros.executables import command_node; command_node()",
    ],
)
def test_commands_and_nodes_end_with_one_line(tmp_path, code):
    for name in ("msg", "srv", "action"):
        (tmp_path / "vla_msgs" / name).mkdir(parents=True)
        (tmp_path / "vla_msgs" / name / "__init__.py").touch()
    (tmp_path / "vla_msgs" / "__init__.py").touch()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert "the built messages do not fit" in ended.stderr and " setup`" in ended.stderr


def test_ros_that_is_not_there_is_told_as_that(monkeypatch):
    monkeypatch.delenv("VLA_WORKSPACE", raising=False)
    assert str(needs_ros(raised("import tomorrow"))).startswith("ROS 2 is not installed")
    assert "make setup" in str(needs_ros(raised("from vla_msgs.msg import Tomorrow")))


def test_the_set_up_tells_whether_there_is_something_to_do(tmp_path):
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__py*"))
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    command = [sys.executable, "-IS", str(tmp_path / "tools" / "setup.py"), "--check"]
    ended = subprocess.run(command, capture_output=True, timeout=60)
    assert ended.returncode == 3 and not ended.stderr and not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("module", ["rclpy.qos", "lifecycle_msgs.msg", "std_srvs", "numbers_"])
def test_where_there_is_no_ros_a_command_that_needs_it_says_so(module, monkeypatch, capsys):
    monkeypatch.setattr(workspace, "find_spec", lambda _: None)
    error = ModuleNotFoundError(f"No module named '{module}'", name=module)
    told = workspace.without_ros(error)
    assert told.startswith("this needs ROS 2") if module != "numbers_" else not told
    if told:
        assert main._handle(error, "vla topic") == 2
        assert capsys.readouterr().err == f"vla topic: {told}\n"


def test_where_packages_are_missing_a_command_of_theirs_is_not_guessed_at(monkeypatch, capsys):
    ours = {n: p for n, p in main.find_subcommands().items() if p.value.startswith("vla_infer")}
    monkeypatch.setattr(main, "find_subcommands", lambda: ours)
    monkeypatch.setattr(main, "find_spec", lambda _: None)
    for name, hint in (
        ("rollout", "commands come with vla_sim_bridge, vla_training"),
        ("infr", "did you mean infer"),
        ("studio", "run `make setup`"),
    ):
        assert main.main([name]) == 2
        assert hint in capsys.readouterr().err
