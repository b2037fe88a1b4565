#!/usr/bin/env python3
"""Fills docs/explanation/speed.md with measured tables (bench/results/) and projections.

    python tools/roofline.py            # writes the page's tables
    python tools/roofline.py --check    # exit status 1 where they are not what the files give

A floor is the arithmetic of vision and prefill at the data sheet's rate plus the bytes of six
passes over the weights at its bandwidth. A projection is the floor times the distance from it that
was measured on another chip: that of the 16-bit path (what streaming weights costs), and that of
the same path, whose fixed costs per kernel count for more on a faster chip.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from pages import fill_tables

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "explanation" / "speed.md"
RESULTS = ROOT / "bench" / "results"
MEASURED = ("speed_h200.json", "oft_h200.json", "oft_paced_h200.json")
# openvla-7b: weights of the Llama's layers; of vision encoders and projector as far as they are
# run.
LLAMA = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
VISION = 22 * 12 * 1024**2 + 25 * (4 * 1152**2 + 2 * 1152 * 4304)
VISION += 2176 * 8704 + 8704 * 4096 + 4096**2
POSITIONS, PATCHES, PASSES = 280, 256, 6
# Bits of a weight with its group's scale and zero; the measured path that tells the distance to
# the floor; and the tutorial's milliseconds on AGX Orin.
FORMATS = {
    "fp16": (16.0, "torch", 840),
    "int8": (8.0, "torch:int8", 471),
    "int4-g128": (4.25, "torch:int4", 336),
}


@dataclass(frozen=True)
class Board:
    """A data sheet: bytes/s of memory, dense FLOP/s of 16-bit and of 8-bit matrix products."""

    name: str
    bandwidth: float
    sixteen: float
    eight: float


BOARDS = (
    # Technical brief: 204.8 GB/s; GPU 170 TOPS INT8 sparse, half of it dense, FP16 half of that.
    Board("Jetson AGX Orin 64 GB", 204.8e9, 42.5e12, 85e12),
    # Data sheet: 273 GB/s; 2070 TFLOPS FP4 sparse, a quarter of it FP8 dense, FP16 half of that.
    Board("Jetson AGX Thor", 273e9, 259e12, 517e12),
)


def floor_ms(board: Board, bits: float) -> float:
    rate = board.sixteen if bits == 16 else board.eight
    seconds = 2 * VISION * PATCHES / board.sixteen + 2 * LLAMA * POSITIONS / rate
    return 1e3 * (seconds + PASSES * LLAMA * bits / 8 / board.bandwidth)


def projections() -> list[str]:
    measured = _read("speed_h200.json")["paths"]
    lines = ["| board | weights | floor | projected | tutorial |", "|---|---|---|---|---|"]
    for board in BOARDS:
        for name, (bits, path, tutorial) in FORMATS.items():
            floor, theirs = floor_ms(board, bits), tutorial if "Orin" in board.name else None
            near, far = (floor * measured[p]["of_floor"] for p in ("torch", path))
            told = f"{near:.0f} ms" if path == "torch" else f"{near:.0f} to {far:.0f} ms"
            lines.append(
                f"| {board.name} | {name} | {floor:.0f} ms | {told} | "
                f"{f'{theirs} ms' if theirs else ''} |"
            )
    return lines


def measurements() -> list[str]:
    lines = []
    for file in MEASURED:
        report = _read(file)
        rates = ", ".join(f"{k} {v.replace(' ', ' ')}" for k, v in report["ceilings"].items())
        pause = report["pause_s"]
        pace = f", {1e3 * pause:.0f} ms of rest between two steps" if pause else ""
        lines += [
            f"{report['size']}{pace} on {report['device']}, PyTorch {report['torch']}; measured "
            f"ceilings (copy in B/s, products in FLOP/s): {rates}.",
            "",
            "| path | median | p95 | vision, language | memory | times the first | of the floor |",
            "|---|---|---|---|---|---|---|",
        ]
        for path, row in report["paths"].items():
            stages = row["stages_ms"]
            parts = [stages.get("vision"), sum(stages.get(k, 0) for k in PARTS)]
            told = ", ".join(f"{v:.1f}" for v in parts) if stages else ""
            lines.append(
                f"| `{path}` | {row['median_ms']:.1f} ms | {row['p95_ms']:.1f} ms | {told} | "
                f"{row['peak_gpu_gb']:.1f} GB | {row['times_first']:.2f} | "
                f"{row['of_floor']:.2f} x {row['floor_ms']:.1f} ms |"
            )
        lines.append("")
    return lines[:-1]


PARTS = ("prefill", "decode", "language")


def tables() -> dict[str, list[str]]:
    return {"measured": measurements(), "projected": projections()}


def _read(name: str) -> dict:
    return json.loads((RESULTS / name).read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    new = fill_tables(page, tables())
    if args.check:
        print("as the figures say" if new == page else "docs/explanation/speed.md is out of date")
        return int(new != page)
    PAGE.write_text(new, encoding="utf-8")
    print("\n".join([*measurements(), "", *projections()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
