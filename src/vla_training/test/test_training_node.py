"""Tests of the training node in a real ROS graph: jobs by services and by the action."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from action_msgs.msg import GoalStatus
from graphs import NodeGraph, domain, environment
from rclpy.action import ActionClient

from vla_inference.cli.main import find_subcommands
from vla_inference.ros import qos
from vla_msgs.action import RunJob
from vla_msgs.msg import JobStatus
from vla_msgs.srv import CancelJob, GetJobLog, ListJobs, StartJob
from vla_training.jobs import KINDS, Kind
from vla_training.jobs.runner import CONFINED
from vla_training.ros.training_node import TrainingNode

FAKE = """
import sys, time
from vla_inference.system import progress
options = dict(o.removeprefix("--").split("=", 1) for o in sys.argv[2:])
steps = int(options.get("steps", 3))
for step in range(steps):
    progress.report(step + 1, steps, "working")
    time.sleep(0.1)
print("out of", "steps")
sys.exit(int(options.get("status", 0)))
"""
KIND = Kind("fake", frozenset(["output"]), frozenset(["steps", "status"]))
LONG = ["--steps", "600"]
PATIENCE = NodeGraph.patience


class Graph(NodeGraph):
    """A training node and a client."""

    def __init__(self, root, activate=True, **kwargs):
        super().__init__(TrainingNode, {"root": str(root), "cancel_grace": 1.0}, **kwargs)
        self.states: list[JobStatus] = []
        self.client.create_subscription(
            JobStatus, "training/status", self.states.append, qos.LATCHED
        )
        self.action = ActionClient(self.client, RunJob, "training/run")
        self.clients = {}
        if activate:
            assert self.start_node(), self.node.failure

    def close(self) -> None:
        self.action.destroy()
        super().close()

    def said(self) -> list[JobStatus]:
        return self.states[-3:]

    def wait(self, future, what=""):
        self.until(future.done, what)
        return future.result()

    def ask(self, service, name, **fields):
        if name not in self.clients:
            self.clients[name] = self.client.create_client(service, f"training/{name}")
            assert self.clients[name].wait_for_service(PATIENCE)
        return self.wait(self.clients[name].call_async(service.Request(**fields)), name)

    def start(self, *arguments, kind="fake"):
        return self.ask(StartJob, "start", kind=kind, arguments=list(arguments))

    def last(self, job_id) -> JobStatus:
        found = [s for s in self.states if s.job_id == job_id]
        return found[-1] if found else JobStatus()

    def ended(self, job_id) -> JobStatus:
        over = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)
        self.until(lambda: self.last(job_id).state in over, f"the end of {job_id}")
        return self.last(job_id)

    def goal(self, *arguments, feedback=None):
        assert self.action.wait_for_server(PATIENCE)
        goal = RunJob.Goal(kind="fake", arguments=list(arguments))
        handle = self.wait(self.action.send_goal_async(goal, feedback_callback=feedback), "goal")
        assert handle.accepted
        return handle


@pytest.fixture
def fake(tmp_path):
    (tmp_path / "fake.py").write_text(FAKE)
    (tmp_path / "root").mkdir()
    return {"kinds": {"fake": KIND}, "command": [sys.executable, str(tmp_path / "fake.py")]}


@pytest.fixture
def graph(tmp_path, fake):
    graph = Graph(tmp_path / "root", **fake)
    yield graph
    graph.close()


def test_a_job_by_service(graph):
    answer = graph.start("--steps", "12")
    assert answer.accepted and answer.job_id.startswith("fake-") and not answer.message
    last = graph.ended(answer.job_id)
    assert (last.state, last.step, last.total, last.fraction) == ("succeeded", 12, 12, 1.0)
    assert (last.message, last.exit_code, last.kind) == ("out of steps", 0, "fake")
    assert last.arguments == ["--steps", "12"] and last.ended.sec >= last.started.sec > 0
    running = [s for s in graph.states if s.state == JobStatus.RUNNING]
    assert len({s.step for s in running}) > 2 and any(s.rate > 0 for s in running)
    assert any(s.seconds_left > 0 for s in running)
    log = graph.ask(GetJobLog, "log", job_id=answer.job_id)
    assert log.success and log.text == "out of steps\n"
    [job] = graph.ask(ListJobs, "list").jobs
    assert job.job_id == answer.job_id


def test_refusals(graph):
    first = graph.start(*LONG)
    for arguments, kind, reason in (
        ([], "fake", f"{first.job_id} is running; wait for it or cancel it"),
        (["--output", "../x"], "fake", "leads out of the root folder"),
        (["--output", "/tmp/x"], "fake", "leads out of the root folder"),
        (["--other", "x"], "fake", "'--other' is not for jobs"),
        ([], "rollout", "no kind of job 'rollout'; use fake"),
    ):
        answer = graph.start(*arguments, kind=kind)
        assert not answer.accepted and not answer.job_id and reason in answer.message
    for kind, name in ((CancelJob, "cancel"), (GetJobLog, "log")):
        answer = graph.ask(kind, name, job_id="../../etc")
        assert not answer.success and "there is no job '../../etc'" in answer.message
    assert graph.ask(CancelJob, "cancel", job_id=first.job_id).success
    assert graph.ended(first.job_id).state == JobStatus.CANCELLED
    assert not graph.ask(CancelJob, "cancel", job_id=first.job_id).success
    failing = graph.start("--status", "2")
    last = graph.ended(failing.job_id)
    assert (last.state, last.exit_code) == (JobStatus.FAILED, 2)
    assert [j.job_id for j in graph.ask(ListJobs, "list", limit=1).jobs] == [failing.job_id]


def test_the_action(graph):
    heard = []
    handle = graph.goal("--steps", "10", feedback=lambda m: heard.append(m.feedback.job))
    answer = graph.wait(handle.get_result_async(), "the result")
    assert answer.status == GoalStatus.STATUS_SUCCEEDED and answer.result.success
    assert answer.result.job.state == JobStatus.SUCCEEDED and answer.result.job.step == 10
    graph.until(lambda: heard and heard[-1].state == JobStatus.SUCCEEDED, "feedback")
    assert len({j.step for j in heard}) > 2

    handle = graph.goal(*LONG)
    assert "is running" in graph.start().message
    second = graph.goal()
    answer = graph.wait(second.get_result_async(), "the refusal")
    assert answer.status == GoalStatus.STATUS_ABORTED and "is running" in answer.result.message
    result = handle.get_result_async()
    assert graph.wait(handle.cancel_goal_async(), "cancel").goals_canceling
    answer = graph.wait(result, "the end")
    assert answer.status == GoalStatus.STATUS_CANCELED
    assert answer.result.job.state == JobStatus.CANCELLED

    handle = graph.goal("--status", "3")
    answer = graph.wait(handle.get_result_async(), "the failure")
    assert answer.status == GoalStatus.STATUS_ABORTED and not answer.result.success
    assert answer.result.job.exit_code == 3


def test_lifecycle_and_restart(tmp_path, fake):
    graph = Graph(tmp_path / "root", activate=False, **fake)
    assert "the node is unconfigured; activate it" in graph.start().message
    graph.close()
    graph = Graph(tmp_path / "root", **fake)
    job_id = graph.start(*LONG).job_id
    graph.until(lambda: graph.last(job_id).step > 1)
    graph.close()  # ends what runs
    graph = Graph(tmp_path / "root", **fake)
    try:
        # The latched status and the list tell of what was before.
        assert graph.ended(job_id).state == JobStatus.CANCELLED
        [job] = graph.ask(ListJobs, "list").jobs
        assert (job.job_id, job.state) == (job_id, JobStatus.CANCELLED)
    finally:
        graph.close()


@pytest.mark.parametrize(("root", "reason"), [("", "set root"), ("/no/such", "does not exist")])
def test_a_root_that_will_not_do(root, reason):
    graph = Graph(root, activate=False)
    try:
        assert not graph.start_node()
        assert reason in graph.node.failure
    finally:
        graph.close()


@pytest.mark.skipif("generate" not in find_subcommands(), reason="the workspace is not built")
def test_a_real_generation(tmp_path):
    graph = Graph(tmp_path, kinds=KINDS, command=CONFINED)
    graph.patience = 200.0  # a whole command, at a low priority
    try:
        words = "--task Stack_D0 --episodes 1 --parallel 1 --camera-width 16 --camera-height 16"
        answer = graph.start(*words.split(), "--output", "made", kind="generate")
        assert answer.accepted, answer.message
        last = graph.ended(answer.job_id)
        assert last.state == JobStatus.SUCCEEDED, last.message
        assert (last.step, last.total) == (1, 1) and "1 episodes" in last.message
        assert (tmp_path / "made" / "demo.hdf5").is_file()
    finally:
        graph.close()


@pytest.mark.skipif("generate" not in find_subcommands(), reason="the workspace is not built")
def test_the_launch_file(tmp_path):
    words = [sys.executable, "-m", "vla_inference.cli.main", "launch", "vla_training"]
    words += ["training.launch.xml", f"root:={tmp_path}"]
    process = subprocess.Popen(
        words,
        env=environment(domain(50)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if f"jobs work in {os.path.realpath(tmp_path)}" in line:
                break
        else:
            pytest.fail("".join(said))
        process.send_signal(signal.SIGINT)
        said.append(process.communicate(timeout=PATIENCE)[0])
        assert process.returncode in (0, 130), "".join(said)
        assert "Traceback" not in "".join(said), "".join(said)
    finally:
        process.kill()
