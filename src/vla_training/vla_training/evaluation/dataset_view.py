"""Describes a dataset in numbers and images: `vla data`."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vla_inference.episodes.interventions import interventions
from vla_inference.episodes.language import COLUMNS, annotated
from vla_inference.errors import DataError, VlaError
from vla_inference.policies.action_specs import spec_to_json
from vla_inference.system import charts
from vla_inference.system.files import Staged
from vla_inference.types import Episode
from vla_sim_bridge.evaluation.video import Film, fitted_text
from vla_training.datasets.base import EpisodeSet, action_statistics
from vla_training.datasets.hdf5.edit import deleted_episodes

BARS = " ▁▂▃▄▅▆▇█"
BINS = 40
SENTENCES = 20  # instructions that are listed
COMPARED = 20  # episodes whose actions set the scale of a film's bars
IMAGES, WIDE = 150, 224  # of an episode as JSON: at most; pixels
TILE, GAP, LINE = 128, 4, 16  # pixels
INK, PALE, BACK, BAR = (235, 238, 242), (150, 158, 168), (22, 25, 29), (92, 148, 214)


def describe(data: EpisodeSet, max_episodes: int | None = None) -> dict:
    """Counts, lengths, cameras, meaning and distribution of the actions, instructions."""
    actions, lengths = [], []
    sentences: Counter[str] = Counter()
    metadata: set[str] = set()
    cameras: dict[str, list[int]] = {}
    state = 0
    acted: list[np.ndarray] = []
    styles: Counter[str] = Counter()
    for episode in _first(data, max_episodes):
        actions.append(episode.actions if len(episode) else np.zeros((0, len(data.spec))))
        lengths.append(len(episode))
        sentences.update(dict.fromkeys(episode.instructions, 1))
        metadata.update(set(episode.metadata) - set(COLUMNS))
        if (steps := interventions(episode)) is not None:
            acted.append(steps)
        told = annotated(episode, data.spec.dt)
        rows = [row for name in COLUMNS for row in told.get(name) or ()]
        styles.update(str(row["style"] or "speech") for row in rows)
        if len(episode) and not cameras:
            seen = episode.steps[0].observation
            cameras = {c: list(seen.images[c].shape[:2]) for c in data.cameras()}
            state = 0 if seen.state is None else len(seen.state)
    statistics = action_statistics(actions, data.spec, str(data.path))["action"]
    frames = sum(lengths)
    return {
        "path": str(data.path),
        "name": data.name,
        "episodes": len(data),
        "episodes_read": len(lengths),
        "frames": frames,
        "seconds": frames * data.spec.dt,
        "length": {
            "min": min(lengths),
            "mean": float(np.mean(lengths)),
            "median": float(np.median(lengths)),
            "max": max(lengths),
        },
        "cameras": cameras,
        "state": state,
        "spec": spec_to_json(data.spec),
        "dimensions": [{"part": p.name, **asdict(d)} for p in data.spec.parts for d in p.dims],
        "action": statistics,
        "histograms": histograms(np.concatenate(actions)),
        "instructions": len(sentences),
        "instruction_episodes": dict(sentences.most_common(SENTENCES)),
        "metadata": sorted(metadata),
        "interventions": None
        if not acted
        else {
            "episodes": sum(bool(a.any()) for a in acted),
            "steps": int(sum(a.sum() for a in acted)),
            "of_episodes": len(acted),
            "of_steps": sum(map(len, acted)),
        },
        "language": dict(styles.most_common()),
        "left_out": data.left_out(),
        "deleted": deleted_episodes(data.path),
        "notes": data.notes,
    }


def histograms(actions: np.ndarray) -> list[dict]:
    """For each dimension of actions [T, D]: BINS counts between minimum and maximum."""
    found = []
    for column in actions.T:
        counts, edges = np.histogram(column, BINS)
        found.append({"low": float(edges[0]), "high": float(edges[-1]), "counts": counts.tolist()})
    return found


def bars(counts: list[int]) -> str:
    """A histogram in one line; non-empty bins are always visible."""
    top = max(max(counts), 1)
    steps = len(BARS) - 1
    return "".join(BARS[0 if not n else max(1, round(n / top * steps))] for n in counts)


def _first(data: EpisodeSet, number: int | None) -> Iterator[Episode]:
    if number is not None and number < 1:
        raise VlaError(f"--max-episodes is {number}", "give at least 1")
    return itertools.islice(iter(data), number)


def get_episode(data: EpisodeSet, index: int) -> Episode:
    if not 0 <= index < len(data):
        raise DataError(
            f"{data.path} has {len(data)} episodes", f"{index} is not one of 0 to {len(data) - 1}"
        )
    return data[index]


def get_camera(data: EpisodeSet, camera: str | None) -> str:
    known = data.cameras()
    if camera is None and known:
        return known[0]
    if camera not in known:
        raise data.lacks(camera)
    return camera


# -- images ---------------------------------------------------------------------------------


def draw_histograms(description: dict, columns: int = 4) -> Image.Image:
    """One panel for each dimension, with its bounds and its 1 % and 99 % quantiles."""
    dims, statistics = description["dimensions"], description["action"]
    rows = -(-len(dims) // columns)
    figure = charts.new_figure(300 * columns, 170 * rows + 30)
    told = f"{description['name']}: {description['episodes_read']} episodes, "
    told += f"{description['frames']} frames; lines: 1 % and 99 % of the values are below"
    figure.suptitle(told, color=charts.PALE, fontsize=10)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for i, (panel, dim) in enumerate(itertools.zip_longest(panels, dims)):
        if dim is None:
            panel.set_axis_off()
            continue
        histogram = description["histograms"][i]
        edges = np.linspace(histogram["low"], histogram["high"], BINS + 1)
        panel.stairs(histogram["counts"], edges, fill=True, color=charts.BAR)
        for q in ("q01", "q99"):
            panel.axvline(statistics[q][i], color=charts.PALE, linewidth=1)
        panel.set_title(f"{dim['name']} ({dim['unit']})", loc="left", fontsize=9)
        panel.set_yticks([])
        charts.style(panel, ("bottom",))
    return Image.open(io.BytesIO(charts.png(figure)))


def contact_sheet(
    data: EpisodeSet, camera: str, episodes: int = 8, columns: int = 8
) -> Image.Image:
    """One row for each of the first episodes, with images from start to end."""
    rows = [e for e in _first(data, episodes) if len(e)]
    if not rows:
        raise DataError(f"{data.path} has no step", "check how it was made")
    canvas = Image.new(
        "RGB", (columns * (TILE + GAP) + GAP, len(rows) * (TILE + LINE + GAP) + GAP), BACK
    )
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=11)
    for r, episode in enumerate(rows):
        top = GAP + r * (TILE + LINE + GAP)
        text = fitted_text(pen, _caption(episode, r), font, canvas.width - 2 * GAP)
        pen.text((GAP, top), text, font=font, fill=INK)
        for c, step in enumerate(np.linspace(0, len(episode) - 1, columns).round().astype(int)):
            image = Image.fromarray(episode.steps[step].observation.images[camera])
            canvas.paste(_fitted(image, TILE), (GAP + c * (TILE + GAP), top + LINE))
    return canvas


def _caption(episode: Episode, number: int) -> str:
    return f"episode {number}, {len(episode)} steps: {episode.steps[0].observation.instruction}"


def _fitted(image: Image.Image, size: int) -> Image.Image:
    """Scaled into a square of `size`, keeping the proportions."""
    scale = size / max(image.size)
    width, height = (max(1, round(n * scale)) for n in image.size)
    small = image.resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size, size), BACK)
    square.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
    return square


def film_episode(data: EpisodeSet, index: int, camera: str, path: Path) -> int:
    """An MP4 of an episode, each image beside bars of the following action.

    The bars reach as far as the actions of this episode and of some others.
    """
    episode = get_episode(data, index)
    some = [data.actions(i) for i in range(min(len(data), COMPARED))]
    every = np.concatenate([episode.actions, *some])
    low, high = every.min(0), every.max(0)
    film: Film | None = None
    try:
        with Staged(path) as staged:
            film = Film(staged, rate=max(1, round(1 / data.spec.dt)))
            for number, step in enumerate(episode.steps):
                film.add(draw_step(episode, number, step.observation.images[camera], low, high))
            film.close()
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror or error})",
            "make room or choose another --output",
        ) from error
    finally:
        with contextlib.suppress(OSError):  # a full disk refuses the end of a film too
            if film is not None:
                film.close()
    return film.frames


def plain_episode(data: EpisodeSet, index: int) -> dict:
    """An episode as JSON can say it: actions with names and units, and small JPEGs in base64.

    interventions: 1 for each step in which a person acted; None: not known.

    Of a long episode every k-th image is there, so that there are at most IMAGES of a camera.
    """
    episode = get_episode(data, index)
    acted, told = interventions(episode), annotated(episode, data.spec.dt)
    every = max(1, -(-len(episode) // IMAGES))
    images: dict[str, list[str]] = {camera: [] for camera in data.cameras()}
    for step in episode.steps[::every]:
        for camera, kept in images.items():
            image = Image.fromarray(step.observation.images[camera])
            image.thumbnail((WIDE, WIDE))
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=80)
            kept.append(base64.b64encode(buffer.getvalue()).decode())
    return {
        "episodes": len(data),
        "index": index,
        "instructions": list(dict.fromkeys(episode.instructions)),
        "dt": data.spec.dt,
        "dimensions": [{"part": p.name, **asdict(d)} for p in data.spec.parts for d in p.dims],
        "actions": np.round(episode.actions, 6).tolist(),
        "interventions": None if acted is None else acted.astype(int).tolist(),
        **{name: told.get(name) or [] for name in COLUMNS},
        "every": every,
        "images": images,
    }


def draw_step(
    episode: Episode, number: int, image: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """uint8 [H, W, 3]: the image, its instruction below, bars of the action on the right."""
    size, side, below = 384, 240, 48
    canvas = Image.new("RGB", (size + side, size + below), BACK)
    canvas.paste(_fitted(Image.fromarray(image), size), (0, 0))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)
    step = episode.steps[number]
    text = fitted_text(pen, step.observation.instruction, font, canvas.width - 20)
    pen.text((10, size + 6), text, font=font, fill=INK)
    told = f"step {number + 1} of {len(episode)}" + ("  reward" if step.reward else "")
    acted = interventions(episode)
    told += "  a person acts" if acted is not None and acted[number] else ""
    pen.text((10, size + 26), told, font=font, fill=PALE)
    left, right = size + 16, size + side - 16
    for i, (dim, value) in enumerate(zip(episode.spec.dims, step.action, strict=True)):
        top = 12 + i * min(52, (size - 12) / len(episode.spec))
        pen.text((left, top), dim.name, font=font, fill=PALE)
        unit = "" if dim.unit in ("1", "unknown") else f" {dim.unit}"
        text = f"{round(float(value), 4) + 0:+.4f}{unit}"
        pen.text((right - pen.textlength(text, font), top), text, font=font, fill=INK)
        bounds = min(low[i], 0.0), max(high[i], 0.0)
        scale = (right - left) / ((bounds[1] - bounds[0]) or 1.0)
        zero, end = (left + (v - bounds[0]) * scale for v in (0.0, float(value)))
        pen.rectangle((left, top + 20, right, top + 28), fill=(44, 49, 56))
        pen.rectangle((min(zero, end), top + 20, max(zero, end), top + 28), fill=BAR)
        pen.line((zero, top + 18, zero, top + 30), fill=PALE)
    return np.asarray(canvas)
