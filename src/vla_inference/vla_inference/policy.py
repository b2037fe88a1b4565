"""`Policy`: an observation in, an action chunk out."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from vla_inference.actions import NORMALIZED, ActionTokens, Normalisation, find_statistics
from vla_inference.checkpoint import load_model, load_tokenizer
from vla_inference.errors import CheckpointError, ObservationError, VlaError
from vla_inference.model import VLA
from vla_inference.preprocess import PicturePreprocessor, PromptTokenizer
from vla_inference.types import ActionChunk, ActionSpec, Observation, eef_delta_spec

NOT_FINITE = ("the model answered with numbers that are not finite", "check its weights")
OFT_EPSILON = 1e-8  # OpenVLA-OFT adds it to the range when it un-normalises

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def statistics_spec(statistics: Mapping) -> ActionSpec:
    """What the actions of a set of statistics mean.

    They may carry a `spec` ({"rotation", "frame", "dt"}); those of the Open X-Embodiment sets
    don't and are fixed-axis angles in the base frame at about 5 Hz.
    """
    defaults = {"rotation": "rpy", "frame": "base", "dt": 0.2}
    given = statistics.get("spec", {})
    unknown = set(given) - set(defaults)
    if unknown:
        raise CheckpointError(
            f"the statistics' spec names unknown {', '.join(sorted(unknown))}",
            f"known: {', '.join(defaults)}",
        )
    return eef_delta_spec(**{**defaults, **given})


class Policy:
    """A model with its tokenizer, its picture preprocessing and its action statistics.

    Example::

        policy = Policy.from_pretrained("models/stack-small")
        chunk = policy.predict_action(image, instruction="stack the red block on the green one")
        chunk.actions  # float32 [T, 7]: m, rad, gripper 1 open
    """

    def __init__(self, model: VLA, tokenizer, device, dtype, name: str = "vla"):
        self.model, self.config, self.name = model, model.config, name
        self.device, self.dtype = torch.device(device), dtype
        self.preprocess = PicturePreprocessor(self.config)
        self.prompt = PromptTokenizer(self.config, tokenizer)
        self.tokens = ActionTokens(self.config.action_vocab_end, self.config.n_action_bins)
        self._prompts: dict[str, torch.Tensor] = {}

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike, *, device: str | None = None, dtype: str | None = None
    ) -> Policy:
        """Load a checkpoint folder.

        device: "cpu", "cuda", ...; None takes CUDA where there is one.
        dtype: "float32", "bfloat16" or "float16"; None takes float32 on CPU, bfloat16 else.
        """
        folder = Path(path)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.device(device)
        except RuntimeError:
            raise VlaError(f"unknown device {device!r}", "use cpu, cuda or cuda:N") from None
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise VlaError(f"device {device!r} was asked for, but there is no CUDA", "use cpu")
        dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
        if dtype not in DTYPES:
            raise VlaError(f"unknown dtype {dtype!r}", f"known: {', '.join(DTYPES)}")
        model = load_model(folder, device, DTYPES[dtype])
        tokenizer = load_tokenizer(folder)
        words, rows = tokenizer.get_vocab_size(), model.config.llm.vocab_size
        if words > rows:
            raise CheckpointError(
                f"{folder / 'tokenizer.json'} has {words} tokens, the model {rows} embeddings",
                "the two must come from one training run",
            )
        return cls(model, tokenizer, device, DTYPES[dtype], folder.resolve().name)

    # -- what the actions mean ----------------------------------------------------------------

    @property
    def action_spaces(self) -> dict[str, Mapping]:
        """Statistics by name, "normalized" (actions in [-1, 1]) among them."""
        return {**self.config.norm_stats, "normalized": {"action": NORMALIZED}}

    def action_spec(self, unnorm_key: str | Mapping | None = None) -> ActionSpec:
        """Name, unit, frame and polarity of each action dimension."""
        name, _ = find_statistics(self.action_spaces, unnorm_key)
        return statistics_spec(self.action_spaces.get(name, {}))

    # -- prediction ---------------------------------------------------------------------------

    def predict_action(
        self,
        observation: Observation | np.ndarray,
        instruction: str | None = None,
        *,
        unnorm_key: str | Mapping | None = None,
    ) -> ActionChunk:
        """The next actions for one observation.

        observation: an `Observation`, or one picture uint8 [H, W, 3].
        instruction: overrides the observation's.
        unnorm_key: name of the statistics to un-normalise with, or the statistics themselves;
            None where the model has only one.
        """
        if isinstance(observation, np.ndarray):
            observation = Observation({"image": observation})
        if not isinstance(observation, Observation):
            raise ObservationError(
                f"the observation is a {type(observation).__name__}",
                "give an Observation or one picture",
            )
        text = observation.instruction if instruction is None else instruction
        _, statistics = find_statistics(self.action_spaces, unnorm_key)
        normalisation = Normalisation.from_statistics(statistics)
        if len(normalisation) != self.config.head.action_dim:
            raise VlaError(
                f"the statistics have {len(normalisation)} dimensions, the model's actions "
                f"{self.config.head.action_dim}",
                "choose those it was trained with",
            )
        timer = _Timer(self.device)
        images = list(observation.images.values())
        if len(images) < self.config.head.num_images:
            raise ObservationError(
                f"the model needs {self.config.head.num_images} pictures, got {len(images)}",
                "give one per camera it was trained with",
            )
        pixels = self.preprocess(images[: self.config.head.num_images])
        pixels = torch.from_numpy(pixels)[None].to(self.device, self.dtype)
        ids = self._ids(text)
        proprio = self._proprio(observation, unnorm_key)
        timer.mark("preprocess")
        with torch.inference_mode():
            context = self.model.context(ids, pixels, proprio)
            timer.mark("vision")
            normalised, tokens = self._act(context)
            timer.mark("language")
        epsilon = OFT_EPSILON if self.config.head.decoding == "parallel" else 0.0
        actions = normalisation.denormalise(normalised, epsilon)
        if not np.isfinite(actions).all():
            raise VlaError(*NOT_FINITE)
        return ActionChunk(actions, self.action_spec(unnorm_key), tokens, timer.finish())

    def warm_up(self, unnorm_key: str | Mapping | None = None) -> float:
        """Predict once on a grey picture, so that the first real one is not slow; milliseconds."""
        size = self.config.towers[0].image_size
        grey = np.full((size, size, 3), 128, np.uint8)
        images = {f"camera_{i}": grey for i in range(self.config.head.num_images)}
        state = np.zeros(self.config.head.proprio_dim, np.float32)
        observation = Observation(images, "warm up", state)
        key = unnorm_key or next(iter(self.config.norm_stats), "normalized")
        return self.predict_action(observation, unnorm_key=key).timing["total"]

    def _act(self, context: torch.Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        """Normalised actions float64 [T, D], and the tokens they came from."""
        head = self.config.head
        if head.type == "l1":
            return self.model.predict_chunk(context)[0].double().cpu().numpy(), None
        if head.decoding == "parallel":
            tokens = self.model.parallel_tokens(context)[0].cpu().numpy()
        else:
            tokens = self.model.generate_tokens(context).cpu().numpy()
        if (tokens < 0).any():
            raise VlaError(*NOT_FINITE)
        return self.tokens.decode(tokens), tokens

    def _ids(self, instruction: str) -> torch.Tensor:
        if instruction not in self._prompts:
            if len(self._prompts) > 256:
                self._prompts.clear()
            ids = self.prompt(instruction)
            self._prompts[instruction] = torch.tensor([ids], device=self.device)
        return self._prompts[instruction]

    def _proprio(self, observation: Observation, unnorm_key) -> torch.Tensor | None:
        wanted = self.config.head.proprio_dim
        if not wanted:
            return None
        state = observation.state
        if state is None or len(state) != wanted:
            have = "none" if state is None else len(state)
            raise ObservationError(
                f"the model needs a state of {wanted} numbers, got {have}",
                "give the robot's state",
            )
        if not np.isfinite(state).all():
            raise ObservationError("the state holds numbers that are not finite", "mend it")
        name, _ = find_statistics(self.action_spaces, unnorm_key)
        statistics = self.action_spaces.get(name, {}).get("proprio")
        if statistics is None:
            raise VlaError(f"statistics {name!r} have no 'proprio'", "add them to the checkpoint")
        values = Normalisation.from_statistics(statistics).normalise(np.asarray(state, np.float64))
        return torch.from_numpy(values)[None].to(self.device, self.dtype)


class _Timer:
    """Milliseconds by stage; waits for the device so that each stage pays for itself."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.begin = self.last = time.perf_counter()
        self.stages: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        if self.cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.stages[stage] = 1e3 * (now - self.last)
        self.last = now

    def finish(self) -> dict[str, float]:
        return {**self.stages, "total": 1e3 * (time.perf_counter() - self.begin)}
