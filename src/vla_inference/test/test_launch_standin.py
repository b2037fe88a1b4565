"""Tests of the launch stand-in: it agrees with `ros2 launch` or refuses by file and line."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vla_inference.cli.launch import split_arguments
from vla_inference.cli.launch_standin import read_launch_file, run
from vla_inference.cli.launch_standin.parameters import parameter_value, write_parameters
from vla_inference.errors import VlaError

TALK = """\
#!{python} -S
import json, os, sys
files = [open(a).read() for f, a in zip(sys.argv, sys.argv[1:]) if f == "--params-file"]
print(json.dumps({{"argv": sys.argv[1:], "files": files, "env": dict(os.environ)}}))
"""
# Ends with the status it is given, at once.
END = "#!/bin/sh\nexit $1\n"
# Runs until SIGINT; then says so and ends well.
POLITE = "#!/bin/sh\ntrap 'echo interrupted; exit 0' INT\necho up\nwhile :; do sleep 0.05; done\n"
STUBBORN = "#!/bin/sh\ntrap '' INT TERM\necho up\nwhile :; do sleep 0.05; done\n"


@pytest.fixture
def prefix(tmp_path, monkeypatch):
    """An install prefix with a package `robot` and some programs in it."""
    root = tmp_path / "prefix"
    index = root / "share/ament_index/resource_index/packages"
    index.mkdir(parents=True)
    (index / "robot").touch()
    programs = root / "lib/robot"
    programs.mkdir(parents=True)
    (root / "share/robot/launch").mkdir(parents=True)
    talk = TALK.format(python=sys.executable)
    for name, text in {"talk": talk, "end": END, "polite": POLITE, "stubborn": STUBBORN}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"/nowhere{os.pathsep}{root}")
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "log"))
    return root


@pytest.fixture
def read(tmp_path, prefix):
    """Read the body of a launch file into a plan."""

    def read(body, /, show_only=False, **arguments):
        path = tmp_path / "test.launch.xml"
        path.write_text(f"<launch>\n{textwrap.dedent(body)}\n</launch>\n")
        return read_launch_file(path, arguments, show_only)

    return read


def said(capfd) -> dict:
    """What the `talk` node of the plan just run has seen."""
    out = capfd.readouterr().out
    line = next(x for x in out.splitlines() if x.startswith("[talk-1] "))
    return json.loads(line.removeprefix("[talk-1] "))


def message(read, body, **arguments) -> str:
    """What `read()` logs, from <log message="..."/>."""
    return read(body, **arguments).messages[-1]


def test_a_node_gets_what_launch_ros_would_give_it(read, tmp_path, capfd):
    params = tmp_path / "p.yaml"
    params.write_text("/**:\n  ros__parameters:\n    a: 1\n")
    plan = read(
        f"""
        <arg name="rate" default="5"/>
        <push_ros_namespace namespace="left"/>
        <node pkg="robot" exec="talk" name="eye" namespace="arm" output="screen"
              args="--file '$(var where)' x" ros_args="--log-level debug">
          <param from="{params}"/>
          <param name="rate" value="$(var rate)" type="float"/>
          <param name="text" value="5" type="str"/>
          <remap from="image" to="/camera/image"/>
          <env name="COLOUR" value="red"/>
        </node>
        """.replace("<push", '<arg name="where" default="a b"/><push')
    )
    assert run(plan) == 0
    seen = said(capfd)
    argv = seen["argv"]
    assert argv[:4] == ["--file", "a b", "x", "--ros-args"]
    assert argv[4:10] == ["--log-level", "debug", "-r", "__node:=eye", "-r", "__ns:=/left/arm"]
    assert argv[10:12] == ["--params-file", str(params)]
    assert argv[14:] == ["-r", "image:=/camera/image"]
    assert yaml.safe_load(seen["files"][1]) == {
        "/**": {"ros__parameters": {"rate": 5.0, "text": "5"}}
    }
    assert seen["env"]["COLOUR"] == "red"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$(var a)", "A"),
        ("<$(var a)$(var b)>".replace("<", "[").replace(">", "]"), "[AB C]"),
        ("$(env VLA_X)", "here"),
        ("$(env VLA_NOT_SET 'by default')", "by default"),
        ("$(not true)", "false"),
        ("$(and true $(not 0))", "true"),
        ("$(or False 0)", "false"),
        ("$(eval '\\'$(anon x)\\' == \\'$(anon x)\\'')", "True"),
        ("$(eval '\\'$(anon x)\\' == \\'$(anon y)\\'')", "False"),
        ("$(eval '1 + 2 * 3')", "7"),
        ("$(eval '\\'$(var a)\\' == \\'A\\'')", "True"),
        ("$(eval '\\'$(var b)\\' != \\'\\' and 2 > 1')", "True"),
        ("$(eval '(1 + 2) * 2')", "6"),
    ],
)
def test_substitutions(read, monkeypatch, text, value):
    monkeypatch.setenv("VLA_X", "here")
    body = f"""<let name="a" value="A"/><let name="b" value="B C"/><log message="{text}"/>"""
    assert message(read, body) == value


def test_places(read, tmp_path, prefix):
    for text, value in {
        "$(dirname)": tmp_path,
        "$(filename)": tmp_path / "test.launch.xml",
        "$(find-pkg-share robot)": prefix / "share/robot",
        "$(find-pkg-prefix robot)": prefix,
        "$(exec-in-pkg talk robot)": prefix / "lib/robot/talk",
    }.items():
        assert message(read, f'<log message="{text}"/>') == str(value)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('<lifecycle_node pkg="robot"/>', "<lifecycle_node> inside <launch> is not supported"),
        ('<node pkg="robot" exec="talk" machine="m"/>', "attribute 'machine' of <node>"),
        ('<node pkg="robot" exec="talk"><rosparam/></node>', "<rosparam> inside <node>"),
        ('<node pkg="robot"/>', "<node> has no attribute 'exec'"),
        ('<node pkg="robot" exec="tlk"/>', "no executable 'tlk'; it has end, polite"),
        ('<node pkg="robt" exec="talk"/>', "no package 'robt'"),
        ('<log message="$(command ls)"/>', "substitution $(command) is not supported"),
        ('<log message="$(var x)"/>', "no argument 'x'"),
        ('<log message="$(env VLA_NOT_SET)"/>', "'VLA_NOT_SET' is not set"),
        ("<log message=\"$(eval 'open(1)')\"/>", "$(eval) of 'open(1)' is not supported"),
        ("<log message=\"$(eval '().__class__')\"/>", "is not supported"),
        ("<log message=\"$(eval '2 ** 9')\"/>", "is not supported"),
        ("<log message=\"$(eval '1 / 0')\"/>", "cannot work out"),
        ('<log message="$(var x"/>', "'$(' without its ')'"),
        ('<log message="m" if="yes"/>', "'if' is 'yes'; make it true, 1, false or 0"),
        ('<log message="m" if="1" unless="0"/>', "both 'if' and 'unless'"),
        ('<arg name="task"/>', "argument 'task' has no default"),
        ('<arg name="a" default="x"><choice value="y"/></arg>', "'a' is 'x'; it may be y"),
        ("hello", "text inside <launch>"),
        ("<log>", "not well-formed XML"),
        ('<include file="/no/such.launch.xml"/>', "does not exist"),
        ('<node pkg="robot" exec="talk"><param from="/no.yaml"/></node>', "/no.yaml does not"),
        (
            '<node pkg="robot" exec="talk"><param name="a" value="x" type="int"/></node>',
            "parameter 'a': 'x' is not of type int",
        ),
        ('<node pkg="robot" exec="talk"><param name="a" value="[]"/></node>', "empty list"),
        ('<node pkg="robot" exec="talk" on_exit="restart"/>', "on_exit is 'restart'"),
    ],
)
def test_what_it_does_not_know_is_refused_with_its_place(read, tmp_path, body, says):
    with pytest.raises(VlaError) as error:
        read(body)
    assert says in str(error.value)
    assert f"{tmp_path / 'test.launch.xml'}:" in str(error.value)


def test_undeclared_arguments_are_refused_with_the_declared_ones(read):
    with pytest.raises(VlaError, match="no argument 'tsk'; it has: seed, task"):
        read('<arg name="task" default="a"/><arg name="seed" default="0"/>', tsk="Stack_D0")


def test_given_arguments_win_over_defaults(read):
    body = '<arg name="task" default="a"/><log message="$(var task)"/>'
    assert message(read, body) == "a"
    assert message(read, body, task="b") == "b"


def test_groups_keep_their_settings_to_themselves(read):
    plan = read(
        """
        <let name="x" value="outer"/>
        <group>
          <push_ros_namespace namespace="in"/>
          <set_env name="VLA_G" value="1"/>
          <let name="x" value="inner"/>
          <node pkg="robot" exec="talk" name="a"/>
        </group>
        <group scoped="false"><let name="y" value="kept"/></group>
        <log message="$(var x) $(var y)"/>
        <node pkg="robot" exec="talk" name="b"/>
        """
    )
    inside, outside = plan.processes
    assert "__ns:=/in" in inside.ros_args and inside.environment["VLA_G"] == "1"
    assert outside.ros_args == ["-r", "__node:=b"] and "VLA_G" not in outside.environment
    assert plan.messages == ["outer kept"]


def test_include_passes_arguments_and_reports_the_included_line(read, tmp_path):
    inner = tmp_path / "inner.launch.xml"
    inner.write_text('<launch>\n<arg name="who"/>\n<log message="hello $(var who)"/>\n</launch>')
    body = '<include file="$(dirname)/inner.launch.xml">{}</include>'
    assert message(read, body.format('<arg name="who" value="arm"/>')) == "hello arm"
    with pytest.raises(VlaError, match=r"inner\.launch\.xml:2: argument 'who'"):
        read(body.format(""))
    inner.write_text('<launch><include file="$(filename)"/></launch>')
    with pytest.raises(VlaError, match="includes itself"):
        read(body.format(""))


def test_show_only_needs_no_values(read):
    plan = read('<arg name="task" description="what"/><node pkg="no" exec="no"/>', show_only=True)
    assert plan.declared["task"].default is None and not plan.processes


SCALARS = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"]))
)


@given(value=SCALARS)
def test_typed_parameters_come_back_as_they_were(value, tmp_path_factory):
    kind = type(value).__name__
    text = str(value).lower() if kind == "bool" else str(value)
    parsed = parameter_value(text, kind)
    assert type(parsed) is type(value) and parsed == value
    path = tmp_path_factory.getbasetemp() / "p.yaml"
    write_parameters({"a": parsed, "b": [parsed, parsed]}, path)
    back = yaml.safe_load(path.read_text(encoding="utf-8"))["/**"]["ros__parameters"]
    assert type(back["a"]) is type(value) and back == {"a": value, "b": [value, value]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("5.0", 5.0),
        ("true", True),
        ("hello", "hello"),
        ("[1, 2]", [1, 2]),
        ("[1, 2.5]", [1.0, 2.5]),
        ("['a', 'b']", ["a", "b"]),
        ("", ""),
        ("a: b: c", "a: b: c"),
        ("2026-01-01", "2026-01-01"),
        ("'5'", "5"),
    ],
)
def test_untyped_parameters_follow_yaml(text, value):
    parsed = parameter_value(text)
    assert parsed == value and type(parsed) is type(value)


def test_floats_of_all_spellings():
    assert parameter_value("1e-3", "float") == 1e-3
    assert parameter_value("5", "float") == 5.0
    assert math.isinf(parameter_value("inf", "float"))
    for text, kind in ((".inf", "float"), ("0x10", "int"), ("5.0", "int"), ("true", "float")):
        with pytest.raises(ValueError, match=f"is not of type {kind}"):  # nor does launch take it
            parameter_value(text, kind)


def test_a_real_node_reads_the_same_types(tmp_path):
    rclpy = pytest.importorskip("rclpy")
    from rclpy.context import Context
    from rclpy.node import Node

    values = {"f": 1e-5, "s": "1e5", "t": "yes", "i": 3, "b": True, "l": [1.0, 2.5], "e": ""}
    path = tmp_path / "p.yaml"
    write_parameters(values, path)
    context = Context()
    rclpy.init(args=["--ros-args", "--params-file", str(path)], context=context)
    try:
        node = Node(
            "reader", context=context, automatically_declare_parameters_from_overrides=True
        )
        back = {name: node.get_parameter(name).value for name in values}
        node.destroy_node()
    finally:
        context.try_shutdown()
    assert {k: list(v) if k == "l" else v for k, v in back.items()} == values


def test_exit_status_is_that_of_the_node_that_ends_the_launch(read, capfd):
    plan = read(
        """
        <node pkg="robot" exec="polite" output="screen"/>
        <node pkg="robot" exec="end" args="3" on_exit="shutdown"/>
        """
    )
    assert run(plan) == 3
    assert "ended with exit status 3" in capfd.readouterr().out


def test_a_failed_node_shows_in_the_status_even_if_the_others_end_well(read):
    plan = read('<node pkg="robot" exec="end" args="4"/><node pkg="robot" exec="end" args="0"/>')
    assert run(plan) == 4


def test_a_stubborn_node_is_killed_in_the_end(read):
    plan = read(
        """
        <let name="sigterm_timeout" value="1.5"/>
        <let name="sigkill_timeout" value="0.5"/>
        <node pkg="robot" exec="stubborn"/>
        <node pkg="robot" exec="end" args="0" on_exit="shutdown"/>
        """
    )
    start = time.monotonic()
    assert run(plan) == 0
    assert 1.9 < time.monotonic() - start < 5  # its time to end by itself


def timeouts(plan) -> list[tuple[float, float]]:
    return [(p.sigterm_timeout, p.sigkill_timeout) for p in plan.processes]


def test_the_time_to_end_is_the_variables_at_the_end_as_in_launch(read):
    node = '<node pkg="robot" exec="end"/>'
    assert timeouts(read(node)) == [(5, 5)]  # launch's own
    later = f'{node}<let name="sigterm_timeout" value="20"/>{node}'
    assert timeouts(read(later)) == [(20, 5)] * 2
    inner = f'<group><let name="sigkill_timeout" value="9"/>{node}</group>'
    assert timeouts(read(inner)) == [(5, 5)]  # a group's are gone by then
    own = '<node pkg="robot" exec="end" sigkill_timeout="1"/>'
    assert timeouts(read('<let name="sigkill_timeout" value="9"/>' + own)) == [(5, 1)]
    with pytest.raises(VlaError, match="'soon' is not a valid time in seconds"):
        read('<let name="sigterm_timeout" value="soon"/>' + node)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_reach_the_nodes_once(tmp_path, prefix, number, status):
    path = tmp_path / "t.launch.xml"
    path.write_text('<launch><node pkg="robot" exec="polite" output="screen"/></launch>')
    code = (
        "import sys; from vla_inference.cli.launch_standin import read_launch_file, run; "
        "sys.exit(run(read_launch_file(sys.argv[1])))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    lines = iter(process.stdout.readline, "")
    assert any("[polite-1] up" in line for line in lines)
    process.send_signal(number)
    rest = "".join(lines)
    assert process.wait(30) == status
    assert rest.count("[polite-1] interrupted") == 1


def test_respawn_brings_a_node_back(read, tmp_path, prefix):
    once = prefix / "lib/robot/once"
    once.write_text(
        f"#!/bin/sh\nn=$(ls {tmp_path}/n* | wc -l)\ntouch {tmp_path}/n$$\n"
        "[ $n -lt 2 ] || sleep 9\n"
    )
    once.chmod(0o755)
    third = prefix / "lib/robot/third"  # ends when `once` has come up for the third time
    third.write_text(
        f"#!/bin/sh\nuntil [ $(ls {tmp_path}/n* | wc -l) = 3 ]; do sleep 0.05; done\n"
    )
    third.chmod(0o755)
    plan = read(
        """
        <node pkg="robot" exec="once" respawn="true"/>
        <node pkg="robot" exec="third" on_exit="shutdown"/>
        """
    )
    assert run(plan) == 0
    assert len(list(tmp_path.glob("n[0-9]*"))) == 3


def test_output_log_goes_to_a_file(read, tmp_path, capfd):
    assert run(read('<executable cmd="echo to-the-log"/>')) == 0
    assert "to-the-log" not in capfd.readouterr().out
    (log,) = (tmp_path / "log").iterdir()
    assert log.read_text() == "to-the-log\n"


def test_package_and_file_or_path(prefix, tmp_path):
    file = prefix / "share/robot/launch/a.launch.xml"
    file.write_text("<launch/>")
    assert split_arguments(["robot", "a.launch.xml", "x:=1", "y:=a:=b"]) == (
        file,
        {"x": "1", "y": "a:=b"},
    )
    assert split_arguments([str(file)])[0] == Path(file)
    with pytest.raises(
        VlaError, match=r"task=Stack_D0 is not a launch argument; write task:=Stack"
    ):
        split_arguments(["robot", "a.launch.xml", "task=Stack_D0"])
    with pytest.raises(VlaError, match=r"no launch file 'b.launch.xml'; it has a.launch.xml"):
        split_arguments(["robot", "b.launch.xml"])
    other = prefix / "share/arm/launch/b.launch.xml"
    other.parent.mkdir(parents=True)
    other.write_text("<launch/>")
    with pytest.raises(VlaError, match=r"'arm' has it: vla launch arm b.launch.xml"):
        split_arguments(["robot", "b.launch.xml"])
    with pytest.raises(VlaError, match="no package 'robt'"):
        split_arguments(["robt", "b.launch.xml"])
