"""Verdicts of episodes: one JSON object a line."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_inference.errors import VlaError

VERDICTS = ("success", "failure", "discard")
OF_EPISODE = ("task", "seed", "index", "outcome")


def keep_verdict(
    file: str, verdict: str, note: str, episode: Mapping[str, Any], more: Mapping[str, Any]
) -> None:
    """Appends a verdict. episode: fields of an EpisodeStatus, empty where there is none."""
    if verdict not in VERDICTS:
        raise VlaError(f"verdict {verdict!r}", f"use {', '.join(VERDICTS)}")
    if not file:
        raise VlaError("verdicts are not kept", "start the studio with a file for them")
    about = {name: episode[name] for name in OF_EPISODE if name in episode}
    entry = {"time": time.time(), "verdict": verdict, "note": note, **about, **more}
    path = Path(file).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(entry) + "\n")
    except OSError as error:
        raise VlaError(
            f"{path} cannot be written ({error.strerror})", "free it, or name another file"
        ) from None
