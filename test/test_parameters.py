"""Tests of node parameters: config files, defaults, refusals."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from graphs import NodeGraph
from options_page import NODES, default_cell
from rclpy.parameter import Parameter

from vla_inference.cli.options import CommandOption
from vla_inference.errors import VlaError
from vla_inference.options import Holds, option
from vla_inference.ros.command.parameters import command_configs, read_settings
from vla_inference.ros.lifecycle import SUCCESS, ManagedNode
from vla_inference.ros.parameters import defaults, read

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    "chunk_ik_node": ("chunk_ik.yaml", "/**"),
    "command_node": ("command.yaml", "/**"),
    "ik_node": ("ik.yaml", "/**"),
    "inference_node": ("inference.yaml", "/**"),
    "record_node": ("bags.yaml", "recorder"),
    "sim_node": ("sim.yaml", "/**"),
    "training_node": ("training.yaml", "/**"),
    "validation_node": ("bags.yaml", "validation"),
}


def same(a: object, b: object) -> bool:
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("node", FILES)
def test_a_parameter_file_says_what_the_node_would_do_without_it(node):
    name, section = FILES[node]
    said = yaml.safe_load((ROOT / "config" / name).read_text())[section]["ros__parameters"]
    if node != "sim_node":  # which is not managed
        assert said.pop("autostart") is True
    expected = defaults(*NODES[node])
    if node == "sim_node":
        expected.pop("model")  # a word for the results, which launch files give
    assert said.keys() == expected.keys()
    assert [n for n in said if not same(said[n], expected[n])] == []


@dataclass(frozen=True, kw_only=True)
class Settings:
    cameras: tuple[str, ...] = option((), "topics")
    box: tuple[float, ...] = option((0.0,), "corners")
    way: str = option("short", "of two", choices=("short", "long"))
    rate: float = option(1.0, "how fast", above=0, high=9)


@dataclass(frozen=True, kw_only=True)
class Other:
    rate: float = option(2.0, "how fast", above=0, high=9)


def test_lists_come_and_go_as_ros_knows_them():
    values = defaults(Settings)
    assert values == {"cameras": [""], "box": [0.0], "way": "short", "rate": 1.0}
    assert read(Settings, values.__getitem__) == Settings()
    values["cameras"] = ["a", "b"]
    assert read(Settings, values.__getitem__).cameras == ("a", "b")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"way": "round"}, "parameter way is 'round'; use short or long"),
        ({"rate": 0.0}, "parameter rate is 0.0; give more than 0"),
        ({"rate": 10.0}, "parameter rate is 10.0; give at most 9"),
    ],
)
def test_a_value_that_its_field_does_not_allow_is_refused_by_name(change, words):
    values = {**defaults(Settings), **change}
    with pytest.raises(VlaError) as caught:
        read(Settings, values.__getitem__)
    assert str(caught.value) == words


def test_statistics_of_the_command_node_are_made_si_as_its_chunks_are(tmp_path):
    path = tmp_path / "dataset_statistics.json"
    action = {"q01": [-1.0] * 7, "q99": [1.0] * 7, "mask": [True] * 6 + [False]}
    path.write_text(json.dumps({"libero_spatial": {"action": action}}))
    values = {**defaults(*command_configs()), "statistics": str(path), "distribution_margin": 0.0}
    found = read_settings(values.__getitem__).distribution
    assert found.high[:6] == pytest.approx([0.05] * 3 + [0.5] * 3)


def test_configs_that_declare_a_parameter_in_two_ways_are_refused():
    with pytest.raises(VlaError, match="Other declares parameter 'rate' another way"):
        defaults(Settings, Other)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    size: int = option(1, "how large", low=1, high=9)
    pace: float = option(1.0, "how fast", low=0, high=9, live=True)


class Probe(ManagedNode):
    def __init__(self, **kwargs):
        super().__init__("probe", ProbeConfig, **kwargs)

    def do_configure(self) -> None:
        self.config = self.read(ProbeConfig)


def test_a_parameter_is_refused_while_the_node_is_configured_unless_it_is_live():
    graph = NodeGraph(Probe, {"autostart": False, "size": 3})
    node = graph.node

    def change(name: str, value: object) -> str:
        (answer,) = node.set_parameters([Parameter(name, value=value)])
        return "" if answer.successful else answer.reason

    try:
        assert change("size", 4) == "" and "range" in change("size", 10)
        assert node.trigger_configure() == SUCCESS and node.config == ProbeConfig(size=4)
        assert change("size", 5) == "size is read when the node is configured; clean it up first"
        assert change("pace", 2.0) == "" and node.read(ProbeConfig).pace == 2.0
        assert node.trigger_cleanup() == SUCCESS and change("size", 5) == ""
        assert change("autostart", True)
    finally:
        graph.close()


@pytest.mark.parametrize(
    ("default", "flag", "cell"),
    [(0, False, "`0`"), (0.0, False, "`0`"), (1e-4, False, "`0.0001`"), ("a|b", False, "`a\\|b`")]
    + [(["x", "y"], False, "`x,y`"), (True, True, "on"), (False, True, "")]
    + [(empty, False, "") for empty in (None, "", [])],
)
def test_the_page_of_options_leaves_out_no_default(default, flag, cell):
    found = CommandOption(("--a",), (), "", default, False, flag, Holds.VALUE)
    assert default_cell(found) == cell
