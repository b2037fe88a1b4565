"""Tests of options declared as dataclass fields, for the command line and for checks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import pytest
import typer

from vla_inference.cli.main import run_subcommand
from vla_inference.cli.options import options_of, takes
from vla_inference.errors import VlaError
from vla_inference.options import Holds, check_options, option


@dataclass(frozen=True, kw_only=True)
class Settings:
    name: str = option(help="Whose it is.")
    steps: int = option(3, "How many.", low=1, high=9)
    rate: float | None = option(None, "How fast.", above=0.0)
    sizes: tuple[int, ...] = option((4, 5), "By commas.")
    way: str = option("short", "Of two.", choices=("short", "long"))
    loud: bool = option(False, "Out loud.")
    images: bool = option(True, "With images.")
    start: str = option("", "Where from.", holds=Holds.PATH)
    wait: int = option(0, "How long.", low=0, names=("--waiting",))
    inner: int = 7  # no option


@takes(Settings)
def command(
    settings: Settings,
    output: Annotated[Path, typer.Option(help="Where to.")],
    more: Annotated[int, typer.Option(help="And more.")] = 1,
) -> int:
    """Do it."""
    command.seen = settings, output, more
    return 0


class Point:
    name = "do"

    @staticmethod
    def load():
        return command


def run(*words: str) -> tuple[Settings, Path, int]:
    assert run_subcommand(Point, ["--name", "me", "--output", "out", *words]) == 0
    return command.seen


def test_a_command_gets_a_config_of_its_words():
    assert run() == (Settings(name="me"), Path("out"), 1)
    words = "--steps 5 --rate 0.5 --sizes 1,2,3 --way long --loud --no-images --more 2"
    settings = Settings(
        name="me", steps=5, rate=0.5, sizes=(1, 2, 3), way="long", loud=True, images=False
    )
    assert run(*words.split()) == (settings, Path("out"), 2)


def test_a_function_called_without_what_it_needs_says_so():
    with pytest.raises(TypeError, match="name is missing"):
        command(output=Path("out"))


def test_a_list_of_numbers_that_holds_something_else_is_refused_by_name():
    with pytest.raises(VlaError, match="--sizes is '1;2'; give numbers, separated by commas"):
        run("--sizes", "1;2")


def test_a_command_tells_its_options():
    found = {option.names[0]: option for option in options_of(command)}
    assert list(found) == [
        "--name",
        "--output",  # what is required comes first
        "--steps",
        "--rate",
        "--sizes",
        "--way",
        "--loud",
        "--images",
        "--start",
        "--waiting",
        "--more",
    ]
    assert found["--name"].required and found["--output"].required
    assert found["--sizes"].default == "4,5" and found["--steps"].help == "How many."
    assert found["--loud"].flag and not found["--loud"].off
    assert found["--images"].off == ("--no-images",)
    holds = {name: option.holds for name, option in found.items()}
    assert holds["--start"] is holds["--output"] is Holds.PATH and holds["--way"] is Holds.VALUE


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "--steps is 0; give 1 to 9"),
        ({"steps": 10}, "--steps is 10; give 1 to 9"),
        ({"rate": 0.0}, "--rate is 0.0; give more than 0"),
        ({"rate": float("nan")}, "--rate is nan; give a finite number"),
        ({"wait": -1}, "--waiting is -1; give at least 0"),
        ({"way": "round"}, "--way is 'round'; use short or long"),
    ],
)
def test_values_outside_of_what_a_field_allows_are_refused(change, words):
    check_options(Settings(name="me"))
    with pytest.raises(VlaError) as caught:
        check_options(replace(Settings(name="me"), **change))
    assert str(caught.value) == words
