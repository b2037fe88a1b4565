"""Tests of the `vla` root command: subcommands, one-line errors, exit statuses."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from vla_inference.checkpoints.openvla_compat import checkpoint_name
from vla_inference.cli import main
from vla_inference.cli.compile import compile_model
from vla_inference.cli.output import print_json
from vla_inference.errors import ObservationError, VlaError
from vla_inference.types import check_instruction


@pytest.fixture
def subcommands(tmp_path, monkeypatch):
    """Commands of a package that exists for this test only."""
    (tmp_path / "fakepkg").mkdir()
    (tmp_path / "fakepkg/__init__.py").write_text("")
    (tmp_path / "fakepkg/heavy.py").write_text(
        'def rollout():\n    """Roll out."""\nraise RuntimeError("must not be imported")\n'
    )
    (tmp_path / "fakepkg/commands.py").write_text(
        textwrap.dedent(
            '''
            from typing import Annotated
            import typer
            from vla_inference.errors import VlaError

            def greet(name: str, times: Annotated[int, typer.Option(min=1, help="how often")] = 1):
                """Greet somebody.

                More about it.
                """
                print("hello " * times + name)

            def fail(how: str = "vla"):
                """Fail in one of many ways."""
                if how == "vla":
                    raise VlaError("no camera", "plug one\\nin")
                if how == "interrupt":
                    raise KeyboardInterrupt
                if how == "disk":
                    open("/proc/self/nothing/out.json", "w")
                if how == "bug":
                    raise ZeroDivisionError("oops")
                if how == "exit":
                    raise typer.Exit(7)
                return 5
            '''
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    points = {
        name: EntryPoint(name, f"fakepkg.{module}:{name}", main.GROUP)
        for name, module in {"greet": "commands", "fail": "commands", "rollout": "heavy"}.items()
    }
    monkeypatch.setattr(main, "find_subcommands", lambda: points)
    yield points
    for name in [m for m in sys.modules if m.startswith("fakepkg")]:
        del sys.modules[name]


def test_help_lists_subcommands_by_package_without_importing_them(subcommands, capsys):
    assert main.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "fakepkg\n" in out and "greet    Greet somebody.\n" in out and "Roll out." in out
    assert not any(m.startswith("fakepkg") for m in sys.modules)


def test_help_and_version_are_found_where_people_look(subcommands, capsys):
    assert main.main(["--version"]) == 0
    assert re.fullmatch(r"vla \d+\.\d+\.\d+\n", capsys.readouterr().out)
    assert main.main(["help", "greet"]) == 0
    assert "Greet somebody." in capsys.readouterr().out


def test_installed_models_and_robots_are_listed(capsys):
    assert main.main(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "stack-small" in {m["name"] for m in found["models"]} and "act" in found["families"]
    assert main.main(["robots", "--json"]) == 0
    about = {r["name"]: r["about"] for r in json.loads(capsys.readouterr().out)["robots"]}
    assert about["moveit_servo"] == "Action chunks to MoveIt Servo, by remapping alone."
    assert all(about.values())


def test_no_subcommand_is_a_mistake_that_shows_the_help(subcommands, capsys):
    assert main.main([]) == 2
    assert "greet" in capsys.readouterr().out


def test_an_unknown_subcommand_gets_suggestions(subcommands, capsys):
    assert main.main(["rolout"]) == 2
    assert capsys.readouterr().err == (
        "vla: there is no command 'rolout'; did you mean rollout?\n"
    )


def test_only_the_chosen_subcommand_is_imported(subcommands, capsys):
    assert main.main(["greet", "you", "--times", "2"]) == 0
    assert capsys.readouterr().out == "hello hello you\n"
    assert "fakepkg.heavy" not in sys.modules


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["fail"], 2, "vla fail: no camera; plug one in\n"),
        (["fail", "--how", "exit"], 7, ""),
        (["fail", "--how", "disk"], 2, "vla fail: /proc/self/nothing/out.json: No such file"),
        (["fail", "--how", "interrupt"], 130, ""),
        (["fail", "--how", "status"], 5, ""),
        (["greet"], 2, "vla greet: Missing argument"),
        (["greet", "x", "--times", "0"], 2, "vla greet: Invalid value for '--times'"),
        (["greet", "x", "--loud"], 2, "vla greet: No such option: --loud"),
    ],
)
def test_mistakes_are_one_line_and_a_status(subcommands, capsys, words, status, says):
    assert main.main(words) == status
    err = capsys.readouterr().err
    assert err.startswith(says) and len(err.splitlines()) == bool(says)


def test_a_bug_shows_its_traceback_and_a_line(subcommands, capsys):
    assert main.main(["fail", "--how", "bug"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1].startswith("vla fail: unexpected Zero")


def test_debug_adds_the_traceback(subcommands, capsys, monkeypatch):
    monkeypatch.setenv("VLA_DEBUG", "1")
    assert main.main(["fail"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_subcommand_help_tells_options_and_defaults(subcommands, capsys):
    assert main.main(["greet", "--help"]) == 0
    out = capsys.readouterr().out
    assert "vla greet" in out and "how often" in out and "default: 1" in out


def test_json_holds_plain_values_only(capsys):
    print_json({"a": np.arange(2), "n": float("nan"), "f": np.float32(0.5)})
    assert json.loads(capsys.readouterr().out) == {"a": [0, 1], "n": None, "f": 0.5}


@pytest.mark.parametrize(
    ("words", "joined"),
    [
        ("--tasks A B --seed 1", "--tasks A,B --seed 1"),
        ("--tasks A, B C,D", "--tasks A,,B,C,D"),  # splitting skips empty parts
        ("--tasks A --tasks B C", "--tasks A --tasks B,C"),
        ("--camera_names x y", "--camera_names x,y"),
        ("--tasks A --flag B", "--tasks A --flag B"),
        ("--tasks=A B", "--tasks=A B"),
        ("A B", "A B"),
    ],
)
def test_several_words_after_an_option_that_takes_a_list_are_one(words, joined):
    assert main.join_words(words.split(), {"--tasks", "--camera-names"}) == joined.split()


def test_an_instruction_that_is_no_text_is_one_line():
    with pytest.raises(ObservationError, match="the instruction is not UTF-8"):
        check_instruction("a\udcff")


def test_compiling_without_the_compiler_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tvm", None)
    monkeypatch.delitem(sys.modules, "vla_inference.engines.tvm.model", raising=False)
    with pytest.raises(VlaError, match=r"TVM is not installed .*; pip install -r requirements"):
        compile_model(str(tmp_path), "tvm", tmp_path / "out", target="llvm")


def test_an_exported_graph_keeps_its_dtype(tmp_path):
    (tmp_path / "engine.json").touch()
    with pytest.raises(VlaError, match="has its dtype; leave out --quantization"):
        compile_model(str(tmp_path), "tensorrt", tmp_path / "out", quantization="float32")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("models/mine", "mine"),
        ("runs/first/checkpoint", "first"),
        ("hub/models--some--model/snapshots/0123", "model"),
    ],
)
def test_a_checkpoint_is_called_by_what_tells_it_from_others(tmp_path, path, name):
    assert checkpoint_name(tmp_path / path) == name
