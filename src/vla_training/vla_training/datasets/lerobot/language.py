"""LeRobot's language columns: rows of an episode's metadata as columns of its table, and back.

All frames of an episode have the same list in `language_persistent`; a row of `language_events`
is at its frame, whose time is its own. JSON of tool calls is stored as text.
Source: huggingface/lerobot src/lerobot/datasets/language.py (format).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from vla_inference.episodes.language import COLUMNS, EVENTS, PERSISTENT, Row, rows_of
from vla_training.datasets.lerobot import layout as layout

FEATURE = {"dtype": "language", "shape": [1], "names": None}


def row_type(column: str) -> pa.DataType:
    """Of the lists in a column."""
    text = pa.string()
    times = [pa.field("timestamp", pa.float32(), nullable=False)] if column == PERSISTENT else []
    fields = [
        pa.field("role", text, nullable=False),
        pa.field("content", text),
        pa.field("style", text),
        *times,
        pa.field("camera", text),
        pa.field("tool_calls", pa.list_(text)),
    ]
    return pa.list_(pa.struct(fields))


def columns_of(
    metadata: Mapping[str, Any], carried: frozenset[str], times: np.ndarray
) -> dict[str, pa.Array]:
    """The columns that `carried` names, for frames at `times` [T] s from the episode's start.

    An event is put to the frame that is nearest in time.
    """
    found = {}
    for column in COLUMNS:
        if column not in carried:
            continue
        rows = rows_of(metadata, column, str(metadata.get("source", "an episode")))
        lists: list[list[Row]] = [[] for _ in times]
        for row in rows:
            stored = _stored(row)
            if column == EVENTS:
                lists[int(np.abs(times - stored.pop("timestamp")).argmin())].append(stored)
            else:
                lists[0].append(stored)
        if column == PERSISTENT:
            lists = lists[:1] * len(times)
        found[column] = pa.array(lists, row_type(column))
    return found


def _stored(row: Row) -> Row:
    camera, calls = row["camera"], row["tool_calls"]
    return row | {
        "camera": None if camera is None else layout.IMAGES + camera,
        "tool_calls": None if calls is None else [json.dumps(call) for call in calls],
    }


def metadata_of(columns: Mapping[str, pa.ChunkedArray], times: Sequence[float]) -> dict[str, Any]:
    """The rows in the columns of an episode whose frames are at `times` [T] s, as its metadata."""
    found: dict[str, Any] = {}
    for column in (c for c in COLUMNS if c in columns):
        lists = columns[column][:1] if column == PERSISTENT else columns[column]
        rows = [
            _read(row, time)
            for of_frame, time in zip(lists.to_pylist(), times, strict=False)
            for row in of_frame or ()
        ]
        if rows:
            found[column] = rows
    return found


def _read(row: Row, time: float) -> Row:
    camera, calls = row["camera"], row["tool_calls"]
    return {
        "role": row["role"],
        "content": row["content"],
        "style": row["style"],
        "timestamp": row.get("timestamp", time),
        "camera": None if camera is None else camera.removeprefix(layout.IMAGES),
        "tool_calls": None if calls is None else [_parsed(call) for call in calls],
    }


def _parsed(call: Any) -> Any:
    """A tool call, which is stored as JSON or, by LeRobot's annotation pipeline, as a struct."""
    return json.loads(call) if isinstance(call, (str, bytes)) else call
