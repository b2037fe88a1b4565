"""What `vla generate` is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from vla_inference.errors import VlaError
from vla_sim_bridge.envs.randomization import Randomize, Ranges

METHODS = ("scripted", "mimicgen")


@dataclass(frozen=True)
class GenerateConfig:
    """What to generate. Two calls with the same values make the same data."""

    task: str = "Stack_D2"
    episodes: int = 100
    cameras: tuple[str, ...] = ("agentview",)
    width: int = 224
    height: int = 224
    seed: int = 0
    method: str = "scripted"  # or "mimicgen"
    source: str | None = None  # mimicgen: HDF5 with sources; None: the human's that ships
    # scripted only: largest standard deviation of executed noise, in full actions
    noise: float = 0.2
    horizon: int = 200
    compression: str | None = "gzip"
    images: bool = True
    selection: str = "nearest_neighbor_object"  # mimicgen: see `mimicgen.SELECTIONS`
    nearest: int = 3
    randomize: tuple[str, ...] = ()  # see `randomization.PARTS`
    randomize_every: str = "episode"  # or "frame"
    randomize_ranges: dict = field(default_factory=dict)  # other than the default `Ranges`
    recovery: float = 0.0  # share of episodes with a mishap, see `recovery`
    keep_failures: bool = False  # in failed.hdf5

    def look(self) -> Randomize:
        ranges = Ranges.make(self.randomize_ranges)
        return Randomize(tuple(self.randomize), self.randomize_every, ranges)

    def check(self) -> None:
        from vla_sim_bridge.mimicgen.method import SELECTIONS

        if self.episodes < 1:
            raise VlaError(f"{self.episodes} episodes were asked for", "ask for at least 1")
        if self.method not in METHODS:
            raise VlaError(f"there is no method {self.method!r}", f"use {' or '.join(METHODS)}")
        if self.selection not in SELECTIONS:
            raise VlaError(
                f"sources cannot be selected by {self.selection!r}", f"use {', '.join(SELECTIONS)}"
            )
        if self.nearest < 1:
            raise VlaError(f"one of the {self.nearest} nearest sources", "give at least 1")
        if not 0 <= self.recovery <= 1:
            raise VlaError(f"recovery in a share of {self.recovery}", "give 0 to 1")
        self.look()
