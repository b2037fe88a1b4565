"""Tests of faults in a running graph: each ends in a stop with its reason, then recovers.

`test/robustness/faults.py` measures the same, 20 times each.
"""

from __future__ import annotations

import pytest
from fault_graph import Failed, Graph, graph_for
from faults import FAULTS, once


def go_through(graph: Graph, *names: str) -> None:
    for name in names:
        try:
            once(graph, FAULTS[name])
        except Failed as error:
            pytest.fail(f"{name}: {error}")


def test_the_command_node_is_safe_whatever_goes_wrong_around_it():
    with graph_for("camera") as graph:
        go_through(
            graph,
            "camera freezes",
            "camera sends garbage",
            "model hangs",
            "model returns NaN",
            "executor overloaded",
            "camera dies",
            "Ctrl-C twice",
        )


@pytest.mark.slow
def test_the_same_for_what_takes_longer():
    with graph_for("camera") as graph:
        go_through(graph, "camera repeats", "model is killed")
    for kind, *names in (
        ("clock", "clock jumps back", "clock stops"),
        ("sim", "simulator dies"),
        ("pose", "one pose jumps", "pose jumps", "pose freezes", "one negative stamp"),
        ("joints", "one stray joint state", "stray joint states", "one of joint states"),
    ):
        with graph_for(kind) as graph:
            go_through(graph, *names)
