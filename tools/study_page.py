#!/usr/bin/env python3
"""Fills docs/explanation/study.md: tables and plot of the study in bench/results/study.json.

    python tools/study_page.py                # writes the tables, and docs/images/study.webp
    python tools/study_page.py --take STUDY   # the same of another folder of `vla study`
    python tools/study_page.py --check        # exit status 1 where the tables are out of date

--take keeps that study's figures in bench/results/study.json. What the page says of them is prose:
read it again after another study.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

from pages import fill_tables
from PIL import Image

from vla_inference.system.files import write_whole
from vla_sim_bridge.evaluation.report import write_json
from vla_training.study.report import compare, draw, gain_lines, rate_lines

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "explanation" / "study.md"
IMAGE = ROOT / "docs" / "images" / "study.webp"
FIGURES = ROOT / "bench" / "results" / "study.json"


def take(study: Path) -> None:
    """Figures of a finished study; of its data, the files' names alone."""
    found = json.loads((study / "results.json").read_text())
    if not found["complete"]:
        sys.exit(f"{study} is not finished: {found['finished']} of {found['cells']} cells")
    found["settings"]["data"] = [Path(p).name for p in found["settings"]["data"]]
    write_json(FIGURES, found)


def tables(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {"rates": rate_lines(rows), "gains": gain_lines(compare(rows))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--take", type=Path, help="a folder of `vla study`")
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    if args.take:
        take(args.take)
    rows = json.loads(FIGURES.read_text())["rows"]
    page = PAGE.read_text(encoding="utf-8")
    new = fill_tables(page, tables(rows))
    if args.check:
        print("as the figures say" if new == page else f"{PAGE.relative_to(ROOT)} is out of date")
        return int(new != page)
    PAGE.write_text(new, encoding="utf-8")
    buffer = io.BytesIO()
    Image.open(io.BytesIO(draw(rows))).save(buffer, "WEBP", lossless=True, method=6)
    write_whole(IMAGE, buffer.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main())
