#!/usr/bin/env python3
"""Writes docs/options.md and docs/parameters.md: what commands and nodes declare.

python tools/options_page.py            # writes the pages
python tools/options_page.py --check    # exit status 1 where one of them is out of date
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import typer

from vla_inference.cli.main import find_subcommands, summary
from vla_inference.cli.options import CommandOption, options_of
from vla_inference.options import Option
from vla_inference.ros.camera_node import CameraConfig
from vla_inference.ros.command.outputs.base import DRIVEN
from vla_inference.ros.command.outputs.registry import part_outputs
from vla_inference.ros.command.parameters import command_configs
from vla_inference.ros.command.parts import PART_CONFIGS, OutputConfig, PartsConfig
from vla_inference.ros.estimate.node import EstimateConfig
from vla_inference.ros.ik.chunk_node import ChunkIkConfig
from vla_inference.ros.ik.node import ik_configs
from vla_inference.ros.inference.parameters import InferenceConfig
from vla_inference.ros.lifecycle import StartConfig
from vla_inference.ros.parameters import defaults, fields_of
from vla_inference.teleop.settings import TeleopSettings
from vla_sim_bridge.ros.robot.robot_sim_node import RobotSimConfig
from vla_sim_bridge.ros.sim_settings import SimSettings
from vla_studio.settings import StudioSettings
from vla_training.ros.record_node import RecordConfig
from vla_training.ros.training_node import TrainingConfig
from vla_training.ros.validation_node import ValidationConfig

DOCS = Path(__file__).resolve().parent.parent / "docs"
HEAD = """# Options of the commands
Written by `tools/options_page.py` from the code. `-` and `_` in names are the same. An option
without a default may be left out, unless it says "required". Every command that is no group takes
`--config FILE` as well: [options from a file](how-to.md#repeat-a-run-by-a-file-of-its-options).
"""
PARAMETERS_HEAD = """# Parameters of the nodes
Written by `tools/options_page.py` from the code. They are read when a node is configured and
cannot be changed while it is; those marked "live" can be set at any time. Files with the same
values to start from: `config/`. `sim_node` is not a managed node: it reads its parameters once, at
start.
"""


def part_configs(kind: str) -> tuple[type, ...]:
    """The parameters below the name of a part of this kind."""
    outputs = part_outputs(kind).values()
    return (OutputConfig, PART_CONFIGS[kind], *(output.PART_CONFIG for output in outputs))


NODES = {
    "inference_node": (InferenceConfig,),
    "command_node": (*command_configs(), PartsConfig),
    **{f"command_node: each part, by its output: {kind}": part_configs(kind) for kind in DRIVEN},
    "ik_node": ik_configs(),
    "chunk_ik_node": (ChunkIkConfig,),
    "estimate_node": (EstimateConfig,),
    "camera_node": (CameraConfig,),
    "sim_node": (SimSettings,),
    "robot_sim_node": (RobotSimConfig,),
    "training_node": (TrainingConfig,),
    "record_node": (RecordConfig,),
    "validation_node": (ValidationConfig,),
    "studio_node": (StudioSettings,),
    "teleop_node": (TeleopSettings,),
}


def options_page() -> str:
    parts = [HEAD]
    for name, point in sorted(find_subcommands().items()):
        command = point.load()
        if isinstance(command, typer.Typer):  # a group
            parts.append("\n".join([f"## vla {name}", summary(point), ""]))
            continue
        options = options_of(command)
        rows = [
            f"| {_names(option)} | {default_cell(option)} | {_cell(help_cell(option))} |"
            for option in options
        ]
        table = ["| option | default | |", "|---|---|---|", *rows]
        parts.append("\n".join([f"## vla {name}", summary(point), "", *table, ""]))
    return "\n".join(parts)


def parameters_page() -> str:
    parts = [PARAMETERS_HEAD, _parameters("Every node but sim_node", StartConfig)]
    parts += [_parameters(name, *configs) for name, configs in NODES.items()]
    return "\n".join(parts)


def _parameters(title: str, *configs: type) -> str:
    values = defaults(*configs)
    rows = [
        f"| `{name}` | {_value(values[name])} | {_allowed(about)} | {_cell(about.help)} |"
        for name, (_, about) in fields_of(*configs).items()
    ]
    table = ["| parameter | default | allowed | |", "|---|---|---|---|", *rows]
    return "\n".join([f"## {title}", "", *table, ""])


def _value(value: Any) -> str:
    return f"`{json.dumps(value)}`"


def _allowed(about: Option) -> str:
    bounds = {"": about.low, "above ": about.above}
    said = [f"{word}{bound:g}" for word, bound in bounds.items() if bound is not None]
    said += [f"to {about.high:g}"] if about.high is not None else []
    return ", ".join(
        [" ".join(said) or ", ".join(about.choices), *(["live"] if about.live else [])]
    )


def _names(option: CommandOption) -> str:
    return ", ".join(f"`{name}`" for name in (*option.names, *option.off))


def help_cell(option: CommandOption) -> str:
    """Its help, with its values where the help does not say them."""
    if all(choice in option.help for choice in option.choices):
        return option.help
    return f"{option.help} One of {', '.join(option.choices)}."


def default_cell(option: CommandOption) -> str:
    if option.required:
        return "required"
    value = option.default
    if option.flag:
        return "on" if value is True else ""
    if value is None or value in ("", []):
        return ""
    return f"`{_cell(_plain(value))}`"


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> int:
    pages = {DOCS / "options.md": options_page(), DOCS / "parameters.md": parameters_page()}
    if "--check" not in sys.argv[1:]:
        for path, text in pages.items():
            path.write_text(text)
        return 0
    old = [p.name for p, text in pages.items() if not p.exists() or p.read_text() != text]
    print(
        f"{old}: run: python tools/options_page.py" if old else "options, parameters: up to date"
    )
    return 1 if old else 0


if __name__ == "__main__":
    sys.exit(main())
