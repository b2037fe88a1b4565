"""The services that the studio may call, and nothing else."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.client import Client
from rclpy.node import Node
from std_msgs.msg import Empty, String
from std_srvs.srv import SetBool

from vla_inference.errors import VlaError
from vla_inference.ros.qos import CHUNK, COMMAND
from vla_inference.ros.teleop.human import HumanAction
from vla_inference.teleop.wish import Wish
from vla_msgs.msg import CommandSource
from vla_msgs.srv import (
    CancelJob,
    GetJobLog,
    ListJobs,
    LoadModel,
    ResetEpisode,
    SetInstruction,
    StartJob,
    StepSim,
)
from vla_studio.web.plain import plain


@dataclass(frozen=True)
class Allowed:
    """seconds: until the answer counts as lost."""

    kind: Any
    service: str
    seconds: float = 5.0


ALLOWED = {
    "instruct": Allowed(SetInstruction, "inference/set_instruction"),
    "load_model": Allowed(LoadModel, "inference/load_model", 300.0),
    "enable": Allowed(SetBool, "command/enable"),
    "take_over": Allowed(SetBool, "command/take_over"),
    "reset": Allowed(ResetEpisode, "sim/reset", 30.0),
    "pause": Allowed(SetBool, "sim/pause"),
    "step": Allowed(StepSim, "sim/step", 30.0),
    "record": Allowed(SetBool, "recorder/record"),
    "jobs": Allowed(ListJobs, "training/list"),
    "job_log": Allowed(GetJobLog, "training/log"),
    "start_job": Allowed(StartJob, "training/start"),
    "cancel_job": Allowed(CancelJob, "training/cancel"),
}
AUDIO_TEXT = "instruction/audio_text"  # what was said, as it was understood
PARAMETERS = Allowed(GetParameters, "command/get_parameters")
SET_PARAMETERS = Allowed(SetParameters, "command/set_parameters")  # of `speed` alone


class RosGraph:
    """`vla_studio.web.graph.Graph`; its coroutines run in the server's thread."""

    def __init__(self, node: Node):
        self._node = node
        self._clients: dict[str, Client] = {
            allowed.service: node.create_client(allowed.kind, allowed.service)
            for allowed in (*ALLOWED.values(), PARAMETERS, SET_PARAMETERS)
        }
        self._said = node.create_publisher(String, AUDIO_TEXT, CHUNK)
        self._heartbeat = node.create_publisher(Empty, "heartbeat", COMMAND)
        self.chunk: Any = None  # the newest one, which a step of the simulation executes
        self.human: HumanAction | None = None  # while the node is active

    def available(self) -> dict[str, bool]:
        return {
            name: self._clients[allowed.service].service_is_ready()
            for name, allowed in ALLOWED.items()
        }

    def heartbeat(self) -> None:
        self._heartbeat.publish(Empty())

    def said(self, text: str) -> None:
        self._said.publish(String(data=text))

    def drive(self, wish: Wish) -> None:
        human = self.human  # who has not taken over by a page leaves it to another device
        if human is not None and human.opened and human.source == CommandSource.HUMAN:
            human.send(wish)

    def halt(self) -> None:
        if self.human is not None:
            self.human.halt()

    async def call(self, name: str, **fields: Any) -> dict[str, Any]:
        if name == "step":
            if self.chunk is None:
                raise VlaError("the model has not answered yet", "wait for its first chunk")
            fields["chunk"] = self.chunk
        if name == "take_over":
            return await self._take_over(fields["data"])
        return await self._call(name, fields)

    async def _take_over(self, human: bool) -> dict[str, Any]:
        """Shows itself as the person's publisher first; no more where that is refused."""
        if self.human is not None and human:
            self.human.open()
        try:
            return await self._call("take_over", {"data": human})
        except VlaError:
            if self.human is not None and self.human.source != CommandSource.HUMAN:
                self.human.leave()
            raise

    async def _call(self, name: str, fields: dict[str, Any]) -> dict[str, Any]:
        allowed = ALLOWED[name]
        answer = plain(await self._ask(allowed, allowed.kind.Request(**fields)))
        if not answer.get("success", answer.get("accepted", True)):
            raise VlaError(answer["message"] or f"{allowed.service} refused")
        return answer

    async def heartbeat_timeout(self) -> float:
        return (await self._command_parameters("heartbeat_timeout"))[0] or 0.0

    async def speed(self) -> dict[str, float | None]:
        speed, scale = await self._command_parameters("speed", "scale")
        return {"speed": speed, "scale": scale}

    async def set_speed(self, speed: float) -> None:
        value = ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=speed)
        request = SetParameters.Request(parameters=[Parameter(name="speed", value=value)])
        (result,) = (await self._ask(SET_PARAMETERS, request)).results
        if not result.successful:
            raise VlaError(result.reason or "the command node refuses another speed")

    async def _command_parameters(self, *names: str) -> list[float | None]:
        """Of the command node; None: it has no such parameter."""
        values = (await self._ask(PARAMETERS, GetParameters.Request(names=list(names)))).values
        found = [
            v.double_value if v.type == ParameterType.PARAMETER_DOUBLE else None for v in values
        ]
        return found if len(found) == len(names) else [None] * len(names)

    async def _ask(self, allowed: Allowed, request: Any) -> Any:
        client, loop = self._clients[allowed.service], asyncio.get_running_loop()
        name = self._node.resolve_service_name(allowed.service)
        if not client.service_is_ready():
            raise VlaError(f"there is no service {name}", "is its node running?")
        answered: asyncio.Future[Any] = loop.create_future()

        def give(response: Any) -> None:
            if not answered.done():
                answered.set_result(response)

        future = client.call_async(request)
        future.add_done_callback(lambda f: loop.call_soon_threadsafe(give, f.result()))
        try:
            return await asyncio.wait_for(answered, allowed.seconds)
        except asyncio.TimeoutError:
            client.remove_pending_request(future)
            raise VlaError(
                f"{name} did not answer within {allowed.seconds:g} s", "look at its node's log"
            ) from None
