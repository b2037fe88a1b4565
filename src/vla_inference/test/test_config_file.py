"""Tests of --config: what a file may say, what overrides it, what a run leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
import yaml

from vla_inference.cli.config_file import keep_options
from vla_inference.cli.main import run_subcommand
from vla_inference.cli.options import takes
from vla_inference.cli.output import JsonOption
from vla_inference.errors import VlaError
from vla_inference.options import option


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int = option(3, "How many.", low=1)
    rate: float | None = option(None, "How fast.")
    sizes: tuple[int, ...] = option((4, 5), "By commas.")
    images: bool = option(True, "With images.")
    label: str = option("", "A name.", names=("--label", "--name"))


@takes(Settings)
def command(
    settings: Settings,
    kind: Annotated[str, typer.Argument(help="Of what.")],
    output: Annotated[Path, typer.Option(help="Where to.")],
    data: Annotated[list[Path] | None, typer.Option("--dataset", "--data")] = None,
    resume: bool = False,
    as_json: JsonOption = False,
) -> int:
    """Do it."""
    command.seen = settings, kind, output, data
    if output.exists():
        keep_options(output)
    return 0


class Point:
    name = "do"

    @staticmethod
    def load():
        return command


def run(*words: str):
    assert run_subcommand(Point, [*map(str, words)]) == 0
    return command.seen


def given(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_says_what_the_command_line_leaves_open(tmp_path):
    file = given(
        tmp_path / "run.yaml",
        "kind: act\noutput: out\nsteps: 7\nrate: 1e-3\nsizes: [1, 2]\nimages: false\n"
        "data: [a, b]\nname: 5\nresume:\n",
    )
    seen = Settings(steps=7, rate=1e-3, sizes=(1, 2), images=False, label="5")
    assert run("--config", file) == (seen, "act", Path("out"), [Path("a"), Path("b")])
    words = ["new", "--output", "there", "--steps", "9", "--images", "--config", file]
    settings, kind, output, _ = run(*words)
    assert (settings.steps, settings.images, kind, output) == (9, True, "new", Path("there"))


def test_one_value_for_an_option_that_may_be_repeated(tmp_path):
    file = given(tmp_path / "run.yaml", "dataset: demo.hdf5\n")
    assert run("act", "--output", "out", "--config", file)[3] == [Path("demo.hdf5")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("step: 3", "unknown option 'step'; did you mean steps"),
        ("zzz: 3", "unknown option 'zzz'; --help lists"),
        ("config: other.yaml", "unknown option 'config'"),
        ("data: [a]\ndataset: [b]", "gives dataset twice; keep one"),
        ("steps: {a: 1}", "steps is {'a': 1}; give a value, or a list"),
        ("label: off", "label is False; write words such as 'off' in quotes"),
        ("- a", "does not name options; write lines like"),
        ("a: [", "cannot be read .*; correct --config"),
    ],
)
def test_a_file_that_cannot_be_taken_is_one_clear_error(tmp_path, text, says):
    file = given(tmp_path / "run.yaml", text)
    with pytest.raises(VlaError, match=says):
        run("act", "--output", "out", "--config", file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(VlaError, match=r"nowhere.yaml cannot be read"):
        run("act", "--output", "out", "--config", tmp_path / "nowhere.yaml")


def test_what_a_run_leaves_repeats_it(tmp_path):
    words = ["act", "--steps", "5", "--sizes", "7,8", "--no-images", "--data", "a"]
    first = run(*words, "--output", tmp_path, "--resume", "--json")
    kept = tmp_path / "options.yaml"
    assert yaml.safe_load(kept.read_text()) == {
        "kind": "act",
        "output": str(tmp_path),
        "steps": 5,
        "sizes": "7,8",
        "images": False,
        "label": "",
        "dataset": ["a"],
    }
    assert run("--config", kept) == first


def test_a_file_of_results_gets_its_options_beside_it(tmp_path):
    run("act", "--output", given(tmp_path / "speed.json", "{}"))
    assert yaml.safe_load((tmp_path / "speed.options.yaml").read_text())["steps"] == 3


def test_a_command_called_as_a_function_keeps_none(tmp_path):
    command(kind="act", output=tmp_path)
    assert not list(tmp_path.iterdir())
