"""`FlowPolicy`: what the flow-matching families have in common as a `Policy`."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_inference.errors import CheckpointError, ObservationError, VlaError
from vla_inference.policies.base import Contract, LoadOptions, no_chunking
from vla_inference.policies.chunking import GUIDED, TRAINED, Continuation
from vla_inference.policies.lerobot.base import LeRobotPolicy, contract_of
from vla_inference.policies.lerobot.checkpoint import ACTION, LeRobotCheckpoint
from vla_inference.policies.lerobot.flow import FlowSizes, Guide, Inputs, Solve, sample
from vla_inference.policies.lerobot.rtc import guide_to
from vla_inference.policies.stage_timer import StageTimer
from vla_inference.quantization.formats import read_quantization
from vla_inference.quantization.rounding import quantize_model
from vla_inference.quantization.swap import make_dense
from vla_inference.types import ActionChunk, Observation, check_instruction

if TYPE_CHECKING:
    from vla_inference.policies.lerobot.cuda.engine import FlowEngine
    from vla_inference.policies.lerobot.cuda.network import CudaNetwork

LANGUAGE = "language.layers"  # whose weights can be quantised

# Of config.json: most steps of an old chunk that the model was trained to complete; 0: none.
# Source: huggingface/lerobot, pull request 4056.
TRAINED_DELAY = "rtc_training_max_delay"


class FlowPolicy(LeRobotPolicy):
    """A model that moves noise to actions in a few steps.

    Noise comes from a generator of its own: `seed` makes answers repeat. engine: answers one
    observation at a time; batches, and observations that do not fit it, take the plain path over
    the same weights.
    """

    model: nn.Module
    chunking: tuple[str, ...] = (GUIDED,)

    def __init__(
        self,
        checkpoint: LeRobotCheckpoint,
        tokenizer: Any,
        options: LoadOptions,
        sizes: FlowSizes,
    ):
        super().__init__(checkpoint, options, flow_contract(checkpoint, sizes))
        self.tokenizer, self.sizes = tokenizer, sizes
        self.trained_delay = checkpoint.settings.count(TRAINED_DELAY, 0, least=0)
        if self.trained_delay:
            self.chunking = (GUIDED, TRAINED)
        self.engine: FlowEngine | None = None
        self.seed(0)

    def prepare(self, options: LoadOptions) -> None:
        """Quantises the language model and makes the engine, as the options say. Once, by a
        family, when the weights are there."""
        format, _ = read_quantization(options.quantization, options.dtype)
        if format is not None:
            quantize_model(self.model, format, where=LANGUAGE)
            self.name += f":{format.name}"  # results tell it from the checkpoint as it is
            if self.device.type == "cpu":
                make_dense(self.model, self.dtype)
        if options.engine == "torch":
            from vla_inference.engines.cuda.engine import usual_matmul_by
            from vla_inference.policies.lerobot.cuda.engine import FlowEngine, room

            by = (format.activations if format else "") or usual_matmul_by()
            most = room(len(self.checkpoint.cameras), self.sizes, self.device, self.dtype)
            with torch.no_grad():
                network = self.network(most.images.shape[1], most.words.shape[1], by)
            self.engine = FlowEngine(self.model, network, most)
            self.placement = f"{self.device} by engine torch"

    def seed(self, seed: int) -> None:
        """Begins the row of random numbers again."""
        self.random = torch.Generator().manual_seed(seed)

    # -- what a family says -------------------------------------------------------------------

    @abstractmethod
    def prompt(self, instruction: str, state: np.ndarray) -> str:
        """The text that the tokenizer is given. state: [S], normalised."""

    @abstractmethod
    def image(self, image: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """uint8 [H, W, 3] -> float32 [3, H', W'] in -1 to 1, made on the device"""

    def tokens(self, prompt: str) -> list[int]:
        """Ids of a prompt."""
        return self.tokenizer.encode(prompt, add_special_tokens=False).ids

    @abstractmethod
    def begin(self, inputs: Inputs) -> Callable[[Tensor, Tensor], Tensor]:
        """Reads the observations; returns the velocity of actions [B, T, D] at times [B], or
        [B, T] where each action has its own."""

    def network(self, images: int, words: int, matmul_by: str) -> CudaNetwork:
        """The model on CUDA, of a family that has engine "torch"; see `CudaNetwork`."""
        raise NotImplementedError

    def solver(self, inputs: Inputs) -> Solve:
        """Reads the observations; returns what makes actions of noise, on the plain path."""
        velocity, steps = self.exact(self.begin(inputs)), self.sizes.steps
        return lambda noise, guide, held: sample(velocity, noise, steps, guide, held)

    # -- prediction ---------------------------------------------------------------------------

    def warm_up(self) -> float:
        begun = time.perf_counter()
        super().warm_up()
        if self.engine is not None:
            self.engine.warm_up()
        return 1e3 * (time.perf_counter() - begun)

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return self.predict_batch(observations)

    def continue_chunk(self, observation: Observation, after: Continuation) -> ActionChunk:
        return self.predict_batch([observation], after=after)[0]

    @torch.inference_mode()
    def predict_batch(
        self,
        observations: Sequence[Observation],
        *,
        noise: np.ndarray | None = None,
        after: Continuation | None = None,
    ) -> list[ActionChunk]:
        """The next chunk of each observation.

        noise: where to begin, float32 [B, T, action_dim]; drawn where it is None.
        after: continue an old chunk, by real-time chunking; of one observation.
        """
        timer = StageTimer(self.device)
        inputs = self.inputs(observations)
        timer.mark("preprocess")
        solve = self._read(inputs)
        timer.mark("vision")
        guide, held = self._continued(observations[0], after) if after else (None, None)
        x = solve(self._noise(noise, len(observations)), guide, held)
        timer.mark("language")
        return self.answers(x, observations, timer)

    def _read(self, inputs: Inputs) -> Solve:
        """Reads the observations, by the engine where there is one for them."""
        if self.engine is not None and self.engine.fits(inputs):
            return self.engine.begin(inputs)
        return self.solver(inputs)

    def exact(self, velocity: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
        """The same for float32 actions, whatever the network computes in."""
        return lambda x, time: velocity(x.to(self.dtype), time).float()

    def inputs(self, observations: Sequence[Observation]) -> Inputs:
        """What the network reads of observations that have the same cameras."""
        images, texts, states = [], [], []
        for observation in observations:
            seen = self.cameras(observation).values()
            images.append(torch.stack([self.image(image, self.device) for image in seen]))
            state = self.state(observation.state)
            check_instruction(observation.instruction)
            texts.append(self.prompt(observation.instruction, state))
            states.append(np.pad(state, (0, self.sizes.state_dim - len(state))))
        if len({len(i) for i in images}) > 1:
            raise ObservationError(
                "the observations of a batch have different cameras", "give them one by one"
            )
        words, mask = self._words(texts)
        return Inputs(
            torch.stack(images).to(self.device, self.dtype),
            words.to(self.device),
            mask.to(self.device),
            torch.from_numpy(np.stack(states).astype(np.float32)).to(self.device, self.dtype),
        )

    def _words(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids [B, L] and their mask, cut at the most that the model takes."""
        rows = [self.tokens(text)[: self.sizes.words] for text in texts]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        return ids, mask

    def _noise(self, given: np.ndarray | None, count: int) -> Tensor:
        shape = (count, self.chunk, self.sizes.action_dim)
        if given is None:
            return torch.randn(shape, generator=self.random).to(self.device)
        if given.shape != shape:
            raise VlaError(f"the noise has shape {given.shape}", f"give {shape}")
        return torch.from_numpy(given.astype(np.float32)).to(self.device)

    def _continued(
        self, observation: Observation, after: Continuation
    ) -> tuple[Guide | None, Tensor | None]:
        """What `sample` is told of the old chunk: a guide, or the steps that are held."""
        by = after.chunking
        if by.form not in self.chunking:
            raise no_chunking(self, by.form)
        previous = np.asarray(after.previous, np.float32)
        if previous.shape[1] != len(self.spec):
            raise VlaError(
                f"the old chunk has steps of {previous.shape[1]} numbers",
                f"give [steps, {len(self.spec)}]",
            )
        left = previous - self.origin(observation)
        left = self.checkpoint.normalisers[ACTION].normalise(left).astype(np.float32)
        left = np.pad(left, ((0, 0), (0, self.sizes.action_dim - left.shape[1])))[None]
        given = torch.from_numpy(left).to(self.device)
        if by.form == TRAINED:
            return None, given[:, : min(after.delay, self.trained_delay, self.chunk)]
        return guide_to(given, after.delay, self.chunk, by), None


def flow_contract(checkpoint: LeRobotCheckpoint, sizes: FlowSizes) -> Contract:
    if max(checkpoint.state_dim - sizes.state_dim, checkpoint.action_dim - sizes.action_dim) > 0:
        raise CheckpointError(
            f"{checkpoint.folder}: state of {checkpoint.state_dim} and actions of "
            f"{checkpoint.action_dim} numbers do not fit a network for {sizes.state_dim} and "
            f"{sizes.action_dim}",
            "copy config.json again",
        )
    return contract_of(checkpoint, sizes.chunk, sizes.image_size)
