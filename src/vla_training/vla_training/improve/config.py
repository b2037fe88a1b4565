"""The options of `vla improve` beside those of fine-tuning."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vla_inference.errors import VlaError
from vla_inference.options import Holds, check_options, option
from vla_sim_bridge.tasks import get_task

DEVELOPMENT = 1_000_033  # seed of the episodes that decide; nothing else draws from it


@dataclass(frozen=True, kw_only=True)
class ImproveConfig:
    """What a round is: episodes, how they are mixed with older data, who decides."""

    task: str = option("Stack_D2", "Task of the episodes and of the evaluation.")
    rounds: int = option(1, "Rounds; more may be asked for later.", low=1)
    episodes: int = option(25, "Successful episodes of a round.", low=1)
    collect: str = option(
        "corrected",
        "corrected: the model acts, and the scripted expert takes over where it errs; scripted: "
        "whole demonstrations, to compare with.",
        choices=("corrected", "scripted"),
    )
    recorded: str | None = option(
        None,
        "Folder of recorded episodes, bags or HDF5 files, in place of the simulation's: a round "
        "takes what no round before has taken.",
        holds=Holds.PATH,
    )
    share: float = option(
        0.5, "Share of the samples from the rounds' episodes, beside --dataset.", above=0.0, high=1
    )
    sees: tuple[str, ...] = option(
        ("agentview",), "Cameras of simulation and datasets, in the model's order, by commas."
    )
    recipe: str = option(
        "finetune",
        "How a round trains: finetune, or train, the small model's own (of the options below it "
        "takes --max-steps, --batch-size, --learning-rate, --val-split, --seed, --device, "
        "--compile).",
        choices=("finetune", "train"),
    )
    judged_by: int = option(100, "Episodes that old and new version both play.", low=1)
    judging_seed: int = option(
        DEVELOPMENT, "Their seed; measure the final model on another one.", low=0
    )
    parallel: int = option(-1, "Processes that play episodes; -1: one per core.", low=-1)
    load: str | None = option(
        None, "Inference node to load each better version, such as /inference.", holds=Holds.LOCAL
    )
    GROUPS = {"Rounds": ()}

    def check(self) -> None:
        check_options(self)
        get_task(self.task)
        if self.parallel == 0:
            raise VlaError("--parallel is 0", "give at least 1, or -1 for one per core")
        if not self.sees:
            raise VlaError("no camera was given", "give --sees agentview")

    def identity(self) -> dict[str, Any]:
        """What must stay as it was when a run goes on, as JSON."""
        left_out = ("rounds", "parallel", "load")
        return {k: v for k, v in asdict(self).items() if k not in left_out}
