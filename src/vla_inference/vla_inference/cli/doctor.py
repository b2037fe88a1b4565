"""`vla doctor`: check whether this machine can run the nodes."""

from __future__ import annotations

from typing import Annotated

import typer

from vla_inference.cli.machine_checks import ERROR, examine
from vla_inference.cli.output import JsonOption, print_json


def doctor(
    model: Annotated[str, typer.Option(help="Checkpoint folder to check as well.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Check this machine and list each problem with its remedy."""
    found = examine(model)
    if as_json:
        print_json({"findings": found, "errors": sum(f.level == ERROR for f in found)})
    else:
        for finding in found:
            print(f"{finding.level:<8} {finding}")
    if any(f.level == ERROR for f in found):
        raise typer.Exit(1)
