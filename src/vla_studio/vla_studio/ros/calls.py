"""The services that the studio may call, and nothing else."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import GetParameters
from rclpy.client import Client
from rclpy.node import Node
from std_msgs.msg import Empty
from std_srvs.srv import SetBool

from vla_inference.errors import VlaError
from vla_inference.ros.qos import COMMAND
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
    "reset": Allowed(ResetEpisode, "sim/reset", 30.0),
    "pause": Allowed(SetBool, "sim/pause"),
    "step": Allowed(StepSim, "sim/step", 30.0),
    "record": Allowed(SetBool, "recorder/record"),
    "jobs": Allowed(ListJobs, "training/list"),
    "job_log": Allowed(GetJobLog, "training/log"),
    "start_job": Allowed(StartJob, "training/start"),
    "cancel_job": Allowed(CancelJob, "training/cancel"),
}
PARAMETERS = Allowed(GetParameters, "command/get_parameters")


class RosGraph:
    """`vla_studio.web.graph.Graph`; its coroutines run in the server's thread."""

    def __init__(self, node: Node):
        self._node = node
        self._clients: dict[str, Client] = {
            allowed.service: node.create_client(allowed.kind, allowed.service)
            for allowed in (*ALLOWED.values(), PARAMETERS)
        }
        self._heartbeat = node.create_publisher(Empty, "heartbeat", COMMAND)
        self.chunk: Any = None  # the newest one, which a step of the simulation executes

    def available(self) -> dict[str, bool]:
        return {
            name: self._clients[allowed.service].service_is_ready()
            for name, allowed in ALLOWED.items()
        }

    def heartbeat(self) -> None:
        self._heartbeat.publish(Empty())

    async def call(self, name: str, **fields: Any) -> dict[str, Any]:
        allowed = ALLOWED[name]
        if name == "step":
            if self.chunk is None:
                raise VlaError("the model has not answered yet", "wait for its first chunk")
            fields["chunk"] = self.chunk
        answer = plain(await self._ask(allowed, allowed.kind.Request(**fields)))
        if not answer.get("success", answer.get("accepted", True)):
            raise VlaError(answer["message"] or f"{allowed.service} refused")
        return answer

    async def heartbeat_timeout(self) -> float:
        request = GetParameters.Request(names=["heartbeat_timeout"])
        values = (await self._ask(PARAMETERS, request)).values
        known = values and values[0].type == ParameterType.PARAMETER_DOUBLE
        return values[0].double_value if known else 0.0

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
