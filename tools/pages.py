"""Replaces marked tables in Markdown pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def fill_tables(page: str, tables: Mapping[str, Sequence[str]]) -> str:
    """The page with its tables between `<!-- name -->` and `<!-- /name -->` replaced."""
    for name, lines in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, rest = page.split(begin)
        page = before + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1]
    return page
