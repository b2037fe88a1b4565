#!/usr/bin/env python3
"""Writes docs/options.md: every option of every command, as the code declares them.

python tools/options_page.py            # writes the page
python tools/options_page.py --check    # exit status 1 where the page is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from vla_inference.cli.main import find_subcommands, summary
from vla_inference.cli.options import CommandOption, options_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "options.md"
HEAD = """# Options of the commands
Written by `tools/options_page.py` from the code. `-` and `_` in names are the same. An option
without a default may be left out, unless it says "required".
"""


def page() -> str:
    parts = [HEAD]
    for name, point in sorted(find_subcommands().items()):
        options = options_of(point.load())
        rows = [
            f"| {_names(option)} | {_default(option)} | {_cell(option.help)} |"
            for option in options
        ]
        table = ["| option | default | |", "|---|---|---|", *rows]
        parts.append("\n".join([f"## vla {name}", summary(point), "", *table, ""]))
    return "\n".join(parts)


def _names(option: CommandOption) -> str:
    return ", ".join(f"`{name}`" for name in (*option.names, *option.off))


def _default(option: CommandOption) -> str:
    if option.required:
        return "required"
    value = option.default
    if value in (None, "", [], False) or (option.flag and value is True):
        return "on" if option.flag and value is True else ""
    return f"`{_cell(_plain(value))}`"


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> int:
    new = page()
    if "--check" in sys.argv[1:]:
        same = PAGE.exists() and PAGE.read_text() == new
        print("the options' page is up to date" if same else "run: python tools/options_page.py")
        return 0 if same else 1
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
