"""Tests of the SROS 2 policy: valid by its schema, and sufficient for the nodes.

And what holds for the parameters of all nodes.
"""

from __future__ import annotations

import os
import re
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import rclpy
from bags import write_bags
from graphs import domain
from PIL import Image
from rclpy.parameter import Parameter
from six_axes import urdf

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.estimate.estimator import Estimator, Eyes, Heads
from vla_inference.ros.camera_node import CameraNode
from vla_inference.ros.command.node import CommandNode
from vla_inference.ros.diagnostics import Diagnostics
from vla_inference.ros.estimate.node import EstimateNode
from vla_inference.ros.ik.chunk_node import ChunkIkNode
from vla_inference.ros.ik.node import IkNode
from vla_inference.ros.inference.node import InferenceNode
from vla_inference.ros.lifecycle import SUCCESS, ManagedNode
from vla_inference.ros.teleop.node import TeleopNode
from vla_sim_bridge.ros.episodes import Episodes
from vla_sim_bridge.ros.robot.robot_executor import RobotDrive
from vla_sim_bridge.ros.robot.robot_sim_node import RobotSimNode
from vla_sim_bridge.ros.sim_node import SimNode
from vla_sim_bridge.ros.sim_services import SimServices
from vla_studio.ros.node import StudioNode
from vla_training.ros.record_node import RecordNode
from vla_training.ros.training_node import TrainingNode
from vla_training.ros.validation_node import ValidationNode

POLICY = Path(__file__).resolve().parent.parent / "config/sros2/policy.xml"

# element -> (attributes that must be there, that may be, children), as in sros2's policy.xsd
FORM = {
    "policy": ({"version"}, set(), {"enclaves"}),
    "enclaves": (set(), set(), {"enclave"}),
    "enclave": ({"path"}, set(), {"profiles"}),
    "profiles": (set(), {"type"}, {"profile"}),
    "profile": ({"ns", "node"}, set(), {"topics", "services", "actions"}),
    "topics": (set(), {"publish", "subscribe"}, {"topic"}),
    "services": (set(), {"reply", "request"}, {"service"}),
    "actions": (set(), {"call", "execute"}, {"action"}),
    "topic": (set(), set(), set()),
    "service": (set(), set(), set()),
    "action": (set(), set(), set()),
}


def resolve(expression: str, node: str) -> str:
    if expression.startswith("~/"):
        return f"/{node}/{expression[2:]}"
    return expression if expression.startswith("/") else f"/{expression}"


def allowed() -> dict[tuple[str, str], set[str]]:
    """(node, what it does) -> full names."""
    found: dict[tuple[str, str], set[str]] = {}
    for profile in ElementTree.parse(POLICY).iter("profile"):
        node = profile.get("node")
        for group in profile:
            for rule, value in group.items():
                assert value == "ALLOW"
                names = {resolve(e.text, node) for e in group}
                found.setdefault((node, rule), set()).update(names)
    return found


def test_it_has_the_form_of_the_schema():
    def check(element: ElementTree.Element) -> None:
        must, may, children = FORM[element.tag]
        assert must <= set(element.keys()) <= must | may
        assert {c.tag for c in element} <= children and bool(children) == bool(len(element))
        if not children:
            assert element.text and element.text == element.text.strip()
        for child in element:
            check(child)

    check(ElementTree.parse(POLICY).getroot())
    paths = [e.get("path") for e in ElementTree.parse(POLICY).iter("enclave")]
    assert len(paths) == len(set(paths)) and all(p.startswith("/") for p in paths)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Our nodes with all they can do, in the root namespace as the policy has them."""
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    folder = tmp_path_factory.mktemp("sros2")
    model = write_random_checkpoint(folder / "model", head="l1-two-cameras")
    eyes = Eyes(write_random_checkpoint(folder / "watching", head="l1"), "cpu")
    estimator = Estimator(eyes, Heads.untrained(eyes.sizes), 0.5, {}).save(folder / "estimator")
    (folder / "images").mkdir()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "images" / "one.png")
    (folder / "arm.urdf").write_text(urdf())
    bags = write_bags(folder / "bags", (2,))
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain(65))
    made = []
    for kind, parameters in (
        (
            InferenceNode,
            {
                "model": str(model),
                "cameras": ["image", "image_wrist"],
                "state": ["position", "rotvec", "joints"],
                "joint_names": ["a", "b"],
            },
        ),
        (CommandNode, {"publish_pose": True}),
        (EstimateNode, {"estimator": str(estimator)}),
        (CameraNode, {"source": str(folder / "images")}),
        (TrainingNode, {"root": str(folder)}),
        (IkNode, {"robot": str(folder / "arm.urdf")}),
        (ChunkIkNode, {"robot": str(folder / "arm.urdf")}),
        (RobotSimNode, {"width": 32, "height": 32}),
        (RecordNode, {"output": str(folder / "recorded")}),
        (ValidationNode, {"bag": str(bags)}),
        (TeleopNode, {"device": "gamepad"}),
        (StudioNode, {"port": 0}),
    ):
        overrides = [Parameter(k, value=v) for k, v in parameters.items()]
        made.append(kind(parameter_overrides=overrides, context=context))
        assert made[-1].trigger_configure() == SUCCESS, made[-1].failure
        if kind in (RecordNode, StudioNode, TeleopNode):  # hear nothing before
            assert made[-1].trigger_activate() == SUCCESS, made[-1].failure
    made.append(all_but_the_world(context))
    yield made
    for node in made:
        if isinstance(node, ManagedNode):
            node.trigger_shutdown()
        node.destroy_node()
    rclpy.shutdown(context=context)


def all_but_the_world(context) -> SimNode:
    """The simulation's node as a robot, without what takes seconds to build."""
    settings = {"driven_by": "twist", "answer_delay": 0.1, "record_episodes": 0}
    overrides = [Parameter(k, value=v) for k, v in settings.items()]
    node = SimNode(parameter_overrides=overrides, context=context)
    node.episodes = Episodes(node, node.settings, node.folder, world=None)
    drive = RobotDrive(node, node.episodes)
    SimServices(node, drive)
    Diagnostics(node, "simulation", node._diagnose)
    drive.start()
    return node


NODES = [
    "inference",
    "_inference_service",
    "command",
    "camera",
    "training",
    "ik",
    "chunk_ik",
    "estimate",
    "robot_sim",
    "recorder",
    "validation",
    "sim",
    "studio",
    "teleop",
]


def test_every_node_that_can_be_run_has_rights():
    """By the entry points, so that a new one is not forgotten."""
    ends = {
        line.split()[0]
        for p in POLICY.parents[2].glob("src/*/setup.py")
        for line in re.findall(r'"(\w+_node) = ', p.read_text())
    }
    named = {n.removesuffix("_node").replace("record", "recorder") for n in ends}
    assert named and named == set(NODES) - {"_inference_service"}
    assert {node for node, _ in allowed()} == {*NODES, "operator"}


@pytest.mark.parametrize("name", NODES)
def test_all_that_a_node_does_is_allowed(nodes, name):
    asker, rules = nodes[1], allowed()
    looks = {
        "publish": asker.get_publisher_names_and_types_by_node,
        "subscribe": asker.get_subscriber_names_and_types_by_node,
        "reply": asker.get_service_names_and_types_by_node,
        "request": asker.get_client_names_and_types_by_node,
    }
    end = time.monotonic() + 20
    while not any(n == name for n, _ in asker.get_node_names_and_namespaces()):
        assert time.monotonic() < end
        time.sleep(0.05)
    actions = rules.get((name, "execute"), set())
    for rule, look in looks.items():
        seen = {n for n, _ in look(name, "/")}
        assert seen or rule in ("subscribe", "request")
        # An action is topics and services below its name.
        seen = {n for n in seen if n.split("/_action/")[0] not in actions}
        assert seen <= rules.get((name, rule), set())
        # Nor does the policy allow what a node never says.
        if rule == "publish":
            may = {"/image/compressed", "/diagnostics", "/target_pose", "/odom"}
            if name == "sim":  # parameters second_camera, state and driven_by
                may |= {"/image_wrist", "/camera_info_wrist", "/joint_states", "/base/scan"}
            if name == "studio":  # while its operator moves the robot
                may |= {"/human_action"}
            assert rules[name, rule] - seen <= may


RCLPY = ("use_sim_time", "start_type_description_service", "qos_overrides.")
NUMBERS = (Parameter.Type.DOUBLE, Parameter.Type.INTEGER)


def test_every_parameter_says_what_it_is_and_every_number_has_its_range(nodes):
    """The simulation checks its own, all at once and before it begins."""
    for node in nodes:
        seen = 0
        for name, parameter in node.get_parameters_by_prefix("").items():
            if name.startswith(RCLPY):
                continue
            about, seen = node.describe_parameter(name), seen + 1
            assert about.description, f"{node.get_name()}: {name}"
            if parameter.type_ in NUMBERS and not isinstance(node, SimNode):
                bounds = about.floating_point_range or about.integer_range
                assert bounds, f"{node.get_name()}: {name}"
        assert seen > 1
