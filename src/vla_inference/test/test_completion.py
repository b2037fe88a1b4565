"""Tests of `vla completion`: bash completes by its script; the others' scripts say the same."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vla_inference.cli.completion import SCRIPTS, Shell, find_completed


@pytest.fixture(scope="module")
def commands():
    return list(find_completed())


@pytest.fixture(scope="module")
def script(commands, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bash") / "vla.bash"
    path.write_text(SCRIPTS[Shell.bash](commands))
    return path


def complete(script: Path, line: str) -> list[str]:
    """What bash offers for the last word of a line."""
    words = line.split(" ")
    text = (
        f"source {script}; COMP_WORDS=({' '.join(f'{w!r}' for w in words)}); "
        f'COMP_CWORD={len(words) - 1}; _vla; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.split()


def test_commands_options_and_values_are_completed(script):
    assert complete(script, "vla ro") == ["robots", "rollout"]
    assert "--version" in complete(script, "vla --")
    assert complete(script, "vla train --bat") == ["--batch-size"]
    assert "--config" in complete(script, "vla train --c")
    assert complete(script, "vla generate --method ") == [
        "scripted",
        "mimicgen",
        "corrected",
        "endings",
    ]
    assert complete(script, "vla convert --seed 3 --to r") == ["rlds"]
    assert complete(script, "vla data vi") == ["video"]
    assert complete(script, "vla topic e") == ["echo"]


def test_paths_are_left_to_the_shell(script):
    assert complete(script, "vla train --dataset da") == []
    assert complete(script, "vla nonsense --x") == []


def test_zsh_reads_the_script_of_bash(commands, script):
    assert SCRIPTS[Shell.zsh](commands).endswith(script.read_text())


def test_fish_has_a_line_for_each_option(commands):
    text = SCRIPTS[Shell.fish](commands)
    assert text.count(" -l batch-size ") > 1  # train's and others'
    assert (
        "-l method -r -f -a 'scripted mimicgen corrected endings' -d 'scripted; mimicgen;" in text
    )
    quotes = [line for line in text.splitlines() if line.replace("\\'", "").count("'") % 2]
    assert not quotes


@pytest.mark.parametrize("shell", Shell)
def test_the_shells_that_are_here_read_their_script(commands, shell, tmp_path):
    program = shutil.which(shell.value)
    if program is None:
        pytest.skip(f"there is no {shell.value} on this machine")
    path = tmp_path / "script"
    path.write_text(SCRIPTS[shell](commands))
    done = subprocess.run([program, "-n", path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
