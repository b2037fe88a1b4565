"""`vla topic`: list topics, show and publish messages, measure a rate."""

from __future__ import annotations

import itertools
import time
from collections import deque
from typing import Annotated, Any

import typer
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from vla_inference.cli.options import command_group
from vla_inference.errors import VlaError
from vla_inference.ros.cli import interfaces
from vla_inference.ros.cli.session import PATIENCE, Session, session, tell

topic = command_group("Look into topics, as `ros2 topic` does: list, info, echo, hz, pub.")

TopicName = Annotated[str, typer.Argument(metavar="TOPIC", help="The topic, such as /action.")]
TypeName = Annotated[str, typer.Argument(metavar="TYPE", help="Such as std_msgs/msg/String.")]


@topic.command("list")
def list_topics(
    show_types: Annotated[bool, typer.Option("--show-types", "-t", help="And types.")] = False,
) -> None:
    """The topics of this graph."""
    with session() as graph:
        found = graph.settled(graph.topics)
    for name, types in sorted(found.items()):
        print(f"{name} [{', '.join(types)}]" if show_types else name)


@topic.command()
def info(name: TopicName) -> None:
    """A topic's type, and how many publish and subscribe with which QoS."""
    with session() as graph:
        name = graph.absolute(name)
        kind = graph.type_of("topic", name, graph.topics)
        publishers = graph.settled(lambda: _ends(graph.node.get_publishers_info_by_topic(name)))
        subscribers = _ends(graph.node.get_subscriptions_info_by_topic(name))
    print(f"Type: {kind}")
    for word, ends in (("Publisher", publishers), ("Subscription", subscribers)):
        print(f"{word} count: {len(ends)}")
        for node, reliability, durability in ends:
            print(f"  {node}: {reliability}, {durability}")


def _ends(found: list[Any]) -> list[tuple[str, str, str]]:
    return sorted(
        (
            f"{end.node_namespace.rstrip('/')}/{end.node_name}",
            end.qos_profile.reliability.name.lower(),
            end.qos_profile.durability.name.lower(),
        )
        for end in found
        if not end.node_name.startswith("_vla_cli")
    )


@topic.command()
def echo(
    name: TopicName,
    kind: Annotated[
        str | None, typer.Argument(metavar="TYPE", help="Default: as it is published.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="One message.")] = False,
    times: Annotated[int, typer.Option("--times", "-n", help="So many; 0: without end.")] = 0,
    field: Annotated[
        str | None, typer.Option(help="A field alone: pose.position.x, names[0].")
    ] = None,
    no_arr: Annotated[bool, typer.Option("--no-arr", help="Arrays by their length.")] = False,
    full_length: Annotated[
        bool, typer.Option("--full-length", "-f", help="Long arrays and texts whole.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(help="s to wait for a message [s]; 0: without end.")
    ] = 0.0,
) -> None:
    """Show messages as YAML."""
    times = 1 if once else times
    most = None if full_length else interfaces.MOST_SHOWN
    shown = 0

    def print_it(message: Any) -> None:
        nonlocal shown
        found = interfaces.field(message, field) if field else message
        print(interfaces.show(interfaces.plain(found, most, not no_arr)))
        print("---", flush=True)
        shown += 1

    with session() as graph:
        name = graph.absolute(name)
        kind = kind or graph.type_of("topic", name, graph.topics)
        heard: deque[Any] = deque(maxlen=1000)
        graph.node.create_subscription(
            interfaces.interface(kind, "msg"),
            name,
            lambda m: heard.append(m),
            as_published(graph, name),
        )
        while not times or shown < times:
            if not graph.until(lambda: heard, timeout or None):
                raise VlaError(f"no message came on {name} within {timeout:g} s", "look at `info`")
            print_it(heard.popleft())


def as_published(graph: Session, name: str) -> QoSProfile:
    """What every publisher of the topic can serve: the strictest of what all offer."""
    ends = graph.until(lambda: graph.node.get_publishers_info_by_topic(name), 1.0) or []
    reliable = all(e.qos_profile.reliability is ReliabilityPolicy.RELIABLE for e in ends)
    latched = ends and all(
        e.qos_profile.durability is DurabilityPolicy.TRANSIENT_LOCAL for e in ends
    )
    return QoSProfile(
        depth=10,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


@topic.command()
def hz(
    name: TopicName,
    window: Annotated[int, typer.Option("--window", "-w", help="Messages that count.")] = 10_000,
) -> None:
    """A topic's rate, once per second until Ctrl-C."""
    arrived: deque[float] = deque(maxlen=max(2, window))
    with session() as graph:
        name = graph.absolute(name)
        kind = interfaces.interface(graph.type_of("topic", name, graph.topics), "msg")
        graph.node.create_subscription(
            kind,
            name,
            lambda _: arrived.append(time.monotonic()),
            as_published(graph, name),
            raw=True,
        )
        while True:
            graph.wait(time.monotonic() + 1.0)
            print(rate_line(list(arrived)), flush=True)


def rate_line(times: list[float]) -> str:
    """times: arrival times, s, the first one first."""
    if len(times) < 2:
        return "no messages yet" if not times else "one message so far"
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((g - mean) ** 2 for g in gaps) / len(gaps)) ** 0.5
    return (
        f"average rate: {1 / mean:.3f}\n\tmin: {min(gaps):.3f}s max: {max(gaps):.3f}s "
        f"std dev: {spread:.5f}s window: {len(times)}"
    )


@topic.command()
def pub(
    name: TopicName,
    kind: TypeName,
    values: Annotated[str, typer.Argument(help="The message's fields as YAML.")] = "{}",
    once: Annotated[bool, typer.Option("--once", "-1", help="Publish one message.")] = False,
    times: Annotated[int, typer.Option("--times", "-t", help="So many; 0: without end.")] = 0,
    rate: Annotated[float, typer.Option("--rate", "-r", help="Messages per second [Hz].")] = 1.0,
    wait: Annotated[
        int | None,
        typer.Option(
            "--wait-matching-subscriptions",
            "-w",
            help="Subscribers to wait for; default: 1 with --once or --times.",
        ),
    ] = None,
) -> None:
    """Publish a message: a stamp may be `now`, a header `auto`."""
    if not rate > 0:
        raise VlaError(f"--rate is {rate:g}", "give a number above 0")
    times = 1 if once else times
    given = interfaces.read_yaml(values, "message")
    make = interfaces.interface(kind, "msg")
    with session() as graph:
        name = graph.absolute(name)
        interfaces.filled(make, given, graph.now)  # refused before anything is sent
        publisher = graph.node.create_publisher(make, name, 10)
        wanted = wait if wait is not None else min(times, 1)
        told = time.monotonic()
        while publisher.get_subscription_count() < wanted:
            graph.spin()
            if time.monotonic() - told > PATIENCE:
                tell(f"waiting for {wanted} to subscribe to {name}; Ctrl-C ends this")
                told = float("inf")
        sent, due = 0, time.monotonic()
        while not times or sent < times:
            message = interfaces.filled(make, given, graph.now)
            publisher.publish(message)
            sent += 1
            print(f"published {interfaces.type_name(message)} on {name}, {sent}", flush=True)
            due += 1 / rate
            if sent != times:
                graph.wait(due)
        graph.wait(time.monotonic() + 0.2)  # it is on its way
