"""Runs a launch file with ROS's own launch.

`python -m vla_inference.cli.launch_standin.ros_launch FILE [NAME:=VALUE]...`

`ros2 launch` ends with 0 whatever the nodes ended with; here the exit status is the stand-in's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from launch import Event, LaunchContext, LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription, RegisterEventHandler, Shutdown
from launch.event_handlers import OnProcessExit, OnShutdown
from launch.events.process import ProcessExited
from launch.launch_description_sources import AnyLaunchDescriptionSource

from vla_inference.cli.launch_standin.xml_lines import LaunchError
from vla_inference.errors import VlaError


class Ends:
    """How the processes ended before shutdown began.

    `status` is that of the process whose end shut everything down (on_exit="shutdown"), of the
    first that failed otherwise; 128 + n where signal n ended it.
    """

    def __init__(self) -> None:
        self.status = 0
        self._decided = False

    def handlers(self) -> list[RegisterEventHandler]:
        """The event handlers to put first in a launch description."""
        return [
            RegisterEventHandler(OnProcessExit(on_exit=self._process)),
            RegisterEventHandler(OnShutdown(on_shutdown=self._shutdown)),
        ]

    def _process(self, event: ProcessExited, context: LaunchContext) -> None:
        if self._decided:
            return
        status = 128 - event.returncode if event.returncode < 0 else event.returncode
        required = any(isinstance(e, Shutdown) for e in event.action.get_sub_entities())
        self._decided = required
        self.status = (status or self.status) if required else (self.status or status)

    def _shutdown(self, event: Event, context: LaunchContext) -> None:
        self._decided = True


def run(path: Path, given: dict[str, str]) -> int:
    """Runs a launch file to its end; returns the exit status. Each process gets SIGINT once."""
    source = AnyLaunchDescriptionSource(str(path))
    if path.name.endswith(".xml"):  # all that a Python file takes is known to itself alone
        refuse_undeclared(path, source, given)
    service = LaunchService(argv=[f"{k}:={v}" for k, v in given.items()], noninteractive=True)
    ends = Ends()
    include = IncludeLaunchDescription(source, launch_arguments=list(given.items()))
    service.include_launch_description(LaunchDescription([*ends.handlers(), include]))
    return service.run() or ends.status


def refuse_undeclared(
    path: Path, source: AnyLaunchDescriptionSource, given: Mapping[str, str]
) -> None:
    """Refuses undeclared arguments, which ROS's launch ignores.

    Raises LaunchError, as well where this release of launch is too old for the file.
    """
    try:
        description = source.get_launch_description(LaunchContext())
    except Exception as error:  # what launch raises for an attribute differs by release
        if "on_exit" not in str(error):
            raise
        raise LaunchError(
            f"this launch is older than `on_exit`, which {path.name} needs",
            "update ros-humble-launch to one of after May 2025, or add --stand-in",
        ) from None
    arguments = description.get_launch_arguments()
    declared = sorted({argument.name for argument in arguments})
    unknown = [name for name in given if name not in declared]
    if unknown:
        raise LaunchError(
            f"{path.name} has no argument {', '.join(map(repr, unknown))}",
            f"it has: {', '.join(declared) or 'none'}",
        )


def main(words: list[str]) -> int:
    path, *pairs = words
    given = {name: value for name, _, value in (pair.partition(":=") for pair in pairs)}
    try:
        return run(Path(path), given)
    except VlaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
