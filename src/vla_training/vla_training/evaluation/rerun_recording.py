"""An episode as a recording for Rerun's viewer: images, actions, state and instruction by time."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vla_inference.episodes.interventions import interventions
from vla_inference.errors import DataError, VlaError
from vla_inference.system.files import Staged
from vla_inference.types import Episode
from vla_training.datasets.base import EpisodeSet
from vla_training.evaluation.dataset_view import get_episode

APPLICATION = "vla"
QUALITY = 90  # of the JPEGs


def record_episode(data: EpisodeSet, index: int, path: Path) -> int:
    """Writes an .rrd file with its layout; returns the number of steps.

    Entities: /camera/NAME, /action/PART/DIMENSION (units in its series' name), /state/NUMBER,
    /instruction; timelines: `time` [s] and `step`. Raises DataError without such an episode,
    VlaError without rerun-sdk.
    """
    try:
        import rerun as rr
    except ImportError:
        raise VlaError(
            "rerun-sdk is not installed", "pip install -r requirements/rerun.txt"
        ) from None
    episode = get_episode(data, index)
    if not len(episode):
        raise DataError(f"{data.path}: episode {index} has no step", "check how it was made")
    try:
        with Staged(path) as staged:
            stream = rr.RecordingStream(APPLICATION, recording_id=f"{data.name} {index}")
            stream.save(staged, default_blueprint=_layout(data, episode))
            _fill(stream, data, episode)
            stream.flush()
            stream.disconnect()
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror or error})",
            "make room or choose another --output",
        ) from error
    return len(episode)


def _fill(stream: Any, data: EpisodeSet, episode: Episode) -> None:
    import rerun as rr

    count = len(episode)
    times = data.spec.dt * np.arange(count)

    def columns(entity: str, of: Any, chosen: Any = slice(None)) -> None:
        steps = np.arange(count)[chosen]
        indexes = [
            rr.TimeColumn("time", duration=times[chosen]),
            rr.TimeColumn("step", sequence=steps),
        ]
        stream.send_columns(entity, indexes=indexes, columns=of)

    def series(entity: str, name: str, values: np.ndarray) -> None:
        stream.log(entity, rr.SeriesLines(names=name), static=True)
        columns(entity, rr.Scalars.columns(scalars=values))

    for camera in data.cameras():
        jpegs = [_jpeg(step.observation.images[camera]) for step in episode.steps]
        media = ["image/jpeg"] * count
        columns(f"camera/{camera}", rr.EncodedImage.columns(blob=jpegs, media_type=media))
    actions, column = episode.actions, 0
    for part in data.spec.parts:
        for dim in part.dims:
            name = f"{dim.name} [{dim.unit}]"
            series(f"action/{part.name}/{dim.name}", name, actions[:, column])
            column += 1
    if episode.steps[0].observation.state is not None:
        for number, values in enumerate(episode.states.T):
            series(f"state/{number}", f"state {number}", values)
    if (acted := interventions(episode)) is not None:
        series("person", "a person acts", acted.astype(np.float32))
    texts = episode.instructions
    new = [t for t in range(count) if t == 0 or texts[t] != texts[t - 1]]
    columns("instruction", rr.TextDocument.columns(text=[texts[t] for t in new]), new)


def _layout(data: EpisodeSet, episode: Episode) -> Any:
    """Images above the actions, the parts beside each other; state and instruction below."""
    import rerun.blueprint as rrb

    images = [rrb.Spatial2DView(origin=f"camera/{c}", name=c) for c in data.cameras()]
    parts = [
        rrb.TimeSeriesView(origin=f"action/{part.name}", name=f"action: {part.name}")
        for part in data.spec.parts
    ]
    below: list[Any] = [rrb.TextDocumentView(origin="instruction", name="instruction")]
    if interventions(episode) is not None:
        below.append(rrb.TimeSeriesView(origin="person", name="a person acts"))
    if episode.steps[0].observation.state is not None:
        below.insert(0, rrb.TimeSeriesView(origin="state", name="state"))
    rows = [rrb.Horizontal(*row) for row in (images, parts, below) if row]
    return rrb.Blueprint(rrb.Vertical(*rows), collapse_panels=True)


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
