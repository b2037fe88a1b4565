"""Tests of the inference node in a real ROS graph: answers, refusals, lifecycle.

"Nothing was published" is shown by a good image sent afterwards: the next chunk is its answer.
"""

from __future__ import annotations

import json
import signal
import threading

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from graphs import IMAGE, InferenceGraph, NodeGraph, domain, inference_graphs, processes
from lifecycle_msgs.msg import Transition
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import String

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.inputs.image_messages import image_to_rgb
from vla_inference.ros import qos
from vla_inference.ros.images import rgb_to_compressed, rgb_to_image
from vla_inference.ros.inference import instructions
from vla_inference.ros.messages import msg_to_chunk
from vla_msgs.msg import ActionChunk

try:
    from rclpy.event_handler import PublisherEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import PublisherEventCallbacks

PATIENCE = NodeGraph.patience


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def graph(checkpoint):
    """Makes a graph of this test's own."""
    with inference_graphs(model=str(checkpoint), instruction="stack it", num_threads=1) as make:
        yield make


@pytest.fixture(scope="module")
def shared(checkpoint):
    """One graph for the tests that leave it as they found it."""
    parameters = {"model": str(checkpoint), "instruction": "stack it", "num_threads": 1}
    g = InferenceGraph(parameters)
    g.meet()
    yield g
    g.close()


# -- answers ----------------------------------------------------------------------------------


def test_the_chunk_carries_the_stamp_and_what_it_was_asked(shared):
    msg = shared.frame()
    chunk = shared.answer(msg)
    shared.chunks.clear()
    assert chunk.header.stamp == msg.header.stamp and chunk.header.frame_id == "base"
    assert (
        len(msg_to_chunk(chunk)) == 8 and chunk.instruction == "stack it" and chunk.model == "tiny"
    )
    assert {"image", "preprocess", "total"} <= set(chunk.stage_names)
    assert len(chunk.stage_names) == len(chunk.stage_ms)
    assert chunk.latency_ms > 0
    produced, stamp = (t.sec + 1e-9 * t.nanosec for t in (chunk.produced, msg.header.stamp))
    assert produced > stamp
    arm, gripper = chunk.parts
    assert (arm.kind, arm.rotation_convention, chunk.dt) == ("eef_delta", "rotvec", 0.05)
    assert gripper.kind == "gripper"


def test_the_node_answers_what_the_policy_answers(shared):
    chunk = shared.answer(shared.frame())
    shared.chunks.clear()
    wanted = shared.node.policy.predict_action(IMAGE, "stack it").actions
    np.testing.assert_array_equal(msg_to_chunk(chunk).actions, wanted)


def test_the_same_image_again_is_answered_again(shared):
    msg = shared.frame()
    first = shared.answer(msg)
    shared.chunks.clear()
    second = shared.answer(msg)
    shared.chunks.clear()
    assert second.sequence == first.sequence + 1 and second.actions == first.actions


def test_bgr_with_padding_is_the_same_image(shared):
    wanted = shared.answer(shared.frame()).actions
    shared.chunks.clear()
    rows = np.zeros((48, 64 * 3 + 5), np.uint8)
    rows[:, : 64 * 3] = IMAGE[..., ::-1].reshape(48, -1)
    msg = Image(encoding="bgr8", height=48, width=64, step=rows.shape[1])
    msg.data.frombytes(rows.tobytes())
    msg.header.stamp = shared.now()
    assert shared.answer(msg).actions == wanted
    shared.chunks.clear()


def test_yuyv_as_usb_cameras_publish_it_is_answered(shared):
    data = np.tile(np.array([82, 96, 82, 233], np.uint8), 48 * 32)  # Y U Y V of a red
    msg = Image(encoding="yuv422_yuy2", height=48, width=64, step=128)
    msg.data.frombytes(data.tobytes())
    red = image_to_rgb(msg)
    np.testing.assert_allclose(red, np.full_like(red, (244, 4, 12)), atol=2)
    wanted = shared.answer(rgb_to_image(red, shared.now(), "camera")).actions
    shared.chunks.clear()
    msg.header.stamp = shared.now()
    assert shared.answer(msg).actions == wanted
    shared.chunks.clear()


def test_compressed_images(graph):
    g = graph(image_transport="compressed")

    def png():
        return rgb_to_compressed(IMAGE, g.now(), quality=None)

    g.meet(g.compressed, png)
    chunk = g.answer(png(), g.compressed)
    g.chunks.clear()
    wanted = g.node.policy.predict_action(IMAGE, "stack it").actions
    assert msg_to_chunk(chunk).actions[3, 1] == wanted[3, 1]
    broken = png()
    broken.data = broken.data[:300]
    assert "cannot be decoded" in g.refuse(broken, g.compressed)
    g.sentinel(g.compressed, png)


def hold_up(g) -> tuple[threading.Event, threading.Event]:
    """Answers wait from now on: set when the first is asked for; to be set when they may go on."""
    begun, go_on = threading.Event(), threading.Event()
    predict = g.node.policy.predict

    def slow(*args, **kwargs):
        begun.set()
        assert go_on.wait(PATIENCE)
        return predict(*args, **kwargs)

    g.node.policy.predict = slow
    return begun, go_on


def test_of_many_images_the_newest_is_answered(graph):
    g = graph()
    g.meet()
    begun, go_on = hold_up(g)
    frames = [g.frame(header=g.frame().header) for _ in range(4)]
    before = g.node._model.latest.received
    for i, msg in enumerate(frames, start=1):
        g.images.publish(msg)
        g.until(lambda n=i: g.node._model.latest.received == before + n, "its arrival")
        if i == 1:
            assert begun.wait(PATIENCE)
    go_on.set()
    g.until(lambda: len(g.chunks) == 2, "two answers")
    assert [c.header.stamp for c in g.chunks] == [frames[i].header.stamp for i in (0, 3)]
    g.chunks.clear()
    g.sentinel()
    g.until(lambda: g.status.dropped == 2 and g.status.received == g.status.processed + 2)


def test_the_parameter_names_the_frame_of_the_deltas(graph):
    g = graph(frame_id="panda_link0")
    g.meet()
    chunk = g.answer(g.frame())
    assert chunk.header.frame_id == chunk.parts[0].frame_id == "panda_link0"


# -- refusals ---------------------------------------------------------------------------------


def shifted(shared, seconds: float) -> Image:
    msg = shared.frame()
    stamp = shared.client.get_clock().now().nanoseconds + int(seconds * 1e9)
    msg.header.stamp = Time(sec=stamp // 10**9, nanosec=stamp % 10**9)
    return msg


def stamped(graph: InferenceGraph, **stamp) -> Image:
    frame = graph.frame()
    frame.header.stamp = Time(**stamp)
    return frame


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda g: shifted(g, -5), "more than max_image_age (1 s)"),
        (lambda g: shifted(g, 5), "in the future"),
        (lambda g: g.frame(header=Image().header), "no stamp"),
        (lambda g: stamped(g, sec=-1), "the stamp of image is not a valid time (-1 s"),
        (lambda g: stamped(g, nanosec=10**9), "is not a valid time"),
        (lambda g: g.frame(encoding="mono16"), "'mono16': depth or infrared"),
        (lambda g: g.frame(encoding="nv24"), "'nv24'; publish one of rgb8"),
        (lambda g: g.frame(encoding="yuv422", width=63), "63x48 pixels cannot be in yuv422"),
        (lambda g: g.frame(height=47), "this one 9216"),
        (lambda g: g.frame(width=0), "0x48 pixels"),
        (lambda g: g.frame(step=3), "`step` says 3"),
        (lambda g: Image(header=g.frame().header, encoding="rgb8"), "0x0 pixels"),
    ],
    ids=[
        "stale",
        "future",
        "unstamped",
        "negative",
        "nanoseconds",
        "mono16",
        "nv24",
        "odd",
        "short",
        "empty",
        "step",
        "blank",
    ],
)
def test_an_image_no_action_may_come_from_is_refused(shared, make, words):
    assert words in shared.refuse(make(shared))
    shared.sentinel()


def test_a_tiny_image_is_refused(shared):
    assert "8x8 pixels" in shared.refuse(rgb_to_image(IMAGE[:8, :8], shared.now()))
    shared.sentinel()


def test_any_age_will_do_when_the_limit_is_off(shared):
    assert shared.node.set_parameters([Parameter("max_image_age", value=0.0)])[0].successful
    shared.answer(shifted(shared, -1000))
    shared.chunks.clear()
    assert shared.node.set_parameters([Parameter("max_image_age", value=1.0)])[0].successful
    assert "old" in shared.refuse(shifted(shared, -1000))
    shared.sentinel()


def test_a_model_that_goes_wild_is_refused(shared):
    weight = shared.node.policy.model.language_model.model.norm.weight
    good = weight.clone()
    weight.fill_(float("nan"))
    assert "not finite" in shared.refuse(shared.frame())
    weight.copy_(good)
    shared.sentinel()


def test_a_fault_in_the_model_shows_in_the_state_and_passes(shared):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    predict = shared.node.policy.predict
    shared.node.policy.predict = fail
    assert "out of memory" in shared.refuse(shared.frame())
    assert shared.status.state == "error" and "out of memory" in shared.status.message
    shared.node.policy.predict = predict
    shared.sentinel()
    shared.until(lambda: shared.status.state == "active", "recovery")


# -- instructions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "profile", [qos.INSTRUCTION_VOLATILE, qos.LATCHED], ids=["vol", "latched"]
)
def test_both_kinds_of_publishers_are_heard_once(shared, profile):
    publisher = shared.client.create_publisher(String, "instruction", profile)
    shared.until(lambda: publisher.get_subscription_count() >= 1, "the subscription")
    if profile is qos.INSTRUCTION_VOLATILE:
        # Matching is seen here before the other side has seen it: repeat until it is heard.
        def heard():
            publisher.publish(String(data="put it down"))
            return shared.node._instruction == "put it down"
    else:
        publisher.publish(String(data="pick it up"))

        def heard():
            return shared.node._instruction == "pick it up"

    shared.until(heard, "the instruction")
    text = shared.node._instruction
    shared.until(lambda: shared.status.instruction == text, "the status")
    assert shared.answer(shared.frame()).instruction == text
    assert shared.active.count(text) == 1
    shared.client.destroy_publisher(publisher)
    assert shared.instruct("stack it").success
    shared.chunks.clear()


def test_ros2_topic_pub_is_heard_without_a_warning_on_either_side(graph, monkeypatch):
    """Its publisher is volatile; a latching one beside it is left in peace after a while."""
    monkeypatch.setattr(instructions, "STAY", 0.3)
    g = graph(instruction="")
    told = []
    events = PublisherEventCallbacks(incompatible_qos=told.append)

    def say(text):
        once = g.client.create_publisher(
            String, "instruction", qos.INSTRUCTION_VOLATILE, event_callbacks=events
        )
        g.until(lambda: (once.publish(String(data=text)), g.node._instruction == text)[1], text)
        g.idle(0.5)
        g.client.destroy_publisher(once)

    say("put it down")
    latching = g.client.create_publisher(String, "instruction", qos.LATCHED)
    latching.publish(String(data="pick it up"))
    g.until(lambda: g.node._instruction == "pick it up", "the latched one")
    g.until(
        lambda: g.node._instructions.subscriber._latched is not None, "the latched subscription"
    )
    g.until(lambda: g.node._instructions.subscriber._latched is None, "its end")
    say("turn it")
    latching.publish(String(data="lift it"))
    g.until(lambda: g.node._instruction == "lift it", "the latched one again")
    assert told == []


@pytest.mark.parametrize("order", ["vv ll", "ll vv", "vl vl", "lv vl"])
def test_of_two_sentences_the_later_stays_in_force(shared, monkeypatch, order):
    followed = []
    monkeypatch.setattr(shared.node._instructions, "follow", followed.append)
    said = {"v": ["lift it", "turn it"], "l": ["lift it", "turn it"]}
    for channel in order.replace(" ", ""):
        shared.node._instructions.subscriber.hear(
            "vl".index(channel), String(data=said[channel].pop(0))
        )
    assert followed == ["lift it", "turn it"]


def test_an_instruction_latched_before_the_node_came_is_heard(graph):
    g = graph(start=False, instruction="")
    late = g.client.create_publisher(String, "instruction", qos.LATCHED)
    late.publish(String(data="stack the blue block"))
    g.until(lambda: g.node._instruction == "stack the blue block", "the instruction")
    g.until(lambda: g.active == ["stack the blue block"], "the echo")


def test_without_an_instruction_nothing_is_done_until_there_is_one(graph):
    g = graph(instruction="")
    assert "no instruction" in g.status.message or g.status.state != "active"
    while not g.status.refused:
        g.images.publish(g.frame())
        g.executor.spin_once(timeout_sec=0.2)
    assert "there is no instruction" in g.status.last_refusal
    assert g.instruct("stack it").success
    g.sentinel()


def test_words_the_model_was_trained_without_are_remarked_on(graph, tmp_path):
    folder = write_random_checkpoint(tmp_path / "m", head="l1")
    raw = json.loads((folder / "config.json").read_text())
    raw["trained_words"] = ["stack", "it"]
    (folder / "config.json").write_text(json.dumps(raw))
    g = graph(model=str(folder))
    remark = "the model was trained without: flurb, wibble"
    response = g.instruct("Stack flurb, it: wibble")
    assert response.success and response.message == remark
    g.until(lambda: g.status.message == remark, "the remark")
    response = g.instruct("stack it!")
    assert response.success and not response.message
    g.until(lambda: not g.status.message, "its end")


def test_an_empty_instruction_revokes_the_one_before(shared):
    publisher = shared.client.create_publisher(String, "instruction", qos.LATCHED)
    publisher.publish(String(data="  "))
    shared.until(lambda: "instruction is empty" in shared.status.last_refusal, "the refusal")
    assert "there is no instruction" in shared.refuse(shared.frame())
    publisher.publish(String(data="stack it"))
    shared.until(lambda: shared.status.instruction == "stack it", "the instruction")
    shared.sentinel()
    shared.client.destroy_publisher(publisher)


def test_the_service_refuses_an_empty_instruction_and_keeps_the_old_one(shared):
    for text in ("", " \n ", "x" * 1001):
        response = shared.instruct(text)
        assert not response.success and "instruction" in response.message
    assert shared.answer(shared.frame()).instruction == "stack it"
    shared.chunks.clear()


# -- lifecycle --------------------------------------------------------------------------------


def test_the_whole_life_by_services(graph):
    g = graph(start=False)
    assert g.state() == "unconfigured"
    assert not g.change(Transition.TRANSITION_ACTIVATE)  # a wrong one doesn't end the node
    assert g.change(Transition.TRANSITION_CONFIGURE)
    assert g.state() == "inactive"
    g.until(lambda: g.status.state == "inactive" and g.status.model == "tiny", "the status")
    assert g.change(Transition.TRANSITION_ACTIVATE)
    g.meet()
    assert g.change(Transition.TRANSITION_DEACTIVATE)
    arrived, receive = threading.Event(), g.node._inputs._receive
    g.node._inputs._receive = lambda view: (receive(view), arrived.set())
    g.images.publish(g.frame())
    g.until(arrived.is_set, "the image that comes while it is inactive")
    assert g.change(Transition.TRANSITION_ACTIVATE)
    g.sentinel()
    assert g.change(Transition.TRANSITION_DEACTIVATE)
    assert g.change(Transition.TRANSITION_CLEANUP)
    assert g.state() == "unconfigured" and g.node.policy is None
    assert g.change(Transition.TRANSITION_CONFIGURE)
    assert g.change(Transition.TRANSITION_ACTIVATE)
    g.meet()


def test_deactivating_holds_back_the_answer_under_way(graph):
    g = graph()
    g.meet()
    begun, go_on = hold_up(g)
    g.images.publish(g.frame())
    assert begun.wait(PATIENCE)
    assert g.change(Transition.TRANSITION_DEACTIVATE)
    assert g.change(Transition.TRANSITION_ACTIVATE)  # nor is it wanted when active again
    go_on.set()
    g.sentinel()


def test_a_bad_model_leaves_the_node_unconfigured_and_it_can_be_fixed(graph, checkpoint):
    g = graph(start=False, model="/nowhere/model")
    assert not g.change(Transition.TRANSITION_CONFIGURE)
    assert g.state() == "unconfigured"
    g.until(lambda: g.status.state == "error", "the error state")
    assert "there is no checkpoint folder /nowhere/model" in g.status.message
    assert g.node.set_parameters([Parameter("model", value=str(checkpoint))])[0].successful
    assert g.change(Transition.TRANSITION_CONFIGURE)
    assert g.change(Transition.TRANSITION_ACTIVATE)
    g.meet()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"unnorm_key": "bridge"}, "unknown unnorm_key 'bridge'; known: random"),
        ({"unnorm_key": "normalized"}, "the actions are in unit 1, of which no m and rad"),
        ({"dtype": "int4"}, "unknown dtype 'int4'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"image_transport": "theora"}, "use raw or compressed"),
        ({"model": ""}, "parameter 'model' is empty"),
    ],
)
def test_parameters_that_make_no_sense_are_named(graph, parameters, words):
    g = graph(start=False, **parameters)
    assert not g.change(Transition.TRANSITION_CONFIGURE)
    assert words in g.node.failure


def test_a_model_of_two_cameras_is_refused_where_one_is_named(graph, tmp_path):
    folder = write_random_checkpoint(tmp_path / "two", head="l1-two-cameras")
    g = graph(start=False, model=str(folder))
    assert not g.change(Transition.TRANSITION_CONFIGURE)
    assert "takes 2 images, parameters 'cameras' and 'history' give 1" in g.node.failure


def test_what_is_read_when_configuring_cannot_be_changed_later(shared):
    result = shared.node.set_parameters([Parameter("model", value="/else")])[0]
    assert not result.successful and "clean it up first" in result.reason


def test_a_second_model_on_the_same_topic_is_told(shared):
    other = shared.client.create_publisher(ActionChunk, "action", qos.CHUNK)
    topic = shared.node._action.topic_name
    shared.until(lambda: f"1 more publish on {topic}" in shared.status.message, "the remark")
    shared.client.destroy_publisher(other)
    shared.until(lambda: "publish" not in shared.status.message, "its end")


# -- the process ------------------------------------------------------------------------------


@pytest.fixture
def start():
    """Starts the node in a process of its own."""
    with processes(domain(50)) as run:

        def node(*parameters: str):
            words = [word for p in parameters for word in ("-p", p)]
            return run("-m", "vla_inference.ros.inference.node", "--ros-args", *words)

        yield node


def test_a_bad_model_ends_the_process_with_one_line_and_status_2(start):
    process = start("model:=/nowhere/model")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert len(err.strip().splitlines()) == 1
    assert "cannot configure: there is no checkpoint folder /nowhere/model; check the path" in err


def test_ctrl_c_twice_ends_the_process_with_status_0(start, checkpoint):
    process = start(f"model:={checkpoint}", "num_threads:=1")
    for line in process.stderr:
        if "model tiny on cpu" in line:
            break
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and "Traceback" not in err
