"""Tests of the simulation node in a real ROS graph, with a fake model that may misbehave."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from graphs import processes
from typist import Typist

FAKE_MODEL = Path(__file__).with_name("fake_model.py")
ROOT = Path(__file__).resolve().parent.parent
# Domains of our own: other tests may run on this machine at the same time.
_domains = itertools.count(os.getpid())


@pytest.fixture
def graph():
    """Starts processes in a fresh ROS domain, all of which end with it."""
    domain = 1 + next(_domains) % 100
    with processes(domain) as start:
        start.domain = domain
        yield start


def sim(graph, folder: Path, /, **parameters) -> subprocess.Popen:
    short = {
        "episodes": 2,
        "horizon": 8,
        "record_episodes": 1,
        "discovery_time": 0.5,
        "width": 64,
        "height": 64,
        "output": str(folder),
    }
    words = itertools.chain.from_iterable(
        ("-p", f"{name}:={json.dumps(value)}") for name, value in {**short, **parameters}.items()
    )
    return graph("-m", "vla_sim_bridge.ros.sim_node", "--ros-args", *words)


def model(graph, behaviour: str) -> subprocess.Popen:
    return graph(str(FAKE_MODEL), behaviour)


def ended(process: subprocess.Popen, timeout: float = 120) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def wait_for_line(process: subprocess.Popen, text: str) -> None:
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"ended without saying {text!r}: {process.stderr.read()}")


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def one_error(err: str) -> str:
    """The only line on standard error, which is no traceback."""
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


def test_two_episodes_despite_wrong_stamps(graph, tmp_path):
    model(graph, "wrong_stamp")
    status, out, err = ended(sim(graph, tmp_path / "r"))
    assert status == 0, err
    found = results(tmp_path / "r")
    assert found["complete"] and found["episodes"] == 2 and found["ended"] == "all episodes done"
    assert [e["outcome"] for e in found["per_episode"]] == ["timeout", "timeout"]
    assert [e["frames"] for e in found["per_episode"]] == [8, 8]
    # 4 of each chunk's 8 steps are executed: two frames an episode, each answered once
    assert found["frames_published"] == 4 and found["latency_ms"]["count"] == 4
    assert found["action_steps"] == 16
    assert found["chunks_ignored"] >= 6  # two of each answer's three
    assert "refused: the stamp of the chunk is not a valid time" in err
    assert found["model"] == "fake" and found["ros_overhead_ms"]["median"] > 0
    assert "episode 1/2" in out and "episode 2/2" in out and "Wilson" in out
    names = {p.name for p in (tmp_path / "r").iterdir()}
    assert names == {"results.json", "report.html", "episodes.mp4", "poster.png", "failures"}


def test_a_late_model_ends_the_run_and_what_was_measured_is_kept(graph, tmp_path):
    model(graph, "late")
    status, _, err = ended(sim(graph, tmp_path / "r", action_timeout=1.5))
    assert status == 1
    error = one_error(err)
    assert "no action for the frame of episode 1, step 4 within 1.5 s" in error
    assert "is the model node running and active?" in error and "/inference/status" in error
    found = results(tmp_path / "r")
    assert not found["complete"] and "no action" in found["ended"]
    assert [e["outcome"] for e in found["per_episode"]] == ["timeout", "aborted"]
    assert found["episodes"] == 1


@pytest.mark.slow
def test_without_any_model_the_wait_is_shown_and_ends(graph, tmp_path):
    process = sim(graph, tmp_path / "r", start_timeout=7)
    status, out, err = ended(process)
    assert status == 1 and "waiting for a model on topic /action" in out
    assert "no action for the frame of episode 0, step 0 within 7 s" in one_error(err)
    assert not (tmp_path / "r").exists()  # nothing was measured


def test_a_second_simulation_refuses_and_interrupting_the_first_keeps_its_results(graph, tmp_path):
    model(graph, "good")
    first = sim(graph, tmp_path / "a", episodes=1000)
    wait_for_line(first, "episode 1/1000")
    # It looks no longer than it takes to see the other, whatever the machine has to do.
    status, out, err = ended(sim(graph, tmp_path / "b", discovery_time=30.0))
    assert status == 2 and out == ""
    assert "/image has a publisher already (/sim)" in one_error(err)
    assert not (tmp_path / "b").exists()
    first.send_signal(signal.SIGINT)
    first.send_signal(signal.SIGINT)  # the terminal's and launch's
    status, _, err = ended(first)
    assert status == 130 and err == ""
    found = results(tmp_path / "a")
    assert not found["complete"] and found["ended"] == "interrupted"
    assert found["episodes"] >= 1 and found["episodes_asked"] == 1000
    assert (tmp_path / "a" / "report.html").exists()


def test_a_second_model_ends_the_run_which_is_then_incomplete(graph, tmp_path):
    model(graph, "good")
    first = sim(graph, tmp_path / "r", episodes=1000)
    wait_for_line(first, "episode 1/1000")
    model(graph, "good")
    status, _, err = ended(first)
    assert status == 1 and "more than one model answers on /action" in one_error(err)
    found = results(tmp_path / "r")
    assert not found["complete"] and "more than one model answers" in found["ended"]
    assert "Incomplete: more than one model" in (tmp_path / "r/report.html").read_text()


def test_the_answer_to_another_simulations_frame_ends_the_run(graph, tmp_path):
    model(graph, "gossip")
    status, _, err = ended(sim(graph, tmp_path / "r"))
    assert status == 1 and "a chunk on /action answers somebody else's frame" in one_error(err)
    assert not results(tmp_path / "r")["complete"]


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"task": "Stack_D9"}, "there is no task 'Stack_D9'"),
        ({"episodes": 0}, "0 episodes were requested; ask for at least 1"),
        ({"task": "Lift_D0", "language": "free"}, "has no free sentences; use language train"),
        ({"camera": "front"}, "there is no camera 'front'; cameras: frontview"),
    ],
)
def test_what_cannot_be_played_is_refused_in_one_line(graph, tmp_path, parameters, complaint):
    status, out, err = ended(sim(graph, tmp_path / "r", **parameters))
    assert status == 2 and out == ""
    assert complaint in one_error(err)
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behaviour", "complaint"),
    [
        ("nan", "not finite"),
        ("short", "execute_steps is 8, but the model's chunks have 3; give 1 to 3"),
        ("tool", "frame 'tool'; this simulation takes frame 'base' only"),
        ("deaf", "the model answers to 'do the dishes' instead of 'stack the red block"),
    ],
)
def test_chunks_that_must_not_be_executed_end_the_run(graph, tmp_path, behaviour, complaint):
    model(graph, behaviour)
    more = {"action_timeout": 1.0, "start_timeout": 3.0, "execute_steps": 8}
    status, _, err = ended(sim(graph, tmp_path / "r", **more))
    assert status == 1
    assert complaint in one_error(err)
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_answers_to_an_old_instruction_are_asked_for_again(graph, tmp_path):
    model(graph, "wrong_text")
    status, _, err = ended(sim(graph, tmp_path / "r", task="Stack_D3"))
    assert status == 0, err
    found = results(tmp_path / "r")
    assert found["complete"] and found["instruction_mismatches"] >= 4
    assert found["latency_ms"]["count"] == found["frames_published"] == 4


@pytest.mark.slow
def test_real_time_goes_on_whatever_arrives(graph, tmp_path):
    model(graph, "late")  # three answers, then silence
    parameters = {"lock_step": False, "episodes": 1, "horizon": 40, "record_episodes": 0}
    status, _, err = ended(sim(graph, tmp_path / "r", **parameters))
    assert status == 0, err
    found = results(tmp_path / "r")
    assert found["complete"] and found["per_episode"][0]["frames"] == 40
    assert found["real_time"]["held_periods"] > 10
    assert 1 <= found["action_steps"] <= 30


def command_node(graph, path: str, *more: str) -> subprocess.Popen:
    """As robosuite.launch.xml and rover.launch.xml start it."""
    robot = "rover" if path == "base_twist" else "robosuite"
    files = ("config/command.yaml", f"config/robots/{robot}.yaml")
    words = [w for f in files for w in ("--params-file", str(ROOT / f))]
    for name, value in (
        ("use_sim_time", True),
        ("lock_step", True),
        ("publish_twist", path == "twist"),
        ("publish_pose", path == "pose"),
    ):
        words += ["-p", f"{name}:={json.dumps(value)}"]
    return graph("-m", "vla_inference.ros.command.node", "--ros-args", *words, *more)


@pytest.mark.parametrize("path", ["twist", pytest.param("pose", marks=pytest.mark.slow)])
def test_driven_by_commands_no_period_goes_without_one(graph, tmp_path, path):
    model(graph, "timed")  # it comes up last, and would else wait for the time for ever
    command_node(graph, path)
    status, _, err = ended(sim(graph, tmp_path / "r", driven_by=path, record_episodes=0))
    assert status == 0, err
    found = results(tmp_path / "r")
    assert [e["frames"] for e in found["per_episode"]] == [8, 8]
    assert found["frames_published"] == 4 and found["action_steps"] == 16
    robot = found["robot"]
    assert robot["accepted"] >= 16 and robot["rejected"] == robot["stops"] == {}
    assert robot["gaps"] == robot["zeros"] == robot["unanswered_periods"] == 0


def test_a_rover_stops_before_what_its_lidar_shows_whatever_its_model_wants(graph, tmp_path):
    model(graph, "forwards")
    command_node(graph, "base_twist")
    short = {"driven_by": "base_twist", "task": "Rover_D0", "horizon": 240, "episodes": 1}
    status, _, err = ended(sim(graph, tmp_path / "r", record_episodes=0, **short))
    assert status == 0, err
    found = results(tmp_path / "r")
    robot = found["robot"]
    assert (
        robot["stops"] == {"obstacle": 1} and "m ahead (allowed: 0.05 m)" in robot["stop_reason"]
    )
    assert robot["accepted"] > 20 and robot["rejected"] == {} and found["collision"] == 0


def test_driven_by_commands_a_model_that_was_never_usable_ends_the_run(graph, tmp_path):
    model(graph, "nan")
    command_node(graph, "twist")
    short = {"driven_by": "twist", "start_timeout": 20.0}
    status, _, err = ended(sim(graph, tmp_path / "r", **short))
    assert status == 1
    error = one_error(err)
    assert "the command node was not enabled within 20 s: no usable chunk has come" in error
    assert "not finite" in error


def test_driven_by_commands_of_a_model_gone_senseless_it_stands_still(graph, tmp_path):
    model(graph, "nan_later")
    command_node(graph, "twist")
    status, _, err = ended(sim(graph, tmp_path / "r", driven_by="twist", record_episodes=0))
    assert status == 0, err
    found = results(tmp_path / "r")
    assert [e["outcome"] for e in found["per_episode"]] == ["timeout"] * 2
    robot = found["robot"]
    assert robot["stops"] == {"bad_chunk": 2}  # enabled again for the second episode
    assert robot["accepted"] <= 4 and "not finite" in robot["stop_reason"]
    assert found["action_steps"] == robot["zeros"]  # whatever it was told was to stand still


@pytest.mark.slow
def test_answers_that_take_half_as_long_as_they_last_leave_no_gap(graph, tmp_path):
    """Steps of 0.05 s, eight a chunk: after 0.2 s four are stale, and four last until the next."""
    model(graph, "good")
    command_node(graph, "twist", "-r", "action:=delayed_action")
    short = {"driven_by": "twist", "answer_delay": 0.2, "horizon": 24, "episodes": 1}
    status, _, err = ended(sim(graph, tmp_path / "r", record_episodes=0, **short))
    assert status == 0, err
    robot = results(tmp_path / "r")["robot"]
    assert robot["gaps"] == robot["zeros"] == robot["unanswered_periods"] == 0
    # The first is waited for, as is the one without which the robot is not enabled. (The counts
    # are those of the last status, twice a second.)
    assert robot["accepted"] >= 24 and robot["stale_steps"] == 4 * (robot["chunks"] - 2)


@pytest.mark.slow
def test_driven_by_commands_of_nobody_it_says_so(graph, tmp_path):
    model(graph, "good")
    short = {"driven_by": "twist", "start_timeout": 3.0}
    status, _, err = ended(sim(graph, tmp_path / "r", **short))
    assert status == 1
    assert "the command node was not enabled within 3 s" in one_error(err)


@pytest.fixture
def client(graph):
    """A ROS node of this process in the graph: `client.call(type, name, request)`."""
    rclpy = pytest.importorskip("rclpy")
    from rclpy.executors import SingleThreadedExecutor

    context = rclpy.Context()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        rclpy.init(context=context, domain_id=graph.domain)
    node = rclpy.create_node("client", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    class Client:
        def __init__(self):
            self.node, self.heard = node, {}

        def call(self, kind, name, request):
            service = node.create_client(kind, name)
            assert service.wait_for_service(timeout_sec=30)
            future = service.call_async(request)
            executor.spin_until_future_complete(future, timeout_sec=60)
            return future.result()

        def listen(self, kind, topic, qos):
            self.heard[topic] = []
            node.create_subscription(kind, topic, self.heard[topic].append, qos)

        def spin(self, until, timeout=60):
            end = time.monotonic() + timeout
            while not until() and time.monotonic() < end:
                executor.spin_once(timeout_sec=0.05)
            assert until()

    yield Client()
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_people_enable_it_and_say_what_is_to_be_done(graph, client, tmp_path):
    from std_srvs.srv import SetBool

    from vla_inference.ros.qos import CHUNK
    from vla_msgs.msg import ActionChunk

    model(graph, "deaf")
    parameters = {"driven_by": "twist", "auto_enable": False, "episodes": 1, "record_episodes": 0}
    process = sim(graph, tmp_path / "r", **parameters)
    client.listen(ActionChunk, "action", CHUNK)
    client.spin(lambda: client.heard["action"])
    command_node(graph, "twist")  # comes up after the model's answer, and must get another
    answer, end = None, time.monotonic() + 120
    while answer is None or not answer.success:
        assert time.monotonic() < end, f"enabling is refused: {answer.message}"
        answer = client.call(SetBool, "command/enable", SetBool.Request(data=True))
    status, _, err = ended(process)
    assert status == 0, err
    found = results(tmp_path / "r")
    assert [e["frames"] for e in found["per_episode"]] == [8]
    assert found["robot"]["unanswered_periods"] == 0


@pytest.mark.slow
def test_a_persons_keys_move_the_simulated_arm(graph, client, tmp_path):
    from geometry_msgs.msg import PoseStamped
    from std_srvs.srv import SetBool

    from vla_inference.ros.qos import CHUNK, HISTORY, LATCHED
    from vla_msgs.msg import CommandSource, CommandStatus

    client.listen(CommandStatus, "command/status", LATCHED)
    client.listen(PoseStamped, "current_pose", CHUNK)
    client.listen(CommandSource, "command/source", HISTORY)
    model(graph, "deaf")  # which lifts by 0.001 m a step
    command_node(graph, "twist")
    alone = {"driven_by": "twist", "auto_enable": False, "episodes": 1, "record_episodes": 0}
    sim(graph, tmp_path / "r", horizon=4000, **alone)
    typist = Typist(graph.domain, "--silence", "0.5", "--linear-speed", "0.5")

    def at():
        where = client.heard["current_pose"][-1].pose.position
        return np.array([where.x, where.y, where.z])

    def source():
        return [msg.source for msg in client.heard["command/source"]]

    def held(key, until):
        """Types until it is so."""

        def pressed():
            typist.type(key)
            return until()

        try:
            client.spin(pressed)
        except AssertionError:
            raise AssertionError(client.heard["command/status"][-1:]) from None

    def stands():
        places = [msg.pose.position for msg in client.heard["current_pose"][-10:]]
        return np.ptp([[p.x, p.y, p.z] for p in places], axis=0).max() < 5e-4

    try:
        client.spin(lambda: client.heard["current_pose"])
        held("t", lambda: source()[-1:] == ["human"])
        begin = at()
        enable = SetBool.Request(data=True)
        held("w", lambda: client.call(SetBool, "command/enable", enable).success)
        held("w", lambda: at()[0] > begin[0] + 0.05)
        ahead = at()
        assert abs(ahead[1] - begin[1]) < 0.01 and abs(ahead[2] - begin[2]) < 0.02
        held("d", lambda: at()[1] < begin[1] - 0.05)
        held(" ", stands)
        typist.type("b")
        client.spin(lambda: source()[-1] == "model")
        height = at()[2]
        client.spin(lambda: at()[2] > height + 0.01)
        assert "you command" in typist.end()
    finally:
        typist.close()


@pytest.mark.slow
def test_both_cameras_and_the_state_come_with_one_stamp(graph, client, tmp_path):
    from geometry_msgs.msg import PoseStamped
    from sensor_msgs.msg import Image, JointState

    from vla_inference.inputs.robot_state import StateLayout
    from vla_inference.ros.qos import CHUNK, IMAGE_OUTPUT

    for topic in ("image", "image_wrist"):
        client.listen(Image, topic, IMAGE_OUTPUT)
    client.listen(PoseStamped, "current_pose", CHUNK)
    client.listen(JointState, "joint_states", CHUNK)
    process = sim(graph, tmp_path / "r", second_camera="robot0_eye_in_hand", state=True)
    wait_for_line(process, "results:")

    def common() -> dict:
        """Messages by topic of the newest stamp that all have."""
        by_stamp = {
            topic: {(m.header.stamp.sec, m.header.stamp.nanosec): m for m in messages}
            for topic, messages in client.heard.items()
        }
        stamps = set.intersection(*map(set, by_stamp.values()))
        return {t: found[max(stamps)] for t, found in by_stamp.items()} if stamps else {}

    client.spin(common)
    found = common()
    frames = [found[t].header.frame_id for t in ("image", "image_wrist", "current_pose")]
    assert frames == ["agentview_optical", "robot0_eye_in_hand_optical", "world"]
    assert found["image"].data != found["image_wrist"].data
    pose, joints = found["current_pose"].pose, found["joint_states"]
    layout = StateLayout(("position", "axis_angle", "joints"), ("finger_joint1", "finger_joint2"))
    where = [getattr(pose.position, n) for n in "xyz"]
    turned = [getattr(pose.orientation, n) for n in "xyzw"]
    state = layout.read((where, turned), dict(zip(joints.name, joints.position, strict=True)))
    assert len(state) == 8 and 0.9 < state[2] < 1.3  # m, over the table
    assert 2.8 < np.linalg.norm(state[3:6]) < 3.5  # rad: the hand points down
    assert 0 < state[6] < 0.05 and -0.05 < state[7] < 0


def test_past_images_come_with_those_of_now_and_not_from_the_episode_before(
    graph, client, tmp_path
):
    from sensor_msgs.msg import Image

    from vla_inference.ros.qos import IMAGE_OUTPUT
    from vla_inference.ros.stamps import stamp_ns

    for topic in ("image", "image_past1", "image_past2"):
        client.listen(Image, topic, IMAGE_OUTPUT)
    process = sim(graph, tmp_path / "r", history=2, history_interval=0.2)
    wait_for_line(process, "results:")
    client.spin(lambda: all(client.heard.values()))
    model(graph, "good")
    client.spin(lambda: process.poll() is not None, timeout=120)

    def images(topic: str) -> dict[int, bytes]:
        return {stamp_ns(m.header.stamp, topic): bytes(m.data) for m in client.heard[topic]}

    heard = [images(topic) for topic in client.heard]
    stamps = sorted(set.intersection(*map(set, heard)))  # of frames and of their copies
    frames = list(dict.fromkeys(tuple(topic[stamp] for topic in heard) for stamp in stamps))
    # Two frames an episode: the past of both is the first one.
    first, second, third, fourth = frames
    assert first == (first[0],) * 3 and third == (third[0],) * 3 and third != first
    assert second[1:] == first[1:] and fourth[1:] == third[1:]


@pytest.mark.slow
def test_by_hand_pause_step_reset_and_what_is_published(graph, client, tmp_path):
    from builtin_interfaces.msg import Time
    from sensor_msgs.msg import CameraInfo, Image
    from std_msgs.msg import String
    from std_srvs.srv import SetBool

    from vla_inference.ros.messages import chunk_to_msg
    from vla_inference.ros.qos import CHUNK, IMAGE_OUTPUT, LATCHED
    from vla_inference.types import ActionChunk, eef_delta_spec
    from vla_msgs.msg import EpisodeStatus, SimStatus
    from vla_msgs.srv import ResetEpisode, StepSim

    client.listen(Image, "image", IMAGE_OUTPUT)
    client.listen(CameraInfo, "camera_info", IMAGE_OUTPUT)
    client.listen(String, "instruction", LATCHED)
    client.listen(EpisodeStatus, "sim/episode", CHUNK)
    client.listen(SimStatus, "sim/status", LATCHED)
    process = sim(graph, tmp_path / "r", episodes=1)
    wait_for_line(process, "results:")

    def lift(steps, frame="base"):
        chunk = ActionChunk([[0, 0, 0.02, 0, 0, 0, 1.0]] * steps, eef_delta_spec(frame=frame))
        return StepSim.Request(chunk=chunk_to_msg(chunk, Time()))

    refused = client.call(StepSim, "sim/step", lift(1))
    assert not refused.success and "pause it first" in refused.message

    assert client.call(SetBool, "sim/pause", SetBool.Request(data=True)).message == "paused"
    client.spin(lambda: any(s.state == SimStatus.PAUSED for s in client.heard["sim/status"]))
    done = client.call(StepSim, "sim/step", lift(3))
    assert done.success and done.episode.step == 3 and done.episode.outcome == "running"

    for request, word in ((lift(1, "tool"), "'base' only"), (StepSim.Request(), "no steps")):
        refused = client.call(StepSim, "sim/step", request)
        assert not refused.success and word in refused.message and refused.episode.step == 3

    reset = ResetEpisode.Request(task="Stack_D2", seed=5, instruction="put  it there")
    done = client.call(ResetEpisode, "sim/reset", reset)
    assert done.success, done.message
    assert (done.episode.task, done.episode.seed, done.episode.step) == ("Stack_D2", 5, 0)
    assert done.episode.instruction == "put it there"
    for request, word in (
        (ResetEpisode.Request(task="Stack_D9"), "no task"),
        (ResetEpisode.Request(seed=-2), "seed -2"),
    ):
        refused = client.call(ResetEpisode, "sim/reset", request)
        assert not refused.success and word in refused.message

    client.spin(lambda: any(s.data == "put it there" for s in client.heard["instruction"]))
    image, info = client.heard["image"][-1], client.heard["camera_info"][-1]
    assert (image.encoding, image.width, image.height) == ("rgb8", 64, 64)
    assert image.header.frame_id == info.header.frame_id == "agentview_optical"
    assert info.k[0] == info.p[0] > 0 and (info.k[2], info.k[5]) == (32, 32)
    assert {e.outcome for e in client.heard["sim/episode"]} == {"running"}

    done = client.call(StepSim, "sim/step", lift(20))
    assert done.success and done.episode.done and done.episode.outcome == "timeout"
    assert ended(process)[0] == 0
    found = results(tmp_path / "r")
    assert [e["outcome"] for e in found["per_episode"]] == ["aborted", "timeout"]
    assert found["complete"] and found["episodes"] == 1


@pytest.mark.slow
def test_interrupting_while_it_loads_leaves_nothing_behind(graph, tmp_path):
    process = sim(graph, tmp_path / "r")
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1.5)
    process.send_signal(signal.SIGINT)
    status, _, err = ended(process)
    assert status in (130, -signal.SIGINT)
    if status == 130:
        assert "Traceback" not in err
    assert not (tmp_path / "r").exists()
