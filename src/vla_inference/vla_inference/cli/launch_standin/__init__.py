"""A small stand-in for `ros2 launch`, for machines without it.

It runs the subset of XML launch files that this repository uses, means the same by it, and refuses
anything else by name, file and line. Where the real one is installed, it is used instead.
"""

from vla_inference.cli.launch_standin.description import Declared, Plan, Process, read_launch_file
from vla_inference.cli.launch_standin.runner import run

__all__ = ["Declared", "Plan", "Process", "read_launch_file", "run"]
