"""Parses a launch file into a plan; everything is resolved or refused before anything starts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vla_inference.cli.launch_standin.parameters import Value, parameter_value
from vla_inference.cli.launch_standin.substitutions import (
    Scope,
    close_of,
    expand,
    find_executable,
    parse_bool,
)
from vla_inference.cli.launch_standin.xml_lines import Element, LaunchError, parse

CONDITION = {"if", "unless"}
# What <node> and <executable> share.
COMMON = CONDITION | {
    "name",
    "output",
    "on_exit",
    "args",
    "respawn",
    "respawn_delay",
    "cwd",
    "sigterm_timeout",
    "sigkill_timeout",
}
TIMEOUT = 5.0  # s, launch's own until SIGTERM and from there to SIGKILL
NODE = COMMON | {"pkg", "exec", "namespace", "ros_args"}
ACTIONS = {
    "arg",
    "let",
    "node",
    "executable",
    "include",
    "group",
    "push_ros_namespace",
    "push-ros-namespace",
    "set_env",
    "unset_env",
    "log",
    "shutdown",
}


@dataclass
class Declared:
    """An argument of a launch file."""

    name: str
    default: str | None
    description: str = ""
    choices: tuple[str, ...] = ()


@dataclass
class Process:
    """One program to start.

    parameters: in order, paths of YAML files and dicts of single values; later ones win.
    remaps: the rest of the ROS arguments, after the parameters.
    """

    label: str
    command: list[str]
    environment: dict[str, str]
    is_node: bool = False
    ros_args: list[str] = field(default_factory=list)
    parameters: list[Path | dict[str, Value]] = field(default_factory=list)
    remaps: list[str] = field(default_factory=list)
    output: str = "log"
    on_exit_shutdown: bool = False
    respawn: bool = False
    respawn_delay: float = 0.0
    cwd: str | None = None
    sigterm_timeout: float = TIMEOUT
    sigkill_timeout: float = TIMEOUT


@dataclass
class Plan:
    """The result of reading a launch file: its arguments, messages and processes."""

    declared: dict[str, Declared] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    shutdown: str | None = None


class Reader:
    """Reads a launch file and the files it includes."""

    def __init__(self, given: Mapping[str, str], show_only: bool):
        self.given = dict(given)
        self.show_only = show_only
        self.plan = Plan()
        self.files: list[Path] = []
        self.timeouts: list[tuple[Process, Element, Scope]] = []

    def file(self, path: Path, scope: Scope) -> None:
        path = path.absolute()
        if path in self.files:
            raise LaunchError(f"launch file {path} includes itself", "break the circle")
        self.files.append(path)
        root = parse(path)
        root.check({"version"}, ACTIONS)
        self.body(root, scope)
        self.files.pop()

    def whole(self, path: Path) -> Plan:
        """The plan of the requested file."""
        scope = Scope(variables=dict(self.given))
        self.file(path, scope)
        # As in launch: what an attribute doesn't say is a variable's, looked up when it all ends.
        for process, element, own in self.timeouts:
            for name in ("sigterm_timeout", "sigkill_timeout"):
                usual = scope.variables.get(name, str(TIMEOUT))
                setattr(process, name, seconds(self.text(element, name, own, usual), element))
        return self.plan

    def body(self, parent: Element, scope: Scope) -> None:
        for element in parent.children:
            if self.plan.shutdown is not None:
                return
            if self.show_only and element.tag not in ("arg", "let", "group", "include"):
                continue
            if self.wanted(element, scope):
                getattr(self, "do_" + element.tag.replace("-", "_"))(element, scope)

    def wanted(self, element: Element, scope: Scope) -> bool:
        if set(element.attributes) >= CONDITION:
            raise element.fail(f"<{element.tag}> has both 'if' and 'unless'", "keep one")
        for name in CONDITION & set(element.attributes):
            text = expand(element.attributes[name], scope, element)
            return parse_bool(text, element, f"'{name}'") == (name == "if")
        return True

    def text(self, element: Element, name: str, scope: Scope, default: str = "") -> str:
        raw = element.attributes.get(name)
        return default if raw is None else expand(raw, scope, element)

    # -- actions without a process

    def do_arg(self, element: Element, scope: Scope) -> None:
        element.check(CONDITION | {"name", "default", "description"}, {"choice"})
        name = expand(element.need("name"), scope, element)
        choices = []
        for child in element.children:
            child.check({"value"})
            choices.append(expand(child.need("value"), scope, child))
        default = element.attributes.get("default")
        if default is not None:
            default = expand(default, scope, element)
        description = self.text(element, "description", scope)
        self.plan.declared.setdefault(name, Declared(name, default, description, tuple(choices)))
        if name not in scope.variables:
            if default is None:
                if self.show_only:
                    return
                raise element.fail(
                    f"argument '{name}' has no default and no value",
                    f"give {name}:=..." + (f" ({description})" if description else ""),
                )
            scope.variables[name] = default
        value = scope.variables[name]
        if choices and value not in choices:
            raise element.fail(
                f"argument '{name}' is {value!r}", f"it may be {', '.join(choices)}"
            )

    def do_let(self, element: Element, scope: Scope) -> None:
        element.check(CONDITION | {"name", "value"})
        name = expand(element.need("name"), scope, element)
        scope.variables[name] = expand(element.need("value"), scope, element)

    def do_include(self, element: Element, scope: Scope) -> None:
        element.check(CONDITION | {"file"}, {"arg"})
        path = Path(expand(element.need("file"), scope, element))
        if not path.name.endswith(".xml") and not path.name.endswith(".launch"):
            raise element.fail(
                f"included file {path.name} is not XML",
                "include *.launch.xml, or install ros2launch",
            )
        for child in element.children:
            child.check({"name", "value"})
            name = expand(child.need("name"), scope, child)
            # As in launch, they stay set for what follows unless a group encloses the include.
            scope.variables[name] = expand(child.need("value"), scope, child)
        if not path.is_file():
            raise element.fail(f"included file {path} does not exist", "correct its path")
        self.file(path, scope)

    def do_group(self, element: Element, scope: Scope) -> None:
        element.check(CONDITION | {"scoped"}, ACTIONS)
        scoped = parse_bool(self.text(element, "scoped", scope, "true"), element, "'scoped'")
        self.body(element, scope.copy() if scoped else scope)

    def do_push_ros_namespace(self, element: Element, scope: Scope) -> None:
        element.check(CONDITION | {"namespace"})
        pushed = expand(element.need("namespace"), scope, element)
        scope.namespace = join_namespace(scope.namespace, pushed)

    def do_set_env(self, element: Element, scope: Scope) -> None:
        element.check(CONDITION | {"name", "value"})
        name = expand(element.need("name"), scope, element)
        scope.environment[name] = expand(element.need("value"), scope, element)

    def do_unset_env(self, element: Element, scope: Scope) -> None:
        element.check(CONDITION | {"name"})
        scope.environment.pop(expand(element.need("name"), scope, element), None)

    def do_log(self, element: Element, scope: Scope) -> None:
        element.check(CONDITION | {"message"})
        self.plan.messages.append(expand(element.need("message"), scope, element))

    def do_shutdown(self, element: Element, scope: Scope) -> None:
        element.check(CONDITION | {"reason"})
        self.plan.shutdown = self.text(element, "reason", scope, "reason not given")

    # -- processes

    def do_node(self, element: Element, scope: Scope) -> None:
        element.check(NODE, {"param", "remap", "env"})
        package = expand(element.need("pkg"), scope, element)
        program = expand(element.need("exec"), scope, element)
        path = find_executable(package, program, scope, element)
        process = self.process(element, scope, [str(path)], program)
        process.is_node = True
        process.ros_args = arguments(element, "ros_args", scope)
        name = self.text(element, "name", scope)
        if name:
            process.ros_args += ["-r", f"__node:={name}"]
        namespace = join_namespace(scope.namespace, self.text(element, "namespace", scope))
        if namespace:
            process.ros_args += ["-r", f"__ns:={namespace}"]
        for child in element.children:
            if child.tag == "param":
                self.parameter(child, scope, process)
            elif child.tag == "remap":
                child.check({"from", "to"})
                old, new = (expand(child.need(n), scope, child) for n in ("from", "to"))
                process.remaps += ["-r", f"{old}:={new}"]

    def do_executable(self, element: Element, scope: Scope) -> None:
        element.check(COMMON | {"cmd", "shell"}, {"env"})
        if parse_bool(self.text(element, "shell", scope, "false"), element, "'shell'"):
            raise element.fail('shell="true" is not supported', "run the program itself")
        element.need("cmd")
        command = arguments(element, "cmd", scope)
        if not command:
            raise element.fail("'cmd' is empty", "name a program")
        self.process(element, scope, command, Path(command[0]).name)

    def process(self, element: Element, scope: Scope, command: list[str], program: str) -> Process:
        def flag(name: str) -> bool:
            return parse_bool(self.text(element, name, scope, "false"), element, f"'{name}'")

        output = self.text(element, "output", scope, "log")
        if output not in ("screen", "log", "both"):
            raise element.fail(f"output is {output!r}", "make it screen, log or both")
        on_exit = self.text(element, "on_exit", scope)
        if on_exit not in ("", "shutdown"):
            raise element.fail(f"on_exit is {on_exit!r}", "'shutdown' is all it can be")
        environment = dict(scope.environment)
        for child in element.children:
            if child.tag == "env":
                child.check({"name", "value"})
                name, value = (expand(child.need(n), scope, child) for n in ("name", "value"))
                environment[name] = value
        process = Process(
            label=f"{program}-{len(self.plan.processes) + 1}",
            command=command + arguments(element, "args", scope),
            environment=environment,
            output=output,
            on_exit_shutdown=bool(on_exit),
            respawn=flag("respawn"),
            respawn_delay=seconds(self.text(element, "respawn_delay", scope, "0"), element),
            cwd=self.text(element, "cwd", scope) or None,
        )
        self.plan.processes.append(process)
        self.timeouts.append((process, element, scope.copy()))
        return process

    def parameter(self, element: Element, scope: Scope, process: Process) -> None:
        if "from" in element.attributes:
            element.check({"from"})
            path = Path(expand(element.attributes["from"], scope, element))
            if not path.is_file():
                raise element.fail(f"parameter file {path} does not exist", "correct its path")
            process.parameters.append(path)
            return
        element.check({"name", "value", "type"})
        name = expand(element.need("name"), scope, element)
        text = expand(element.need("value"), scope, element)
        kind = element.attributes.get("type")
        try:
            value = parameter_value(text, kind)
        except ValueError as error:
            raise element.fail(f"parameter '{name}': {error}", "correct value or type") from None
        last = process.parameters[-1] if process.parameters else None
        if isinstance(last, dict):
            last[name] = value
        else:
            process.parameters.append({name: value})


def seconds(text: str, element: Element) -> float:
    """A time of `element` as a number."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 3600:
        raise element.fail(
            f"{text!r} is not a valid time in seconds", "give a number from 0 to 3600"
        )
    return value


def join_namespace(outer: str, inner: str) -> str:
    """`inner` below `outer`, unless it is absolute; "" is none."""
    if not inner:
        return outer
    if inner.startswith("/"):
        return inner
    return f"{outer.rstrip('/')}/{inner}"


def arguments(element: Element, name: str, scope: Scope) -> list[str]:
    """Words of a command line; what a substitution stands for is never split."""
    raw, inner = element.attributes.get(name, ""), []
    text, at = "", 0
    for match in re.finditer(r"\$\(", raw):
        if match.start() < at:
            continue
        end = close_of(raw, match.end())
        if end < 0:
            raise element.fail(f"'$(' without its ')' in {raw!r}", "close it")
        inner.append(raw[match.start() : end + 1])
        text += raw[at : match.start()] + f"\0{len(inner) - 1}\0"
        at = end + 1
    try:
        words = shlex.split(text + raw[at:])
    except ValueError as error:
        raise element.fail(f"{name}: {error} in {raw!r}", "close the quotes") from None
    return [
        re.sub("\0(\\d+)\0", lambda m: expand(inner[int(m[1])], scope, element), w) for w in words
    ]


def read_launch_file(
    path: Path | str, given: Mapping[str, str] | None = None, show_only: bool = False
) -> Plan:
    """The plan of a launch file with these arguments; LaunchError names what is wrong and where.

    show_only: collect the declared arguments only; none need be given.
    """
    reader = Reader(given or {}, show_only)
    plan = reader.whole(Path(path))
    declared = plan.declared
    unknown = [n for n in reader.given if n not in declared]
    if unknown and plan.shutdown is None:
        known = ", ".join(sorted(declared)) or "none"
        raise LaunchError(
            f"{Path(path).name} has no argument {', '.join(map(repr, unknown))}",
            f"it has: {known}",
        )
    return plan
