"""The commands that may run as jobs, and the options each allows.

The node answers to everyone on the network, so an option that takes a path must be known as such
(`options.Holds`) to be confined to the root folder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_inference.cli.options import options_of
from vla_inference.errors import VlaError
from vla_inference.options import Holds
from vla_sim_bridge.cli.generate import generate
from vla_training.cli.convert import convert
from vla_training.cli.eval import evaluate
from vla_training.cli.finetune import finetune
from vla_training.cli.improve import improve
from vla_training.cli.study import study
from vla_training.cli.train import train
from vla_training.jobs.paths import confine

MAX_WORDS, MAX_LENGTH = 256, 4096


@dataclass(frozen=True)
class Kind:
    """A command and its options without leading dashes, by what they take.

    names: options that take a name or a path: whatever could be a path is confined.
    engines: options that take a name or NAME:FOLDER; the folder is confined.
    """

    subcommand: str
    paths: frozenset[str]
    values: frozenset[str]
    flags: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    engines: frozenset[str] = frozenset()

    @property
    def options(self) -> frozenset[str]:
        return self.paths | self.values | self.flags | self.names | self.engines

    @classmethod
    def of(cls, subcommand: str, function: Callable) -> Kind:
        """All options of a command's function except those marked `Holds.LOCAL`."""
        found: dict[Holds | str, set[str]] = defaultdict(set)
        for option in options_of(function):
            if option.holds is not Holds.LOCAL:
                words = {word.removeprefix("--") for word in (*option.names, *option.off)}
                found["flag" if option.flag else option.holds] |= words
        return cls(
            subcommand,
            paths=frozenset(found[Holds.PATH]),
            values=frozenset(found[Holds.VALUE]),
            flags=frozenset(found["flag"]),
            names=frozenset(found[Holds.NAME_OR_PATH]),
            engines=frozenset(found[Holds.ENGINE_FOLDER]),
        )


COMMANDS: Mapping[str, Callable[..., Any]] = {
    "generate": generate,
    "convert": convert,
    "train": train,
    "finetune": finetune,
    "improve": improve,
    "study": study,
    "eval": evaluate,
}
KINDS: Mapping[str, Kind] = {name: Kind.of(name, command) for name, command in COMMANDS.items()}


def get_kind(name: str, kinds: Mapping[str, Kind] = KINDS) -> Kind:
    if name not in kinds:
        raise VlaError(f"there is no kind of job {name!r}", f"use {', '.join(sorted(kinds))}")
    return kinds[name]


def command_words(kind: Kind, arguments: Sequence[str], root: Path) -> list[str]:
    """The command line to run, with every path absolute and inside `root`."""
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
                raise VlaError(f"--{name} needs a value", "give it as the next word")
            value = words.pop(0)
        if "\0" in value:
            raise VlaError(f"the value of --{name} has a zero byte", "leave it out")
        if name in kind.paths or (name in kind.names and _may_be_path(value, root)):
            value = str(confine(root, value, f"--{name}"))
        elif name in kind.engines and ":" in value:
            engine, _, folder = value.partition(":")
            value = f"{engine}:{confine(root, folder, f'--{name}')}"
        result.append(f"--{name}={value}")
    return result


def _may_be_path(value: str, root: Path) -> bool:
    return "/" in value or "\\" in value or value in (".", "..") or (root / value).exists()
