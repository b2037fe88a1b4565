"""Presets: what `vla studio` starts beside the page, and what the page offers, as YAML files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vla_inference.errors import VlaError
from vla_inference.options import check_options, options
from vla_inference.system.prefixes import share_folders
from vla_inference.teleop.settings import Speeds

FIELDS = {"title", "run", "sim_time", "speeds", "cameras", "instructions", "auto_prompt"}
PROMPT_FIELDS = {"name", "instructions", "trials"}


@dataclass(frozen=True)
class AutoPrompt:
    """Instructions to give one after the other, an episode each; empty: each episode's own.

    trials: how many episodes in all.
    """

    name: str
    instructions: tuple[str, ...]
    trials: int


@dataclass(frozen=True)
class Preset:
    """run: `vla` commands, by their words, that are started with the page and end with it.

    sim_time: whether the graph's time is that of a simulation. speeds: by hand, of `Speeds`, where
    the command line says none.
    """

    title: str = ""
    run: tuple[tuple[str, ...], ...] = ()
    sim_time: bool = False
    speeds: Mapping[str, float] = field(default_factory=dict)
    cameras: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()
    auto_prompt: tuple[AutoPrompt, ...] = ()

    @property
    def starts(self) -> list[str]:
        """What comes with the page, so that nothing may be enabled before it is there."""
        return (["the model"] if self.run else []) + (["the simulation"] if self.sim_time else [])


def preset_folder() -> Path | None:
    """Where this package's own presets are installed."""
    return next(iter(share_folders("vla_studio", "config", "studio")), None)


def load_preset(name: str) -> Preset:
    """A file's preset, or the one of that name of this package; empty: none.

    Raises VlaError where there is none, or it says what no preset does.
    """
    if not name:
        return Preset()
    own = preset_folder()
    path = Path(name).expanduser()
    if not path.is_file() and own is not None:
        path = own / f"{name}.yaml"
    try:
        return _preset(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError:
        known = ", ".join(sorted(p.stem for p in own.glob("*.yaml"))) if own else "none"
        raise VlaError(f"there is no preset {name}", f"give a file, or one of: {known}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise VlaError(f"preset {path} cannot be used ({reason})", "correct the file") from None


def _preset(given: Any) -> Preset:
    _only(given, FIELDS, "a preset")
    prompts, sim_time = given.get("auto_prompt") or (), given.get("sim_time", False)
    if not isinstance(prompts, (list, tuple)):
        raise ValueError("auto_prompt: a list")
    if not isinstance(sim_time, bool):
        raise ValueError("sim_time: true or false")
    return Preset(
        title=_text(given.get("title", ""), "title"),
        run=tuple(tuple(shlex.split(line)) for line in _texts(given, "run")),
        sim_time=sim_time,
        speeds=_speeds(given.get("speeds") or {}),
        cameras=_texts(given, "cameras"),
        instructions=_texts(given, "instructions"),
        auto_prompt=tuple(_auto_prompt(each) for each in prompts),
    )


def _speeds(given: Any) -> dict[str, float]:
    _only(given, {f.name for f, _ in options(Speeds)}, "speeds")
    if not all(type(value) in (int, float) for value in given.values()):
        raise ValueError("speeds: numbers")
    try:
        check_options(Speeds(**given))
    except VlaError as error:
        raise ValueError(f"speeds: {error}") from None
    return {name: float(value) for name, value in given.items()}


def _auto_prompt(given: Any) -> AutoPrompt:
    _only(given, PROMPT_FIELDS, "auto_prompt")
    trials = given.get("trials", 10)
    if type(trials) is not int or not 1 <= trials <= 10_000:
        raise ValueError("trials: 1 to 10000")
    return AutoPrompt(_text(given.get("name"), "name"), _texts(given, "instructions"), trials)


def _only(given: Any, known: set[str], what: str) -> None:
    if not isinstance(given, dict) or set(given) - known:
        raise ValueError(f"{what} has {', '.join(sorted(known))}")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"{name}: a text on one line")
    return value


def _texts(given: dict[str, Any], name: str) -> tuple[str, ...]:
    values = given.get(name) or ()
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"{name}: a list of texts")
    return tuple(_text(value, name) for value in values)
