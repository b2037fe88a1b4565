"""Which commands may run as jobs, with which options: everything else is refused.

An option has to stand here because the node answers to everyone on the network: one that takes a
path must be known as such to be confined to the root folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_inference.errors import VlaError
from vla_training.jobs.paths import confine

MAX_WORDS, MAX_LENGTH = 256, 4096


@dataclass(frozen=True)
class Kind:
    """A command and its options without the leading dashes, by what they take.

    names: options that take a name or a path: whatever could be a path is confined.
    """

    subcommand: str
    paths: frozenset[str]
    values: frozenset[str]
    flags: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()

    @property
    def options(self) -> frozenset[str]:
        return self.paths | self.values | self.flags | self.names


def _kind(subcommand: str, paths: str, values: str, flags: str = "", names: str = "") -> Kind:
    return Kind(subcommand, *(frozenset(words.split()) for words in (paths, values, flags, names)))


KINDS: Mapping[str, Kind] = {
    kind.subcommand: kind
    for kind in (
        _kind(
            "generate",
            paths="output source randomize-ranges",
            values="task tasks episodes cameras camera-width camera-height seed parallel method "
            "noise horizon select-source nearest randomize randomize-every recovery",
            flags="keep-failures no-images",
        ),
        _kind(
            "convert",
            paths="dataset output",
            values="dataset-type convert split conventions remap-keys width height sample-steps "
            "sample-actions rotation max-episodes option workers instruction",
            flags="overwrite lossless allow-no-images allow-no-instructions",
        ),
        _kind(
            "train",
            paths="data output",
            values="batch-size steps minutes learning-rate devices seed",
            flags="compile resume",
        ),
        _kind(
            "finetune",
            paths="data-root-dir run-root-dir",
            values="dataset-name run-id lora-rank lora-alpha quantize batch-size "
            "grad-accumulation-steps learning-rate weight-decay warmup-steps lr-schedule "
            "max-grad-norm epochs max-steps action-head chunk num-images cameras proprio-dim "
            "dataset-type action-space precision gradient-checkpointing workers seed device "
            "save-steps log-steps val-split val-steps eval-steps eval-task eval-episodes "
            "online-tasks online-episodes online-steps online-parallel",
            flags="image-aug compile freeze-vision no-reshard no-merge no-tensorboard resume",
            names="vla-path",
        ),
        _kind(
            "study",
            paths="output data start",
            values="task episodes passes minutes seeds batch-size learning-rate eval-episodes "
            "eval-seed horizon execute-steps devices parallel",
            flags="compile",
        ),
        _kind(
            "eval",
            paths="dataset model reference-model save-stats report",
            values="dataset-type split conventions max-episodes max-steps camera instruction "
            "device dtype quantization",
            names="action-space",
        ),
    )
}


def get_kind(name: str, kinds: Mapping[str, Kind] = KINDS) -> Kind:
    if name not in kinds:
        raise VlaError(f"there is no kind of job {name!r}", f"use {', '.join(sorted(kinds))}")
    return kinds[name]


def command_words(kind: Kind, arguments: Sequence[str], root: Path) -> list[str]:
    """The command and its options as they may be run, every path absolute and inside `root`."""
    if len(arguments) > MAX_WORDS or any(len(a) > MAX_LENGTH for a in arguments):
        raise VlaError(
            "the arguments are too long", f"give at most {MAX_WORDS} words of {MAX_LENGTH}"
        )
    words, result = list(arguments), [kind.subcommand]
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in kind.options:
            known = " ".join(f"--{o}" for o in sorted(kind.options))
            raise VlaError(f"{word!r} is not for jobs of kind {kind.subcommand}", f"use {known}")
        if name in kind.flags:
            if equals:
                raise VlaError(f"--{name} takes no value", f"give --{name} alone")
            result.append(f"--{name}")
            continue
        if not equals:
            if not words or words[0].startswith("--"):
                raise VlaError(f"--{name} lacks its value", "give it as the next word")
            value = words.pop(0)
        if "\0" in value:
            raise VlaError(f"the value of --{name} has a zero byte", "leave it out")
        if name in kind.paths or (name in kind.names and _may_be_path(value, root)):
            value = str(confine(root, value, f"--{name}"))
        result.append(f"--{name}={value}")
    return result


def _may_be_path(value: str, root: Path) -> bool:
    return "/" in value or "\\" in value or value in (".", "..") or (root / value).exists()
