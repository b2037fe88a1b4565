"""Tests of outputs that cannot be written: one line and exit status 2 before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from demonstrations import write_set

from vla_inference.cli.main import main as vla

LATER = "/not/there"  # an input that is missed only once the output was looked at
COMMANDS = {
    "train": ["--data", LATER, "--output"],
    "eval --report": ["--dataset", LATER, "--report"],
    "eval --save-stats": ["--dataset", LATER, "--save-stats"],
    "validate": [LATER, "--report"],
    "study": ["--data", LATER, "--output"],
    "finetune": ["--vla-path", LATER, "--dataset-name", "mine", "--run-root-dir"],
    "bench": ["--model", LATER, "--output"],
    "data plot": ["plot", LATER, "--output"],
    "data video": ["video", LATER, "--output"],
    "quantize": [],
    "merge": [],
    "compile": [],
    "convert": ["--convert", "rlds", "--output"],
    "generate": ["--task", "Stack_D0", "--episodes", "1", "--parallel", "1", "--output"],
}
MODEL = str(Path(__file__).resolve().parents[3] / "models" / "stack-small")
SUFFIX = {"data plot": ".png", "data video": ".mp4"}


def words(command: str, output: str, source: str) -> list[str]:
    subcommand, given = command.split()[0], COMMANDS[command]
    given = {
        "quantize": [MODEL, output],
        "merge": [MODEL, LATER, output],
        "compile": [MODEL, "--engine", "onnx", "--output", output],
        "convert": ["--dataset", source, *given, output],
    }.get(subcommand, [*given, output])
    return [subcommand, *given]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return str(write_set(tmp_path_factory.mktemp("source") / "demo.hdf5"))


@pytest.mark.parametrize("way", ["a file in the way", "a folder nobody may write"])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_cannot_be_written_is_told_first(
    command, way, source, tmp_path, capfd, monkeypatch
):
    (tmp_path / "file").write_text("precious")
    place = tmp_path / "file" if way == "a file in the way" else Path("/proc/self")  # root may not
    output = f"{place / 'new'}{SUFFIX.get(command, '')}"
    if command == "finetune":
        monkeypatch.chdir(tmp_path)
        write_set(tmp_path / "mine.hdf5")
    assert vla(words(command, output, source)) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said and LATER not in said, said
    assert str(place) in said and ("cannot be written" in said or "no folder" in said), said
    assert (tmp_path / "file").read_text() == "precious"
