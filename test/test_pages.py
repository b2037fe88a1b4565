"""Tests that links, files, commands and options named in the pages exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from vla_inference.cli.main import find_subcommands
from vla_inference.cli.options import options_of

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md", "models/*/README.md")
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
# Below these folders whatever is named must be there; elsewhere names may be the user's own.
NAMED = re.compile(
    r"(?<![\w/.$-])(?:src|docs|test|tools|bench|config|launch|requirements|docker|\.ci)/[\w./-]*\w"
)
SCRIPT = re.compile(r"python3? ([\w/]+\.py)((?: [^\n`#]*)?)")
FENCED = re.compile(r"```.*?```", re.DOTALL)
COMMAND = re.compile(r"(?:^|\./|`)vla ([a-z]+)((?: [^\n`#]*)?)", re.MULTILINE)
# What these get goes to a node or a launch file.
GOES_ON = {"run", "launch"}
NEEDS_ROS = re.compile(r"\bros2 (?:run|launch|topic|service|action|param|node|lifecycle)\b")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
PASSED_ON = {"bench/inference/speed.py": "bench"}  # scripts with the options of a command

every_page = pytest.mark.parametrize(
    "page", sorted(p for pattern in PAGES for p in ROOT.glob(pattern)), ids=lambda p: p.name
)


def code(page: Path) -> str:
    """What stands in code, with lines that go on joined."""
    return "\n".join(CODE.findall(page.read_text(encoding="utf-8"))).replace("\\\n", " ")


def anchors(page: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in heads}


def options(command: str, subcommand: str = "") -> set[str]:
    """subcommand: of a command that has several, such as `vla topic echo`."""
    loaded = find_subcommands()[command].load()
    if isinstance(loaded, typer.Typer):
        commands = [(c.name, c.callback) for c in loaded.registered_commands]
        (function,) = [f for name, f in commands if (name or f.__name__) == subcommand]
    else:
        function = loaded
    everywhere = {"--help", "--json", "--config"}
    return {w for o in options_of(function) for w in (*o.names, *o.off)} | everywhere


@every_page
def test_links_lead_somewhere(page):
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            there = (page.resolve().parent / name) if name else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target


@every_page
def test_files_are_there(page):
    for name in NAMED.findall(code(page)):
        assert (ROOT / name).exists(), name


@every_page
def test_scripts_have_their_options(page):
    for name, words in SCRIPT.findall(code(page)):
        script = (ROOT / name).read_text(encoding="utf-8")
        known = options(PASSED_ON[name]) if name in PASSED_ON else ()
        for option in OPTION.findall(words):
            assert option in known or f'"{option}"' in script, f"{name} {option}"


@pytest.mark.skipif("train" not in find_subcommands(), reason="the workspace is not built")
@every_page
def test_commands_have_their_options(page):
    for name, words in COMMAND.findall(code(page)):
        assert name in find_subcommands(), name
        if name not in GOES_ON:
            known = options(name, *words.split()[:1])
            wrong = {o.replace("_", "-") for o in OPTION.findall(words)} - known
            assert not wrong, f"vla {name}: {wrong}"


@every_page
def test_commands_need_no_ros_installation(page):
    text = page.read_text(encoding="utf-8")
    assert not [m for block in FENCED.findall(text) for m in NEEDS_ROS.findall(block)]
