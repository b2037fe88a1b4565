"""`vla data`: describe a dataset in numbers and images."""

from __future__ import annotations

import io
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from vla_inference.cli.options import takes
from vla_inference.cli.output import JsonOption, print_json
from vla_inference.errors import DataError, VlaError
from vla_inference.system.files import writable, write_whole
from vla_training.cli.options import DatasetOptions, InstructionOption


class DataView(str, Enum):
    """What to do."""

    info = "info"
    show = "show"
    plot = "plot"
    video = "video"
    episode = "episode"
    rerun = "rerun"
    browse = "browse"
    delete = "delete"
    restore = "restore"
    tag = "tag"
    push = "push"
    pull = "pull"


DEFAULT_NAMES = {
    DataView.show: "sheet.png",
    DataView.plot: "actions.png",
    DataView.video: "episode.mp4",
    DataView.rerun: "episode.rrd",
}
EDITS = (DataView.delete, DataView.restore, DataView.tag)


@takes(DatasetOptions)
def data(
    options: DatasetOptions,
    view: Annotated[
        DataView,
        typer.Argument(
            help="info: counts and statistics; show: contact sheet; plot: histograms of the "
            "actions; video: an episode with its actions; episode: the same as JSON; rerun: the "
            "same as a recording for Rerun's viewer; delete, tag: an episode of an HDF5 dataset "
            "that vla wrote; restore: puts back the one deleted last; push: to --repo on the "
            "Hugging Face Hub; pull: PATH is USER/NAME there; browse: answers JSON requests on "
            "stdin."
        ),
    ],
    path: Annotated[Path, typer.Argument(help="Dataset of any format: a folder or file.")],
    instruction: InstructionOption = None,
    max_episodes: Annotated[
        int | None, typer.Option(help="Episodes to read; default: all, 8 for show.")
    ] = None,
    episode: Annotated[
        int | None,
        typer.Option(help="Episode, from 0; default: the first, and none for delete and tag."),
    ] = None,
    tags: Annotated[
        str | None, typer.Option(help="Of tag: words, separated by commas; empty: none.")
    ] = None,
    camera: Annotated[str | None, typer.Option(help="Camera; default: the first.")] = None,
    repo: Annotated[str | None, typer.Option(help="Of push: USER/NAME on the Hub.")] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Of push: a new one is not shown to others.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Of pull: branch, tag or commit; default: main.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File to write; default: sheet.png, actions.png, episode.mp4 or episode.rrd. Of "
            "pull: folder; default: datasets/NAME."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace --output.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Inspect a dataset: counts, statistics, images, a video; delete and tag episodes."""
    if view is DataView.browse:
        from vla_training.evaluation.browse import browse

        os.nice(5)  # what drives a robot on this machine comes first
        browse(path, lambda: options.open(path, instruction), sys.stdin, sys.stdout)
        return 0
    if view in (DataView.push, DataView.pull):
        from vla_training.datasets import hub
    if view is DataView.push:
        if repo is None:
            raise VlaError(f"push {path} where?", "give --repo USER/NAME")
        # What cannot be read here is of no use there.
        print(hub.push(options.open(path, instruction), path, repo, private))
        return 0
    if view is DataView.pull:
        print(hub.pull(str(path), output or Path("datasets", path.name), revision))
        return 0
    if view in EDITS:
        _edit(view, path, episode, tags)
        return 0
    from vla_training.evaluation import dataset_view

    target = Path()  # of `info` and `episode`: none
    if view in DEFAULT_NAMES:
        target = output or Path(DEFAULT_NAMES[view])
        _check_target(target, Path(DEFAULT_NAMES[view]).suffix, overwrite)
    source, number = options.open(path, instruction), episode or 0
    result: dict = {}
    if view is DataView.episode:
        print_json(dataset_view.plain_episode(source, number))
        return 0
    if view in (DataView.info, DataView.plot):
        result = dataset_view.describe(source, max_episodes)
        if not as_json:
            show(result) if view is DataView.info else show_histograms(result)
    if view is DataView.plot:
        _save(dataset_view.draw_histograms(result), target)
    elif view is DataView.show:
        name = dataset_view.get_camera(source, camera)
        _save(dataset_view.contact_sheet(source, name, max_episodes or 8), target)
    elif view is DataView.video:
        name = dataset_view.get_camera(source, camera)
        result["frames"] = dataset_view.film_episode(source, number, name, target)
    elif view is DataView.rerun:
        from vla_training.evaluation.rerun_recording import record_episode

        result["frames"] = record_episode(source, number, target)
    if view in DEFAULT_NAMES:
        result["file"] = str(target)
    if as_json:
        print_json(result)
    elif view in DEFAULT_NAMES:
        print(target)
    return 0


def _edit(view: DataView, path: Path, episode: int | None, tags: str | None) -> None:
    from vla_training.datasets.hdf5 import edit

    if view is DataView.restore:
        print(f"restored {edit.restore_episode(path)}")
        return
    if episode is None:
        raise VlaError(f"{view.value} which episode?", "give --episode, from 0")
    if view is DataView.delete:
        print(f"deleted {edit.delete_episode(path, episode)}; vla data restore puts it back")
        return
    if tags is None:
        raise VlaError("which tags?", 'give --tags good,slow, or --tags "" to remove them')
    words = [word.strip() for word in tags.split(",") if word.strip()]
    print(f"{edit.tag_episode(path, episode, words)}: {', '.join(words) or 'no tags'}")


def _check_target(path: Path, suffix: str, overwrite: bool) -> None:
    if path.suffix.lower() != suffix:
        raise VlaError(f"--output {path} does not end in {suffix}", f"call it NAME{suffix}")
    if path.is_dir():
        raise VlaError(f"{path} is a folder", "name a file")
    if path.exists() and not overwrite:
        raise VlaError(f"{path} exists", "choose another --output, or give --overwrite")
    writable(path)


def _save(image, path: Path) -> None:
    """Write a file atomically."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    try:
        write_whole(path, buffer.getvalue())
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror})", "make room") from error


def show(d: dict) -> None:
    """The text of `vla data info`."""
    part = "" if d["episodes"] == d["episodes_read"] else f" ({d['episodes_read']} read)"
    length, spec = d["length"], d["spec"]
    rows = [
        ("path", d["path"]),
        ("episodes", f"{d['episodes']}{part}, {d['frames']} frames, {d['seconds']:.1f} s"),
        (
            "length",
            f"{length['min']} to {length['max']} steps, mean {length['mean']:.1f}, "
            f"median {length['median']:g}",
        ),
        ("cameras", ", ".join(f"{c} {w}x{h}" for c, (h, w) in d["cameras"].items()) or "none"),
        ("state", f"{d['state']} numbers" if d["state"] else "none"),
        ("actions", f"{spec['dt']:g} s a step"),
        *[("", _part(p)) for p in spec["parts"]],
        ("takeovers", _takeovers(d["interventions"])),
        *([("language", _counts(d["language"]))] if d["language"] else []),
        ("metadata", ", ".join(d["metadata"]) or "none"),
        ("left out", ", ".join(d["left_out"]) or "nothing"),
        *([("deleted", ", ".join(d["deleted"]))] if d["deleted"] else []),
    ]
    for name, value in rows:
        print(f"{name:<10}{value}")
    print()
    print(f"{'action':<10}{'unit':<8}" + "".join(f"{k:>10}" for k in STATISTICS))
    for i, dim in enumerate(d["dimensions"]):
        values = "".join(f"{d['action'][k][i]:>10.4f}" for k in STATISTICS)
        print(f"{dim['name']:<10}{dim['unit']:<8}{values}  {dim['polarity']}".rstrip())
    print()
    print(f"{d['instructions']} instructions; episodes with the most frequent:")
    for text, count in d["instruction_episodes"].items():
        print(f"{count:>6}  {text or '(empty)'}")
    for note in d["notes"]:
        print(f"note: {note}", file=sys.stderr)


def _takeovers(acted: dict | None) -> str:
    """Where a person acted in place of a model."""
    if acted is None:
        return "not recorded"
    share = 100 * acted["steps"] / max(1, acted["of_steps"])
    return (
        f"a person acted in {share:.1f} % of {acted['of_steps']} steps, in {acted['episodes']} of "
        f"{acted['of_episodes']} episodes"
    )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _part(part: dict) -> str:
    turned = [part[k] for k in ("rotation", "frame") if part.get(k)]
    return f"{part['name']}: {', '.join([part['kind'], *turned])}"


STATISTICS = ("mean", "std", "min", "q01", "q99", "max")


def show_histograms(d: dict) -> None:
    """The text of `vla data plot`."""
    from vla_training.evaluation.dataset_view import bars

    for dim, histogram in zip(d["dimensions"], d["histograms"], strict=True):
        low, high = histogram["low"], histogram["high"]
        print(
            f"{dim['name']:<10}{low:>10.4f} {bars(histogram['counts'])} {high:<10.4f}"
            f"{dim['unit']}".rstrip()
        )
