"""Language annotations of an episode: subtasks, plans, memory, questions and answers, speech.

They are metadata, two lists of rows under LeRobot's names. A row is a plain JSON object:

| key | what |
|---|---|
| role | who says it: "user", "assistant" ... |
| content | the text, or None where only tools are called |
| style | "subtask", "plan" ...; None where tools are called, such as "say" |
| timestamp | s from the episode's first step, a float32 |
| camera | of "vqa" and "trace", whose text is about one camera's image; else None |
| tool_calls | a list of JSON objects, or None |

A row of `language_persistent` holds until the next one of its style, a row of `language_events` is
of one moment. A column "subtask" [T] of texts is another way to write rows of that style.
Source: huggingface/lerobot src/lerobot/datasets/language.py (names, types and rules).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_inference.errors import DataError
from vla_inference.types import Episode

PERSISTENT, EVENTS = COLUMNS = ("language_persistent", "language_events")
SUBTASK = "subtask"
OF_A_CAMERA = ("vqa", "trace")
KEYS = ("role", "content", "style", "timestamp", "camera", "tool_calls")

Row = dict[str, Any]


def rows_of(metadata: Mapping[str, Any], column: str, where: str) -> list[Row]:
    """The checked rows of a column, by time; raises DataError."""
    rows = metadata.get(column) or []
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise DataError(f"{where}: {column} is no list of rows", "write a list of objects")
    return sorted((check_row(row, f"{where}: {column}") for row in rows), key=_time)


def _time(row: Row) -> float:
    return float(row["timestamp"])


def check_row(row: Any, where: str) -> Row:
    """A row with all of its keys; raises DataError where one has no place in it."""
    if not isinstance(row, Mapping) or set(row) - set(KEYS):
        raise DataError(f"{where} has the row {row!r:.200}", f"a row has {', '.join(KEYS)}")
    found = {key: row.get(key) for key in KEYS}
    texts = all(found[k] is None or isinstance(found[k], str) for k in ("content", "style"))
    calls, time = found["tool_calls"], found["timestamp"]
    if not (isinstance(found["role"], str) and texts and (calls is None or type(calls) is list)):
        raise DataError(
            f"{where} has the row {found!r:.200}",
            "role, content and style are texts, tool_calls is a list",
        )
    if calls is None and None in (found["content"], found["style"]):
        raise DataError(
            f"{where} has the row {found!r:.200}", "a row without tool_calls has content and style"
        )
    if isinstance(time, bool) or not isinstance(time, (int, float)) or not 0 <= time < math.inf:
        raise DataError(f"{where}: a row's timestamp is {time!r}", "write seconds from the start")
    camera = found["camera"]
    named = isinstance(camera, str) and bool(camera)
    if named != (found["style"] in OF_A_CAMERA) or not (named or camera is None):
        raise DataError(
            f"{where}: a row of style {found['style']!r} has the camera {camera!r}",
            f"rows of {' and '.join(OF_A_CAMERA)} name one, no others do",
        )
    return found | {"timestamp": float(np.float32(time))}


def is_annotated(metadata: Mapping[str, Any]) -> bool:
    return any(metadata.get(column) for column in COLUMNS)


def subtask_rows(texts: Sequence[str | bytes], dt: float) -> list[Row]:
    """A row for each change of the subtask of T steps of dt s; an empty text is none."""
    rows, before = [], ""
    for step, text in enumerate(texts):
        now = text.decode() if isinstance(text, bytes) else str(text)
        if now and now != before:
            rows.append(persistent_row(SUBTASK, now, step * dt))
        before = now or before
    return rows


def persistent_row(style: str, content: str, timestamp: float) -> Row:
    """A row that the robot says to itself."""
    values = ("assistant", content, style, timestamp, None, None)
    return dict(zip(KEYS, values, strict=True))


def annotated(episode: Episode, dt: float) -> dict[str, Any]:
    """The episode's metadata, with rows for its column "subtask" where no row is of that style."""
    metadata, texts = dict(episode.metadata), episode.columns.get(SUBTASK)
    if texts is None or any(r.get("style") == SUBTASK for r in metadata.get(PERSISTENT) or ()):
        return metadata
    rows = [*(metadata.get(PERSISTENT) or ()), *subtask_rows(list(texts), dt)]
    return metadata | ({PERSISTENT: rows} if rows else {})


def with_cameras(metadata: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Metadata whose rows name cameras as `names` (old -> new) says; of others they go away."""
    changed = dict(metadata)
    for column in COLUMNS:
        rows = metadata.get(column) or []
        kept = [r for r in rows if r.get("camera") is None or r["camera"] in names]
        if rows:
            changed[column] = [r | {"camera": names.get(r.get("camera", ""))} for r in kept]
    return changed
