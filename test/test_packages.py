"""What packages may import: one direction, rclpy in ros/ alone, and what package.xml names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vla_inference.cli.main import find_subcommands, summary

SRC = Path(__file__).resolve().parent.parent / "src"
ORDER = ["vla_msgs", "vla_inference", "vla_sim_bridge", "vla_training"]
ROS = re.compile(r"rclpy|\w+_msgs|std_srvs|rcl_interfaces|builtin_interfaces")


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
    said = (SRC / package / "package.xml").read_text()
    for path in (SRC / package / package).rglob("*.py"):
        name = path.relative_to(SRC / package)
        everywhere = set(imports(path, everywhere=True))
        later = set(ORDER[ORDER.index(package) + 1 :])
        assert not everywhere & later, f"{name} imports {everywhere & later}"
        if "ros" not in name.parts:
            assert "rclpy" not in everywhere, f"{name} imports rclpy"
        for wanted in imports(path, everywhere=False):
            if ROS.fullmatch(wanted):
                assert f"depend>{wanted}<" in said, f"{name} imports {wanted}: not in package.xml"


@pytest.mark.skipif(not find_subcommands(), reason="the workspace is not built")
def test_every_subcommand_says_in_a_line_what_it_does():
    for name, point in find_subcommands().items():
        assert re.fullmatch(r"[A-Z].{10,}\.", summary(point)), f"vla {name}: {summary(point)!r}"
