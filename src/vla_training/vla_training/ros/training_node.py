"""The training node: runs commands as jobs on request and reports their state.

Two doors to one runner: services, which everything that speaks ROS can call, and an action.
All of it happens in the executor's thread; the work itself is in the jobs' processes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from builtin_interfaces.msg import Time
from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle

from vla_inference.errors import VlaError
from vla_inference.options import option
from vla_inference.ros import diagnostics, qos
from vla_inference.ros.lifecycle import ManagedNode, spin_node
from vla_msgs.action import RunJob
from vla_msgs.msg import JobStatus
from vla_msgs.srv import CancelJob, GetJobLog, ListJobs, StartJob
from vla_training.jobs import KINDS, Job, JobRunner, Kind
from vla_training.jobs.record import CANCELLED, SUCCEEDED
from vla_training.jobs.runner import CONFINED

PERIOD = 0.2  # seconds between looks at the jobs


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The node's parameters."""

    root: str = option("", "folder in which jobs work; their paths may not lead outside")
    jobs_per_kind: int = option(1, "maximum number of running jobs of a kind", low=1, high=64)
    cancel_grace: float = option(
        10.0,
        "when a job is cancelled: time from SIGINT (which lets a command save) to SIGTERM "
        "[s]; SIGKILL follows 5 s later",
        low=0,
        high=3600,
    )
    nice: int = option(
        10,
        "niceness of jobs, so that a control loop on the same machine has priority; 0: none",
        low=0,
        high=19,
    )
    keep_records: int = option(
        200, "number of finished jobs to keep, with their logs", low=1, high=10_000
    )
    keep_running: bool = option(
        False, "leave jobs running when the node exits; the next node takes them over"
    )


class TrainingNode(ManagedNode):
    """kinds, command: what may run and how, as in `JobRunner`."""

    TASK = "jobs"

    def __init__(
        self,
        name: str = "training",
        kinds: Mapping[str, Kind] = KINDS,
        command: Sequence[str] = CONFINED,
        **kwargs,
    ):
        super().__init__(name, TrainingConfig, **kwargs)
        self._kinds, self._command = kinds, command
        self._runner: JobRunner | None = None
        self._open = False
        self._keep = False
        self._goals: dict[str, ServerGoalHandle] = {}  # by job

        self._status = self.create_publisher(JobStatus, "~/status", qos.LATCHED)
        self.create_service(StartJob, "~/start", self._start)
        self.create_service(CancelJob, "~/cancel", self._cancel)
        self.create_service(ListJobs, "~/list", self._list)
        self.create_service(GetJobLog, "~/log", self._log)
        self._server = ActionServer(
            self,
            RunJob,
            "~/run",
            execute_callback=self._refuse_goal,  # each goal is given its own, see below
            handle_accepted_callback=self.guarded("~/run", self._begin_goal),
            cancel_callback=self._cancel_goal,
        )
        self.create_timer(PERIOD, self._poll)

    def destroy_node(self) -> None:
        self._server.destroy()
        super().destroy_node()

    # -- lifecycle ----------------------------------------------------------------------------

    def do_configure(self) -> None:
        config = self.read(TrainingConfig)
        self._keep = config.keep_running
        self._runner = JobRunner(
            config.root,
            self._kinds,
            self._command,
            per_kind=config.jobs_per_kind,
            cancel_grace=config.cancel_grace,
            nice=config.nice,
            keep=config.keep_records,
        )
        for warning in self._runner.warnings:
            self.get_logger().warning(warning)
        self.get_logger().info(f"jobs work in {self._runner.root}")
        jobs = self._runner.all()
        self._status.publish(self._message(jobs[0]) if jobs else JobStatus())

    def do_activate(self) -> None:
        self._open = True

    def do_deactivate(self) -> None:
        # Running jobs continue; new ones are refused.
        self._open = False

    def do_cleanup(self) -> None:
        self._open = False
        if self._runner is None:
            return
        running = self._runner.running()
        for job in self._runner.close(self._keep):
            self.get_logger().error(
                f"{job.job_id} has not ended although it was killed (process group {job.pid}); "
                "look "
                "at the disk it works on, the next node finds it"
            )
        for job in running:
            self._announce(job)
        for goal in self._goals.values():
            goal.execute(lambda g: self._refuse_goal(g, "the node let go of the job; it goes on"))
        self._goals.clear()
        self._runner = None

    def diagnose(self) -> diagnostics.Report:
        jobs = self._runner.running() if self._runner else []
        return diagnostics.OK, self.state, {j.job_id: f"{j.state} {j.fraction:.0%}" for j in jobs}

    # -- services -----------------------------------------------------------------------------

    def _start(self, request, response):
        try:
            response.job_id = self._start_job(request.kind, request.arguments).job_id
            response.accepted = True
        except VlaError as error:
            response.accepted, response.message = False, self._refused(request.kind, error)
        return response

    def _cancel(self, request, response):
        try:
            self._announce(self._jobs().cancel(request.job_id))
            response.success = True
        except VlaError as error:
            response.success, response.message = False, str(error)
        return response

    def _list(self, request, response):
        jobs = self._runner.all() if self._runner else []
        response.jobs = [self._message(j) for j in jobs[: request.limit or None]]
        return response

    def _log(self, request, response):
        try:
            response.text = self._jobs().log(request.job_id, request.lines)
            response.success = True
        except VlaError as error:
            response.success, response.message = False, str(error)
        return response

    def _jobs(self) -> JobRunner:
        if self._runner is None:
            raise VlaError("the node is not configured", "configure and activate it")
        return self._runner

    def _start_job(self, kind: str, arguments: Sequence[str]) -> Job:
        if not self._open:
            raise VlaError(f"the node is {self.state}", "activate it")
        job = self._jobs().start(kind, arguments)
        self.get_logger().info(f"{job.job_id} started; log {job.log_file}")
        self._announce(job)
        return job

    def _refused(self, kind: str, error: VlaError) -> str:
        text = " ".join(str(error).split())
        self.get_logger().warning(f"refused a job of kind {kind!r}: {text}")
        return text

    # -- action -------------------------------------------------------------------------------

    # A goal is executed, in rclpy's sense, only when its job is over: a callback that waited
    # would block the executor, and one that awaits makes it spin without rest.

    def _begin_goal(self, goal: ServerGoalHandle) -> None:
        try:
            job = self._start_job(goal.request.kind, goal.request.arguments)
        except VlaError as error:
            text = self._refused(goal.request.kind, error)
            goal.execute(lambda g: self._refuse_goal(g, text))
            return
        self._goals[job.job_id] = goal
        goal.publish_feedback(RunJob.Feedback(job=self._message(job)))

    @staticmethod
    def _refuse_goal(goal: ServerGoalHandle, text: str = "") -> RunJob.Result:
        goal.abort()
        return RunJob.Result(success=False, message=text)

    def _cancel_goal(self, goal: ServerGoalHandle) -> CancelResponse:
        for job_id, other in self._goals.items():
            if other.goal_id == goal.goal_id:
                try:
                    self._announce(self._jobs().cancel(job_id))
                    return CancelResponse.ACCEPT
                except VlaError:  # it was over just before
                    break
        return CancelResponse.REJECT

    def _end_goal(self, goal: ServerGoalHandle, job: Job) -> RunJob.Result:
        if job.state == SUCCEEDED:
            goal.succeed()
        elif job.state == CANCELLED and goal.is_cancel_requested:
            goal.canceled()
        else:
            goal.abort()
        success = job.state == SUCCEEDED
        return RunJob.Result(success=success, message=job.message, job=self._message(job))

    # -- status -------------------------------------------------------------------------------

    def _poll(self) -> None:
        for job in self._runner.poll() if self._runner else ():
            self._announce(job)

    def _announce(self, job: Job) -> None:
        message = self._message(job)
        self._status.publish(message)
        goal = self._goals.get(job.job_id)
        if goal is not None:
            goal.publish_feedback(RunJob.Feedback(job=message))
        if job.over:
            self.get_logger().info(f"{job.job_id} {job.state}: {job.message}")
            if goal is not None and self._goals.pop(job.job_id, None) is not None:
                goal.execute(lambda g: self._end_goal(g, job))

    def _message(self, job: Job) -> JobStatus:
        message = JobStatus(
            job_id=job.job_id,
            kind=job.kind,
            arguments=job.arguments,
            state=job.state,
            step=job.step,
            total=job.total,
            fraction=job.fraction,
            rate=job.rate,
            seconds_left=job.seconds_left,
            message=job.message,
            log_file=str(job.log_file),
            started=_time(job.started),
            ended=_time(job.ended),
        )
        message.header.stamp = self.get_clock().now().to_msg()
        if job.exit_code is not None:
            message.exit_code = job.exit_code
        elif job.over:
            message.exit_code = JobStatus.NOT_SEEN
        return message


def _time(seconds: float) -> Time:
    whole = int(seconds)
    return Time(sec=whole, nanosec=int(1e9 * (seconds - whole)))


def main(args: Sequence[str] | None = None) -> int:
    return spin_node(TrainingNode, args)


if __name__ == "__main__":
    sys.exit(main())
