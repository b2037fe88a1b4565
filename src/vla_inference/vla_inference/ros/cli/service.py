"""`vla service` and `vla action`: call services, send goals."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient, get_action_names_and_types

from vla_inference.cli.options import command_group
from vla_inference.errors import VlaError
from vla_inference.ros.cli import interfaces
from vla_inference.ros.cli.session import PATIENCE, Session, session

service = command_group("Look into services, as `ros2 service` does: list, type, call.")
action = command_group("Look into actions, as `ros2 action` does: list, send_goal.")

ServiceName = Annotated[str, typer.Argument(metavar="SERVICE", help="Such as /command/enable.")]
ShowTypes = Annotated[bool, typer.Option("--show-types", "-t", help="And types.")]
# Every node has these; nobody looks for them.
OF_EVERY_NODE = ("rcl_interfaces/srv/", "type_description_interfaces/srv/")
OUTCOMES = {
    GoalStatus.STATUS_SUCCEEDED: "SUCCEEDED",
    GoalStatus.STATUS_CANCELED: "CANCELED",
    GoalStatus.STATUS_ABORTED: "ABORTED",
}


@service.command("list")
def list_services(
    show_types: ShowTypes = False,
    all_services: Annotated[
        bool, typer.Option("--all", "-a", help="Those of parameters as well.")
    ] = False,
) -> None:
    """The services of this graph."""
    with session() as graph:
        found = graph.settled(graph.services)
    for name, types in sorted(found.items()):
        if all_services or not all(t.startswith(OF_EVERY_NODE) for t in types):
            print(f"{name} [{', '.join(types)}]" if show_types else name)


@service.command("type")
def service_type(name: ServiceName) -> None:
    """A service's type."""
    with session() as graph:
        print(graph.type_of("service", graph.absolute(name), graph.services))


@service.command()
def call(
    name: ServiceName,
    kind: Annotated[str, typer.Argument(metavar="TYPE", help="Such as std_srvs/srv/SetBool.")],
    values: Annotated[str, typer.Argument(help="The request's fields as YAML.")] = "{}",
) -> None:
    """Call a service and show its response."""
    given = interfaces.read_yaml(values, "request")
    make = interfaces.interface(kind, "srv")
    with session() as graph:
        request = interfaces.filled(make.Request, given, graph.now)
        name = graph.absolute(name)
        offered = graph.until(lambda: graph.services().get(name), PATIENCE) or []
        if offered and interfaces.type_name_of(make) not in offered:
            raise VlaError(f"{name} is a {', '.join(offered)}, not {kind}", "correct the type")
        response = graph.call(make, name, request)
    print(interfaces.show(interfaces.plain(response, None)))


@action.command("list")
def list_actions(show_types: ShowTypes = False) -> None:
    """The actions of this graph."""
    with session() as graph:
        found = graph.settled(lambda: _actions(graph))
    for name, types in sorted(found.items()):
        print(f"{name} [{', '.join(types)}]" if show_types else name)


def _actions(graph: Session) -> dict[str, list[str]]:
    return dict(get_action_names_and_types(graph.node))


@action.command("send_goal")
def send_goal(
    name: Annotated[str, typer.Argument(metavar="ACTION", help="Such as /training/run.")],
    kind: Annotated[str, typer.Argument(metavar="TYPE", help="Such as vla_msgs/action/RunJob.")],
    values: Annotated[str, typer.Argument(help="The goal's fields as YAML.")] = "{}",
    feedback: Annotated[bool, typer.Option("--feedback", "-f", help="Show the feedback.")] = False,
) -> int:
    """Send a goal and wait for its result; Ctrl-C cancels the goal."""
    given = interfaces.read_yaml(values, "goal")
    make = interfaces.interface(kind, "action")
    with session() as graph:
        goal = interfaces.filled(make.Goal, given, graph.now)
        name = graph.absolute(name)
        client: Any = ActionClient(graph.node, make, name)
        try:
            if not graph.until(client.server_is_ready, PATIENCE):
                others = _actions(graph).keys() - {name}
                raise VlaError(
                    f"nobody offers the action {name}", interfaces.nearest(name, others)
                )
            heard = _show_feedback if feedback else None
            return _pursue(graph, client.send_goal_async(goal, feedback_callback=heard))
        finally:
            client.destroy()


def _show_feedback(message: Any) -> None:
    print(f"feedback:\n{interfaces.show(interfaces.plain(message.feedback))}", flush=True)


def _pursue(graph: Session, sent: Any) -> int:
    graph.until(sent.done)
    handle = sent.result()
    if not handle.accepted:
        print("the goal was rejected")
        return 1
    print("the goal was accepted", flush=True)
    result = handle.get_result_async()
    try:
        graph.until(result.done)
    except KeyboardInterrupt:
        print("cancelling the goal", flush=True)
        handle.cancel_goal_async()
        graph.until(result.done, PATIENCE)
        if not result.done():
            raise
    answer = result.result()
    print(f"result:\n{interfaces.show(interfaces.plain(answer.result, None))}")
    print(f"goal {OUTCOMES.get(answer.status, str(answer.status))}")
    return 0 if answer.status == GoalStatus.STATUS_SUCCEEDED else 1
