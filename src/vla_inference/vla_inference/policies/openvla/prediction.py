"""Runs the decoder and the action head, and returns action chunks."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from vla_inference.engines import Engine
from vla_inference.errors import VlaError
from vla_inference.openvla.action_codec import ChunkTokens
from vla_inference.openvla.action_tokens import ActionTokens
from vla_inference.openvla.config import ModelConfig
from vla_inference.openvla.model import VLA
from vla_inference.policies.normalisation import Normalisation
from vla_inference.policies.stage_timer import StageTimer
from vla_inference.types import ActionChunk, ActionSpec, DimSpec

NOT_FINITE = ("the model answered with numbers that are not finite", "check its weights")
OFT_EPSILON = 1e-8  # OpenVLA-OFT adds it to the range when it un-normalises


def action_tokens(model: VLA) -> ActionTokens | ChunkTokens:
    """What a model's action tokens mean."""
    c = model.config
    if c.head.codec:
        return ChunkTokens(model.action_codec, c.action_vocab_end, c.head.action_dim)
    return ActionTokens(c.action_vocab_end, c.n_action_bins)


@dataclass(frozen=True)
class PartialAction:
    """One decoded dimension of one step, in the unit of its `DimSpec`."""

    step: int
    index: int
    dim: DimSpec
    value: float


@dataclass
class ActionForm:
    """In what form the caller wants the actions."""

    normalisation: Normalisation
    spec: ActionSpec
    return_tensors: str
    count_unrestricted: bool


@dataclass
class _Answer:
    """Normalised actions float64 [B, T, D]; tokens alike and counts [B], or None."""

    normalised: np.ndarray
    tokens: np.ndarray | None = None
    counts: np.ndarray | None = None


class Prediction:
    """Runs one pass of an engine and times its remaining stages."""

    def __init__(
        self,
        engine: Engine,
        config: ModelConfig,
        tokens: ActionTokens | ChunkTokens,
        request: ActionForm,
        device: torch.device,
    ):
        self.engine, self.head, self.tokens = engine, config.head, tokens
        self.request, self.device = request, device
        self.timer = StageTimer(device)

    @property
    def _epsilon(self) -> float:
        return OFT_EPSILON if self.head.decoding == "parallel" else 0.0

    def chunks(
        self, context: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> list[ActionChunk]:
        """One chunk per row of the context [B, n, H]. lengths: see `ActionDecoder.generate`."""
        return self._finish(self._act(context, lengths))

    def stream(self, context: torch.Tensor) -> Generator[PartialAction, None, ActionChunk]:
        """Streams dimensions for a context of one row; the generator returns the ActionChunk."""
        request = self.request
        if self.head.decoding == "parallel" or self.head.codec:
            chunk = self.chunks(context)[0]
            actions: Any = chunk.actions
            values = np.asarray(actions.cpu() if request.return_tensors == "pt" else actions)
            for step, row in enumerate(values):
                for i, dim in enumerate(request.spec.dims):
                    yield PartialAction(step, i, dim, float(row[i]))
            return chunk
        tokens: list[torch.Tensor] = []
        hidden: list[torch.Tensor] = []
        for i, (token, state) in enumerate(_inferring(self.engine.generate(context))):
            if int(token) < 0:
                raise VlaError(*NOT_FINITE)
            self.timer.mark("decode" if i else "prefill")
            tokens.append(token)
            hidden.append(state)
            row = np.zeros(len(request.spec))
            row[i] = self.tokens.decode(token.cpu().numpy())[0]
            value = float(request.normalisation.denormalise(row, self._epsilon)[i])
            yield PartialAction(0, i, request.spec.dims[i], float(np.float32(value)))
        return self._finish(self._decoded(torch.stack(tokens, 1)[:, None], hidden))[0]

    @torch.inference_mode()
    def _act(self, context: torch.Tensor, lengths: torch.Tensor | None) -> _Answer:
        head, timer = self.head, self.timer
        if head.decoding == "autoregressive":
            tokens, hidden = [], []
            for token, state in self.engine.generate(context, lengths):
                tokens.append(token)
                hidden.append(state)
                if len(tokens) == 1:
                    timer.mark("prefill")
            ids = torch.stack(tokens, 1)[:, None]
            timer.mark("decode")
            return self._decoded(ids, hidden)
        slots = self.engine.action_hidden(context)
        if head.type == "l1":
            actions = self.engine.read_chunk(slots).double()
            timer.mark("language")
            return _Answer(actions.cpu().numpy())
        ids = self.engine.chunk_tokens(slots)
        timer.mark("language")
        return self._decoded(ids, list(slots.unbind(1)))

    @torch.inference_mode()
    def _decoded(self, tokens: torch.Tensor, hidden: list[torch.Tensor]) -> _Answer:
        """tokens: [B, T, D]; hidden: the states they were read from, T * D times [B, H]."""
        ids = tokens.cpu().numpy()
        if (ids < 0).any():
            raise VlaError(*NOT_FINITE)
        counts = None
        if self.request.count_unrestricted:
            states = torch.stack(hidden, 1)
            counts = self.engine.differs(tokens.flatten(1), states).sum(1).cpu().numpy()
        return _Answer(self.tokens.decode(ids), ids, counts)

    def _finish(self, answer: _Answer) -> list[ActionChunk]:
        request, tokens, counts = self.request, answer.tokens, answer.counts
        actions = request.normalisation.denormalise(answer.normalised, self._epsilon)
        if not np.isfinite(actions).all():
            raise VlaError(*NOT_FINITE)
        timing, chunks = self.timer.finish(), []
        for i, values in enumerate(actions.astype(np.float32)):
            tensor = torch.from_numpy(values).to(self.device)
            chunk = ActionChunk(
                cast(Any, tensor) if request.return_tensors == "pt" else values,
                request.spec,
                None if tokens is None else tokens[i],
                dict(timing),
                None if counts is None else int(counts[i]),
            )
            chunks.append(chunk)
        return chunks


@torch.inference_mode()
def _inferring(steps: Iterator) -> Iterator:
    """Disables gradients inside the steps and restores the caller's setting between them."""
    yield from steps
