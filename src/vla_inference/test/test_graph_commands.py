"""Tests of `vla run, topic, service, action, param, node, lifecycle` against a real graph."""

from __future__ import annotations

import math
import threading
import time

import numpy as np
import pytest
import yaml
from builtin_interfaces.msg import Time
from geometry_msgs.msg import TwistStamped
from graphs import NodeGraph, domain, processes
from rclpy.action import ActionServer, CancelResponse
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import Image, JointState

from vla_inference.cli.main import main
from vla_inference.errors import VlaError
from vla_inference.ros.cli.interfaces import field, fill, interface, plain, show
from vla_inference.ros.cli.node import find_executable
from vla_inference.ros.cli.topic import rate_line
from vla_inference.ros.command.node import CommandNode
from vla_msgs.action import RunJob
from vla_msgs.msg import ActionChunk

VLA = ("-m", "vla_inference.cli.main")


@pytest.fixture(scope="module")
def graph():
    made = NodeGraph(CommandNode, {})
    try:
        assert made.start_node(), made.node.failure
        yield made
    finally:
        made.close()


@pytest.fixture
def vla(graph, monkeypatch, capsys):
    """Runs a command line in the graph's domain: status, output and errors."""
    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain()))

    def run(*words: str) -> tuple[int, str, str]:
        name = graph.node.get_fully_qualified_name()
        status = main([w.replace("NODE", name) for w in words])
        return status, *capsys.readouterr()

    return run


def eventually(look):
    """What `look` gives, once that is not empty: on a busy machine a graph is found late."""
    end = time.monotonic() + 60
    while not (found := look()) and time.monotonic() < end:
        pass
    return found


# -- in a graph -------------------------------------------------------------------------------


def test_topics_are_listed_described_and_shown(vla, graph):
    listed = "/status [vla_msgs/msg/CommandStatus]"
    assert eventually(lambda: listed in vla("topic", "list", "-t")[1])
    status, out, _ = vla("topic", "info", "NODE/status")
    assert "vla_msgs/msg/CommandStatus" in out and "reliable, transient_local" in out
    status, out, _ = vla("topic", "echo", "--once", "NODE/status")
    assert status == 0 and yaml.safe_load(out.removesuffix("---\n"))["state"] == "disabled"
    status, out, _ = vla("topic", "echo", "--once", "--field", "header.frame_id", "NODE/status")
    assert status == 0 and out == "\n---\n"
    status, _, err = vla("topic", "echo", "--once", "NODE/sttus")
    assert status == 2 and "did you mean" in err and "NODE/status" not in err and "/status" in err


def test_a_published_message_arrives_with_the_stamp_of_its_sending(vla, graph):
    heard = []
    name = f"{graph.client.get_namespace()}/twist"
    graph.client.create_subscription(TwistStamped, name, heard.append, 10)
    begun = time.time()
    text = "{header: auto, twist: {linear: {x: 1}}}"
    words = "topic", "pub", "--times", "2", "--rate", "20"
    status, out, _ = vla(*words, name, "geometry_msgs/TwistStamped", text)
    assert status == 0 and out.count("published geometry_msgs/msg/TwistStamped") == 2
    graph.until(lambda: len(heard) == 2, "two messages")
    assert heard[0].twist.linear.x == 1.0
    stamps = [m.header.stamp.sec + 1e-9 * m.header.stamp.nanosec for m in heard]
    assert begun <= stamps[0] < stamps[1] <= time.time()


def test_a_service_is_called_and_wrong_requests_are_named(vla):
    kind = "std_srvs/srv/SetBool"
    assert vla("service", "type", "NODE/enable")[1] == f"{kind}\n"
    listed = "/enable [std_srvs/srv/SetBool]"
    assert eventually(lambda: listed in vla("service", "list", "-t")[1])
    status, out, _ = vla("service", "call", "NODE/enable", kind, "{data: true}")
    answer = yaml.safe_load(out)
    assert status == 0 and not answer["success"] and "no usable chunk" in answer["message"]
    wrong = [
        (("NODE/enable", kind, "{date: true}"), "no field 'date'; did you mean data?"),
        (("NODE/enable", kind, "{data: perhaps}"), "data is 'perhaps', not boolean"),
        (("NODE/enable", kind, "true"), "not a mapping"),
        (("NODE/enable", kind, "{data: [}"), "not YAML"),
        (("NODE/enable", "std_srvs/srv/Trigger"), f"is a {kind}, not"),
        (("NODE/enable", "std_srvs/srv/SetBol"), "did you mean SetBool"),
        (("NODE/enable", "std_srv/srv/SetBool"), "no package 'std_srv'"),
        (("NODE/enable", "SetBool"), "package/srv/Name"),
    ]
    for words, told in wrong:
        status, _, err = vla("service", "call", *words)
        assert status == 2 and told in err, err


def test_parameters_are_read_and_set(vla):
    assert "scale\n" in vla("param", "list", "NODE")[1]
    status, _, err = vla("param", "set", "NODE", "scale", "1")
    assert status == 2 and "refused scale; scale is read when the node is configured" in err
    for transition in ("deactivate", "cleanup"):
        assert vla("lifecycle", "set", "NODE", transition)[0] == 0
    assert vla("param", "set", "NODE", "scale", "1")[0] == 0  # a whole number for a double
    assert vla("param", "get", "NODE", "scale")[1] == "1.0\n"
    for transition in ("configure", "activate"):
        assert vla("lifecycle", "set", "NODE", transition)[0] == 0
    status, _, err = vla("param", "get", "NODE", "scael")
    assert status == 2 and "did you mean scale" in err
    (values,) = yaml.safe_load(vla("param", "dump", "NODE")[1]).values()
    assert values["ros__parameters"]["scale"] == 1.0


def test_a_managed_node_is_stopped_and_started(vla, graph):
    assert vla("lifecycle", "get", "NODE")[1].startswith("active")
    assert vla("lifecycle", "set", "NODE", "deactivate")[0] == 0 and graph.node.state == "inactive"
    assert vla("lifecycle", "set", "NODE", "configure")[0] == 1  # it is already
    assert vla("lifecycle", "set", "NODE", "activate")[0] == 0 and graph.node.state == "active"
    status, _, err = vla("lifecycle", "set", "NODE", "start")
    assert status == 2 and "activate" in err
    assert "Subscribers:" in vla("node", "info", "NODE")[1]
    status, _, err = vla("node", "info", "NODEx")
    assert status == 2 and "did you mean" in err


def test_a_goal_gives_feedback_and_a_result_or_is_refused(vla, graph):
    def work(handle):
        if handle.request.kind == "fail":
            handle.abort()
            return RunJob.Result(message="as asked")
        handle.publish_feedback(RunJob.Feedback())
        time.sleep(0.2)  # feedback before the result
        handle.succeed()
        return RunJob.Result(success=True, message="done")

    refuse = {"cancel_callback": lambda _: CancelResponse.ACCEPT}
    server = ActionServer(graph.client, RunJob, "run", work, **refuse)
    ending = threading.Event()
    executor = SingleThreadedExecutor(context=graph.context)
    graph.executor.remove_node(graph.client)
    executor.add_node(graph.client)

    def spin():
        while not ending.is_set():
            executor.spin_once(timeout_sec=0.05)

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        name, kind = f"{graph.client.get_namespace()}/run", "vla_msgs/action/RunJob"
        listed = eventually(lambda: vla("action", "list", "-t")[1])
        assert listed == f"{name} [{kind}]\n"
        status, out, _ = vla("action", "send_goal", "-f", name, kind, "{kind: train}")
        assert status == 0 and "feedback:" in out and "message: done" in out
        assert out.endswith("goal SUCCEEDED\n")
        status, out, _ = vla("action", "send_goal", name, kind, "{kind: fail}")
        assert status == 1 and "goal ABORTED" in out
    finally:
        ending.set()
        thread.join()
        server.destroy()
        executor.shutdown()
        graph.executor.add_node(graph.client)


def test_run_starts_a_node_with_its_arguments(vla):
    with processes(domain()) as start:
        node = ("vla_inference", "command_node", "--ros-args", "-r", "__node:=started_by_run")
        running = start(*VLA, "run", *node, "-p", "autostart:=false")
        found = eventually(lambda: vla("lifecycle", "get", "/started_by_run")[1])
        assert found == "unconfigured [1]\n"
        assert eventually(lambda: "/started_by_run" in vla("node", "list")[1])
        running.terminate()
        assert running.wait(30) == 0


def test_a_node_or_package_that_is_not_there_is_named():
    with pytest.raises(VlaError, match="did you mean command_node"):
        find_executable("vla_inference", "comma_node")
    with pytest.raises(VlaError, match="did you mean vla_inference"):
        find_executable("vla_inferense", "command_node")


# -- messages and YAML ------------------------------------------------------------------------

MESSAGES = [
    JointState(name=["a", "b"], position=[0.5, -math.pi], velocity=[1e-9]),
    Image(height=1, width=2, encoding="rgb8", step=6, data=bytes(range(6))),
    TwistStamped(),
    ActionChunk(sequence=7, instruction="stack: the 'red' block, é"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_what_is_shown_can_be_sent_again(message):
    text = show(plain(message, None))
    again = type(message)()
    fill(again, yaml.safe_load(text), Time)
    assert again == message


def test_long_arrays_are_cut_and_fields_are_found():
    message = Image(data=np.zeros(1000, np.uint8).tobytes())
    assert plain(message)["data"][-1] == "..." and len(plain(message)["data"]) == 129
    assert plain(message, arrays=False)["data"] == "<sequence<uint8>, 1000 elements>"
    joints = MESSAGES[0]
    assert field(joints, "name[1]") == "b" and field(joints, "header.stamp.sec") == 0
    for path in ("nme", "name[2]", "name[x]", "header.stamp.sec.more"):
        with pytest.raises(VlaError, match="there is no"):
            field(joints, path)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"position": [1, "two"]}, "position is"),
        ({"position": 1}, "position is 1"),
        ({"name": [True]}, "name is"),
        ({"header": {"stamp": {"sec": 2**40}}}, "header.stamp.sec is"),
        ({"header": 5}, "header is 5, not a mapping"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_by_its_path(values, told):
    with pytest.raises(VlaError, match=told.replace(".", r"\.")):
        fill(interface("sensor_msgs/msg/JointState", "msg")(), values, Time)


def test_a_rate_is_the_mean_of_the_gaps():
    assert rate_line([0.0, 0.1, 0.2, 0.4]).startswith(
        "average rate: 7.500\n\tmin: 0.100s max: 0.2"
    )
    assert rate_line([1.0]) == "one message so far"
