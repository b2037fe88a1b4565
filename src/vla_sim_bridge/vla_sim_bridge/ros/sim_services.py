"""The services `~/pause`, `~/reset` and `~/step`."""

from __future__ import annotations

from rclpy.node import Node
from std_srvs.srv import SetBool

from vla_inference.errors import VlaError
from vla_inference.ros.messages import msg_to_chunk
from vla_msgs.srv import ResetEpisode, StepSim
from vla_sim_bridge.ros.executor import Drive


class SimServices:
    """Refusals are reported in the response; no request ends the run."""

    def __init__(self, node: Node, drive: Drive):
        self.drive, self.episodes = drive, drive.episodes
        node.create_service(ResetEpisode, "~/reset", self.reset)
        node.create_service(StepSim, "~/step", self.step)
        node.create_service(SetBool, "~/pause", self.pause)

    def pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self.drive.set_paused(request.data)
        response.success, response.message = True, "paused" if self.episodes.paused else "running"
        return response

    def reset(self, request: ResetEpisode.Request, response: ResetEpisode.Response):
        return self._answer(response, lambda: self._reset(request))

    def step(self, request: StepSim.Request, response: StepSim.Response):
        return self._answer(response, lambda: self._step(request))

    def _answer(self, response, work):
        try:
            if self.episodes.finished:
                raise VlaError("the run is over", "start the simulation again")
            work()
            response.success = True
        except VlaError as error:
            response.success, response.message = False, str(error)
        response.episode = self.episodes.topics.episode_message(self.episodes.evaluation)
        return response

    def _reset(self, request: ResetEpisode.Request) -> None:
        if request.seed < -1:
            raise VlaError(f"seed {request.seed}", "give 0 or more, or -1 for the run's next")
        seed = None if request.seed == -1 else request.seed
        self.drive.reset(request.task, seed, " ".join(request.instruction.split()))

    def _step(self, request: StepSim.Request) -> None:
        episodes = self.episodes
        if not episodes.paused:
            raise VlaError("the simulation is running", "pause it first (~/pause)")
        if episodes.evaluation.episode.done:
            raise VlaError("the episode is over", "begin another (~/reset) or go on (~/pause)")
        for action in episodes.sim.actions(msg_to_chunk(request.chunk)):
            if episodes.execute(action):
                break
        if episodes.evaluation.complete:
            episodes.finished = True
        else:
            self.drive.publish_frame()
