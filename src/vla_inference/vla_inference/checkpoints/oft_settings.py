"""OpenVLA-OFT settings parsed from a run's name or from its own form of config.json.

OpenVLA-OFT writes none of its settings into a checkpoint. They stand in the name of the run's
folder, by the note that its instructions tell to give (`--run_id_note`), such as
`...--parallel_dec--8_acts_chunk--continuous_acts--L1_regression--3rd_person_img--wrist_img--
proprio_state--150000_chkpt`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_inference.errors import CheckpointError


@dataclass(frozen=True)
class OftSettings:
    """kind: "l1", "tokens" or "diffusion". None: not stated."""

    kind: str | None = None
    chunk: int | None = None
    images: int | None = None
    proprio: bool | None = None
    film: bool | None = None


# openvla-oft LIBERO.md: the four suites and the one of all of them.
PUBLISHED = re.compile(r"openvla-7b-oft-finetuned-libero")
PUBLISHED_SETTINGS = OftSettings("l1", 8, 2, True, False)

PARALLEL = re.compile(r"parallel_dec|\d_acts?_chunk|(?<![a-z])oft(?![a-z])")
CHUNK = re.compile(r"(?<!\d)(\d+)_acts?_chunk")
KINDS = {"l1_regression": "l1", "discrete_acts": "tokens", "diffusion": "diffusion"}
CAMERA = re.compile(r"(?:^|[-+])(\w+)_(imgs?)(?=$|[-+])")
PROPRIO = re.compile(r"(?:^|[-+])(no_)?proprio(?:_state)?(?=$|[-+])")
FILM = re.compile(r"(?:^|[-+])(no_)?film(?=$|[-+])")
# The options of its commands, as some programs leave them in config.json.
OPTIONS = {
    "num_action_chunks": "chunk",
    "num_images_in_input": "images",
    "use_proprio": "proprio",
    "use_film": "film",
    "use_l1_regression": "kind",
    "use_diffusion": "kind",
}
ITS_CODE = ("modeling_prismatic.py", "NUM_ACTIONS_CHUNK")  # beside what its training saved


def read_settings(folder: Path, raw: Mapping[str, Any], name: str) -> OftSettings | None:
    """All stated settings; None if nothing marks the checkpoint as OpenVLA-OFT."""
    by_name, by_config = of_name(name), of_config(raw)
    if by_name is None and by_config is None:
        code = folder / ITS_CODE[0]
        known = code.is_file() and ITS_CODE[1] in code.read_text(errors="replace")
        return OftSettings() if known else None
    found: dict[str, Any] = {}
    for field in (f.name for f in dataclasses.fields(OftSettings)):
        values = [getattr(s, field) for s in (by_name, by_config) if s is not None]
        stated = [v for v in values if v is not None]
        if len(set(stated)) > 1:
            raise CheckpointError(
                f"{folder}: {field} is {stated[0]} by its name, {stated[1]} by its config.json",
                "correct whichever is wrong",
            )
        found[field] = stated[0] if stated else None
    return OftSettings(**found)


def of_name(name: str) -> OftSettings | None:
    """OftSettings in the run's name; None if it is not an OpenVLA-OFT name."""
    name = name.lower()
    if PUBLISHED.match(name):
        return PUBLISHED_SETTINGS
    if not PARALLEL.search(name):
        return None
    chunk = CHUNK.search(name)
    kinds = {kind for words, kind in KINDS.items() if words in name}
    proprio, film = PROPRIO.search(name), FILM.search(name)
    return OftSettings(
        kind=kinds.pop() if len(kinds) == 1 else None,
        chunk=int(chunk[1]) if chunk else None,
        images=_images(name),
        proprio=not proprio[1] if proprio else None,
        film=not film[1] if film else None,
    )


def _images(name: str) -> int | None:
    """The listed cameras; None if the list does not give their number."""
    cameras = CAMERA.findall(name)
    if not any(which.endswith("3rd_person") for which, _ in cameras):
        return None
    count = 0
    for which, ending in cameras:
        if ending == "imgs" and not which.startswith("left_right"):
            return None
        count += 2 if ending == "imgs" else 1
    return count


def of_config(raw: Mapping[str, Any]) -> OftSettings | None:
    """OftSettings in a config.json that uses OpenVLA-OFT's option names, if it does."""
    given = {field: raw[key] for key, field in OPTIONS.items() if raw.get(key) is not None}
    if not given:
        return None
    if "kind" in given:
        continuous = "l1" if raw.get("use_l1_regression") else "tokens"
        given["kind"] = "diffusion" if raw.get("use_diffusion") else continuous
    return OftSettings(**given)
