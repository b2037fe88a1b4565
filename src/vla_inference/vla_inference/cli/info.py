"""`vla info MODEL`: describe a checkpoint without loading its weights."""

from __future__ import annotations

from typing import Annotated

import typer

from vla_inference.cli.output import JsonOption, print_json
from vla_inference.policies.registry import describe_policy


def info(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or Hub id.", metavar="MODEL")],
    as_json: JsonOption = False,
) -> None:
    """Describe a checkpoint: parts, parameters, prompt, action spaces with their bounds."""
    found = describe_policy(model)
    if as_json:
        print_json(found.values)
    else:
        print(found)
