"""Tests of package structure: import direction, package.xml, files in a release."""

from __future__ import annotations

import ast
import os
import re
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from vla_inference.cli.main import find_subcommands, summary

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
ORDER = ["vla_msgs", "vla_inference", "vla_sim_bridge", "vla_training", "vla_studio"]
# It talks to the others through ROS alone.
STUDIO_MAY_IMPORT = {"vla_msgs", "vla_inference", "vla_studio"}
ROS = re.compile(
    r"rclpy|\w+_msgs|std_srvs|rcl_interfaces|builtin_interfaces|launch\w*|ros2doctor|ament_\w+"
)


def imports(path: Path, everywhere: bool) -> Iterator[str]:
    """Top packages a module imports: in its functions as well, or only when it is loaded."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", ORDER[1:])
def test_a_package_imports_what_it_may_and_names_it(package):
    said = dependencies(package)
    for path in (SRC / package / package).rglob("*.py"):
        name = path.relative_to(SRC / package)
        everywhere = set(imports(path, everywhere=True))
        later = set(ORDER[ORDER.index(package) + 1 :])
        assert not everywhere & later, f"{name} imports {everywhere & later}"
        if package == "vla_studio":
            assert not everywhere & set(ORDER) - STUDIO_MAY_IMPORT, name
        if "ros" not in name.parts:
            assert "rclpy" not in everywhere, f"{name} imports rclpy"
        for wanted in filter(ROS.fullmatch, everywhere):
            assert wanted in said, f"{name} imports {wanted}: not in package.xml"
    tests = dependencies(package, "depend", "exec_depend", "test_depend")
    for path in (SRC / package / "test").rglob("*.py"):
        for wanted in filter(ROS.fullmatch, imports(path, everywhere=True)):
            assert wanted in tests, f"{path.name} imports {wanted}: not in package.xml"


# How many pairs of a package's folders (and modules beside them) may import one from the other.
ARROWS = {"vla_inference": 78, "vla_sim_bridge": 28, "vla_training": 35, "vla_studio": 12}


@pytest.mark.parametrize("package", ARROWS)
def test_folders_import_few_others_and_none_in_a_circle(package):
    graph = folder_imports(package, everywhere=True)
    assert sum(map(len, graph.values())) <= ARROWS[package], dict(graph)
    TopologicalSorter(folder_imports(package, everywhere=False)).prepare()  # names a circle


def folder_imports(package: str, everywhere: bool) -> dict[str, set[str]]:
    """What each of a package's folders, and modules beside them, imports of the others."""
    root = SRC / package / package
    graph: dict[str, set[str]] = defaultdict(set)
    rooms = {path.stem for path in root.iterdir()}
    for path in root.rglob("*.py"):
        here = path.relative_to(root).parts[0].removesuffix(".py")
        tree = ast.parse(path.read_text())
        for line in ast.walk(tree) if everywhere else tree.body:
            if isinstance(line, ast.ImportFrom) and line.module:
                names = (f"{line.module}.{alias.name}" for alias in line.names)
                found = {name.split(".")[1] for name in names if name.startswith(f"{package}.")}
                graph[here] |= found & rooms - {here}
    return graph


@pytest.mark.parametrize("path", sorted(SRC.glob("*/launch/*.xml")), ids=lambda p: p.name)
def test_a_launch_file_names_packages_that_its_own_depends_on(path):
    package = path.parts[-3]
    named = re.findall(r'find-pkg-share (\w+)|pkg="(\w+)"', path.read_text())
    wanted = {a or b for a, b in named} - {package}
    assert wanted <= dependencies(package), f"{wanted}: not in package.xml of {package}"


def test_no_link_leaves_a_package():
    for folder, *names in os.walk(SRC):
        for path in (Path(folder, n) for group in names for n in group):
            package = SRC / path.relative_to(SRC).parts[0]
            if path.is_symlink():
                assert package in path.resolve().parents, f"{path} leads out of {package.name}"


@pytest.mark.parametrize("folder", ["launch", "config"])
def test_the_top_level_shows_what_every_package_installs(folder):
    shown = {p.resolve() for p in ROOT.glob(f"{folder}/**/*") if p.is_file()}
    # A link to a folder is not followed by "**".
    shown |= {f for p in ROOT.glob(f"{folder}/*") if p.is_dir() for f in files(p.resolve())}
    assert shown == {f for package in SRC.iterdir() for f in files(package / folder)}


def files(folder: Path) -> set[Path]:
    return {p.resolve() for p in folder.rglob("*") if p.is_file()}


def dependencies(package: str, *kinds: str) -> set[str]:
    """What package.xml names by these tags; by default what a package needs to run."""
    tree = ElementTree.parse(SRC / package / "package.xml")
    wanted = kinds or ("depend", "exec_depend")
    return {node.text or "" for node in tree.getroot() if node.tag in wanted}


# What runs policies, whichever family they are of.
GENERAL = [
    "vla_inference/vla_inference/cli/infer.py",
    "vla_inference/vla_inference/cli/info.py",
    "vla_inference/vla_inference/control",
    "vla_inference/vla_inference/inputs",
    "vla_inference/vla_inference/ros",
    "vla_inference/vla_inference/serving",
    "vla_sim_bridge/vla_sim_bridge",
    "vla_training/vla_training/cli/eval.py",
    "vla_training/vla_training/cli/validate.py",
    "vla_training/vla_training/datasets",
    "vla_training/vla_training/evaluation",
    "vla_training/vla_training/ros",
]


@pytest.mark.parametrize("where", GENERAL)
def test_what_runs_policies_knows_no_family(where):
    paths = [SRC / where] if where.endswith(".py") else list((SRC / where).rglob("*.py"))
    assert paths
    for path in paths:
        assert not re.search(r"vla_inference\.(policies\.)?openvla", path.read_text()), path


@pytest.mark.skipif(not find_subcommands(), reason="the workspace is not built")
def test_every_subcommand_says_in_a_line_what_it_does():
    for name, point in find_subcommands().items():
        assert re.fullmatch(r"[A-Z].{10,}\.", summary(point)), f"vla {name}: {summary(point)!r}"
