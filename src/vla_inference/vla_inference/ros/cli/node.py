"""`vla run`, `vla node`, `vla param` and `vla lifecycle`: start a node, ask and set up others."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Parameter as ParameterMsg
from rcl_interfaces.srv import GetParameters, ListParameters, SetParameters
from rclpy.parameter import Parameter

from vla_inference.cli.options import SETTINGS, command_group
from vla_inference.errors import VlaError
from vla_inference.ros.cli import interfaces
from vla_inference.ros.cli.session import PATIENCE, Session, session
from vla_inference.system.prefixes import prefixes
from vla_inference.system.workspace import or_build

run = command_group("Run a node, as `ros2 run PACKAGE EXECUTABLE [arguments]` does.")
node = command_group("Look into nodes, as `ros2 node` does: list, info.")
param = command_group("Read and set parameters, as `ros2 param` does: list, get, set, dump.")
lifecycle = command_group("Start and stop managed nodes, as `ros2 lifecycle` does: get, set.")

NodeName = Annotated[str, typer.Argument(metavar="NODE", help="Such as /command.")]
ParameterName = Annotated[str, typer.Argument(metavar="PARAMETER")]
TRANSITIONS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "cleanup": Transition.TRANSITION_CLEANUP,
}
AS_GIVEN = {**SETTINGS, "ignore_unknown_options": True, "allow_interspersed_args": False}
ANSWER = 30.0  # s that a node may take to answer; a transition may load a model


@run.command(context_settings=AS_GIVEN)
def run_executable(
    package: Annotated[str, typer.Argument(metavar="PACKAGE")],
    executable: Annotated[str, typer.Argument(metavar="EXECUTABLE")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="For the node: --ros-args -p name:=value -r a:=b.")
    ] = None,
) -> None:
    """Run a node of a package in this terminal."""
    path = find_executable(package, executable)
    sys.stdout.flush()
    os.execv(path, [str(path), *(arguments or [])])


def find_executable(package: str, name: str) -> Path:
    """PREFIX/lib/PACKAGE/NAME of the first prefix in AMENT_PREFIX_PATH that has the package."""
    folders = [prefix / "lib" / package for prefix in prefixes()]
    here = [f for f in folders if f.is_dir()]
    if not here:
        known = {p.name for f in folders if f.parent.is_dir() for p in f.parent.iterdir()}
        raise VlaError(
            f"there is no package {package!r} with nodes",
            interfaces.nearest(package, (n for n in known if n.startswith("vla_")))
            + "; source its workspace",
        )
    names = {p.name: p for p in here[0].iterdir() if os.access(p, os.X_OK) and p.is_file()}
    if name not in names:
        remedy = or_build(interfaces.nearest(name, names))
        raise VlaError(f"{package} has no node {name!r}", remedy)
    return names[name]


@node.command("list")
def list_nodes() -> None:
    """The nodes of this graph."""
    with session() as graph:
        for name in graph.settled(lambda: node_names(graph)):
            print(name)


def node_names(graph: Session) -> list[str]:
    """Whole names, sorted; hidden ones left out."""
    found = graph.node.get_node_names_and_namespaces()
    return sorted(f"{space.rstrip('/')}/{n}" for n, space in found if not n.startswith("_"))


@node.command()
def info(name: NodeName) -> None:
    """What a node publishes, subscribes to and offers."""
    with session() as graph:
        name = _present(graph, name)
        space, _, base = name.rpartition("/")
        ask = base, space or "/"
        found = graph.settled(
            lambda: (
                graph.node.get_subscriber_names_and_types_by_node(*ask),
                graph.node.get_publisher_names_and_types_by_node(*ask),
                graph.node.get_service_names_and_types_by_node(*ask),
            )
        )
    print(name)
    for word, ends in zip(("Subscribers", "Publishers", "Service Servers"), found, strict=True):
        print(f"  {word}:")
        for topic, types in sorted(ends):
            print(f"    {topic}: {', '.join(types)}")


def _present(graph: Session, name: str) -> str:
    name = graph.absolute(name)
    if not graph.until(lambda: name in node_names(graph), PATIENCE):
        raise VlaError(f"there is no node {name}", interfaces.nearest(name, node_names(graph)))
    return name


@param.command("list")
def list_parameters(name: NodeName) -> None:
    """A node's parameters."""
    with session() as graph:
        for one in _list(graph, _present(graph, name)):
            print(one)


def _list(graph: Session, name: str) -> list[str]:
    answer = graph.call(
        ListParameters, f"{name}/list_parameters", ListParameters.Request(), ANSWER
    )
    return sorted(answer.result.names)


@param.command()
def get(name: NodeName, parameter: ParameterName) -> None:
    """A parameter's value."""
    with session() as graph:
        name = _present(graph, name)
        print(interfaces.show(_plain(_get(graph, name, [parameter])[0].value)))


@param.command()
def dump(name: NodeName) -> None:
    """All parameters of a node, as a file for `--params-file`."""
    with session() as graph:
        name = _present(graph, name)
        found = _get(graph, name, _list(graph, name))
    values = {p.name: _plain(p.value) for p in found}
    print(interfaces.show({name: {"ros__parameters": values}}))


@param.command("set", context_settings=AS_GIVEN)
def set_parameter(
    name: NodeName,
    parameter: ParameterName,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="YAML.")],
) -> int:
    """Set a parameter."""
    given = interfaces.read_yaml(value, "value")
    with session() as graph:
        name = _present(graph, name)
        (present,) = _get(graph, name, [parameter])
        if present.type_ is Parameter.Type.DOUBLE and type(given) is int:
            given = float(given)
        if present.type_ is Parameter.Type.STRING:
            given = value
        if present.type_ is Parameter.Type.DOUBLE_ARRAY and isinstance(given, list):
            given = [float(v) if type(v) is int else v for v in given]
        try:
            message = Parameter(parameter, value=given).to_parameter_msg()
        except (TypeError, ValueError) as error:
            raise VlaError(
                f"{value!r} is no value of a parameter ({error})", "correct it"
            ) from None
        request = SetParameters.Request(parameters=[message])
        (result,) = graph.call(SetParameters, f"{name}/set_parameters", request, ANSWER).results
    if not result.successful:
        raise VlaError(f"{name} refused {parameter}", result.reason or "it gave no reason")
    print("set parameter successful")
    return 0


def _get(graph: Session, name: str, names: list[str]) -> list[Parameter]:
    request = GetParameters.Request(names=names)
    answer = graph.call(GetParameters, f"{name}/get_parameters", request, ANSWER)
    if len(answer.values) != len(names):  # an undeclared one empties the answer
        known = _list(graph, name)
        missing = next(n for n in names if n not in known)
        raise VlaError(f"{name} has no parameter {missing!r}", interfaces.nearest(missing, known))
    return [
        Parameter.from_parameter_msg(ParameterMsg(name=n, value=v))
        for n, v in zip(names, answer.values, strict=True)
    ]


def _plain(value: Any) -> Any:
    return interfaces.plain(value, None)


@lifecycle.command("get")
def get_state(name: NodeName) -> None:
    """A managed node's state."""
    with session() as graph:
        name = _present(graph, name)
        answer = graph.call(GetState, f"{name}/get_state", GetState.Request(), ANSWER)
    print(f"{answer.current_state.label} [{answer.current_state.id}]")


@lifecycle.command("set")
def set_state(
    name: NodeName,
    transition: Annotated[str, typer.Argument(help=", ".join(TRANSITIONS) + ", shutdown.")],
) -> int:
    """Bring a managed node into another state."""
    with session() as graph:
        name = _present(graph, name)
        if transition == "shutdown":  # its number depends on the state
            asked = graph.call(GetState, f"{name}/get_state", GetState.Request(), ANSWER)
            label = asked.current_state.label
            number = getattr(Transition, f"TRANSITION_{label.upper()}_SHUTDOWN", 0)
        elif transition in TRANSITIONS:
            number = TRANSITIONS[transition]
        else:
            known = [*TRANSITIONS, "shutdown"]
            raise VlaError(f"there is no transition {transition!r}", interfaces.nearest("", known))
        request = ChangeState.Request(transition=Transition(id=number))
        done = graph.call(ChangeState, f"{name}/change_state", request).success
    print("transitioning successful" if done else "transitioning failed; the node's log says why")
    return 0 if done else 1
