"""The notebooks of examples/ run from top to bottom, and keep no outputs."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(source: str, names: dict[str, Any]) -> Any:
    """A cell's code; returns the value of its last line, where that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    return last and eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_notebook_runs_from_top_to_bottom(path, monkeypatch):
    pytest.importorskip("gymnasium", reason="pip install -r requirements/gymnasium.txt")
    monkeypatch.chdir(EXAMPLES)
    names: dict[str, Any] = {}
    shown = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None
            shown.append(run("".join(cell["source"]), names))
    assert "stack-small" in repr(shown[0])
    assert names["info"]["outcome"] in ("success", "timeout") and len(names["frames"]) > 20
