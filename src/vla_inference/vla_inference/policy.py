"""`Policy`: an observation in, an action chunk out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vla_inference.action_specs import check_statistics, statistics_spec
from vla_inference.actions import ActionTokens, Normalisation, find_statistics, unit_statistics
from vla_inference.checkpoint import load_config, load_model, load_tokenizer
from vla_inference.engines import Engine, left_out, make_engine
from vla_inference.errors import CheckpointError, ObservationError, VlaError
from vla_inference.hub import resolve
from vla_inference.model import VLA
from vla_inference.preprocess import PicturePreprocessor, PromptTokenizer
from vla_inference.published import checkpoint_name
from vla_inference.quantization.formats import read_quantization
from vla_inference.quantization.swap import WHERE, make_dense
from vla_inference.stage_timer import StageTimer
from vla_inference.types import ActionChunk, ActionSpec, DimSpec, Observation

NOT_FINITE = ("the model answered with numbers that are not finite", "check its weights")
OFT_EPSILON = 1e-8  # OpenVLA-OFT adds it to the range when it un-normalises

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class PartialAction:
    """One dimension of one step, as soon as it is decoded, in the unit of its `DimSpec`."""

    step: int
    index: int
    dim: DimSpec
    value: float


@dataclass
class _Request:
    """What a prediction needs beside the model's inputs."""

    normalisation: Normalisation
    spec: ActionSpec
    return_tensors: str
    count_unrestricted: bool


class Policy:
    """A model with its tokenizer, its picture preprocessing and its action statistics.

    Example::

        policy = Policy.from_pretrained("models/stack-small")
        chunk = policy.predict_action(image, instruction="stack the red block on the green one")
        chunk.actions  # float32 [T, 7]: m, rad, gripper 1 open
    """

    def __init__(
        self,
        model: VLA,
        tokenizer,
        device,
        dtype,
        name: str = "vla",
        engine: str | Engine = "plain",
    ):
        self.model, self.config, self.name = model, model.config, name
        self.engine = make_engine(engine, model) if isinstance(engine, str) else engine
        self.device, self.dtype = torch.device(device), dtype
        self.preprocess = PicturePreprocessor(self.config)
        self.prompt = PromptTokenizer(self.config, tokenizer)
        self.tokens = ActionTokens(self.config.action_vocab_end, self.config.n_action_bins)
        self._prompts: dict[str, torch.Tensor] = {}
        self._requests: dict[tuple, _Request] = {}

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike,
        *,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        engine: str = "plain",
        vision: str = "",
        quantization: str | None = None,
        draft: bool = False,
    ) -> Policy:
        """Load a checkpoint: a folder, or a Hugging Face Hub id like `openvla/openvla-7b`.

        device: "cpu", "cuda", ...; None takes CUDA where there is one.
        dtype: "float32", "bfloat16" or "float16"; None takes float32 on CPU, bfloat16 else.
        revision: branch, tag or commit of a Hub id.
        overrides: keys of config.json that win over the file's, such as {"center_crop": True} or
            {"action_head": {"num_images": 1}}; `vla.json` beside config.json does the same.
        engine: how the model is run, by name (`engines.ENGINES`): "plain", "torch", "tvm:FOLDER".
        vision: "onnx:FOLDER" or "tensorrt:FOLDER" for the vision towers; "" for the engine's own.
        quantization: format of the language model's weights (`quantization.FORMATS`, or "fp16",
            "bf16", "fp32"), rounded as they are loaded; None leaves them as they are stored. The
            plain engine on the CPU calculates with dense weights that hold the rounded values.
        draft: the last action's tokens are tried first (`engines.draft`).
        """
        leave_out = left_out(engine, vision)
        format, dtype = read_quantization(quantization or "", dtype)
        if format is not None and any(WHERE.startswith(p.rstrip(".")) for p in leave_out):
            raise VlaError(
                f"engine {engine!r} brings the language model's weights with it",
                "leave the quantisation out, or compile for it",
            )
        folder = resolve(path_or_id, revision)
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
        config = load_config(folder, overrides)
        check_statistics(config, folder)
        tokenizer = load_tokenizer(folder)
        words, rows = tokenizer.get_vocab_size(), config.llm.vocab_size
        if words > rows:
            raise CheckpointError(
                f"{folder / 'tokenizer.json'} has {words} tokens, the model {rows} embeddings",
                "the two must come from one training run",
            )
        if quantization and format is None and config.quantization:
            raise CheckpointError(
                f"{folder} is quantised to {config.quantization}, {quantization} was asked",
                "leave the quantisation out, or give the checkpoint that it was made from",
            )
        model = load_model(folder, device, DTYPES[dtype], config, leave_out, format)
        if engine == "plain" and device == "cpu" and model.config.quantization:
            make_dense(model, DTYPES[dtype])
        run_by = make_engine(engine, model, vision=vision, checkpoint=folder, draft=draft)
        name = checkpoint_name(folder)
        if format is not None and not config.quantization:
            name += f":{format.name}"  # results tell it from the checkpoint as it is
        return cls(model, tokenizer, device, DTYPES[dtype], name, run_by)

    @property
    def quantization(self) -> str:
        """Format of the language model's weights; "": they are not quantised."""
        return self.config.quantization

    # -- what the actions mean ----------------------------------------------------------------

    @property
    def action_spaces(self) -> dict[str, Mapping]:
        """Statistics by name, "normalized" (actions in [-1, 1]) among them."""
        unit = unit_statistics(self.config.head.action_dim)
        return {**self.config.norm_stats, "normalized": {"action": unit}}

    def action_spec(self, action_space: str | Mapping | None = None) -> ActionSpec:
        """Name, unit, frame and polarity of each action dimension."""
        _, space = self._space(action_space)
        spec = statistics_spec(space, self.config.head.action_dim)
        if len(spec) != self.config.head.action_dim:
            raise VlaError(
                f"the statistics' spec names {len(spec)} dimensions, the model's actions have "
                f"{self.config.head.action_dim}",
                "mend the statistics",
            )
        return spec

    def _space(self, action_space: str | Mapping | None) -> tuple[str, Mapping]:
        """Name and whole entry (action, proprio, spec) of an action space."""
        name, statistics = find_statistics(self.action_spaces, action_space)
        if isinstance(action_space, Mapping):
            return name, action_space if "action" in action_space else {"action": statistics}
        return name, self.action_spaces[name]

    # -- prediction ---------------------------------------------------------------------------

    def predict_action(
        self,
        observation: Observation | np.ndarray,
        instruction: str | None = None,
        *,
        action_space: str | Mapping | None = None,
        unnorm_key: str | Mapping | None = None,
        return_tensors: str = "np",
        stream: Callable[[PartialAction], None] | None = None,
        count_unrestricted: bool = False,
    ) -> ActionChunk:
        """The next actions for one observation.

        observation: an `Observation`, or one picture uint8 [H, W, 3].
        instruction: overrides the observation's.
        action_space: "normalized" ([-1, 1]), the name of the statistics to un-normalise with, or
            statistics themselves; None where the model has only one.
        unnorm_key: the original's name for the same.
        return_tensors: "np", or "pt" for a tensor on the policy's device.
        stream: called with each dimension as soon as it is decoded.
        count_unrestricted: fill in `ActionChunk.unrestricted`, at the price of all logits.
        """
        arguments = {
            "action_space": one_name(action_space, unnorm_key),
            "return_tensors": return_tensors,
            "count_unrestricted": count_unrestricted,
        }
        if stream is None:
            return self._predict([_observation(observation)], [instruction], **arguments)[0]
        parts = self.stream_action(observation, instruction, **arguments)
        while True:
            try:
                stream(next(parts))
            except StopIteration as end:
                return end.value

    def predict_batch(
        self,
        observations: Sequence[Observation | np.ndarray],
        instruction: str | Sequence[str] | None = None,
        *,
        action_space: str | Mapping | None = None,
        unnorm_key: str | Mapping | None = None,
        return_tensors: str = "np",
        count_unrestricted: bool = False,
    ) -> list[ActionChunk]:
        """Several observations at once, as one pass for all whose prompts are equally long.

        instruction: one for all, or one each. `timing` is that of the pass an answer came from.
        """
        several = [_observation(o) for o in observations]
        if instruction is None or isinstance(instruction, str):
            texts: list[str | None] = [instruction] * len(several)
        else:
            texts = list(instruction)
        if len(texts) != len(several):
            raise ObservationError(
                f"{len(several)} observations came with {len(texts)} instructions",
                "give one for all, or one each",
            )
        space = one_name(action_space, unnorm_key)
        return self._predict(several, texts, space, return_tensors, count_unrestricted)

    def stream_action(
        self,
        observation: Observation | np.ndarray,
        instruction: str | None = None,
        *,
        action_space: str | Mapping | None = None,
        unnorm_key: str | Mapping | None = None,
        return_tensors: str = "np",
        count_unrestricted: bool = False,
    ) -> Iterator[PartialAction]:
        """Yields each dimension as soon as it is decoded; the generator returns the ActionChunk.

        Models that decode in parallel give all of them after their one pass.
        """
        request = self._request(
            one_name(action_space, unnorm_key), return_tensors, count_unrestricted
        )
        timer = StageTimer(self.device)
        observation = _observation(observation)
        space = one_name(action_space, unnorm_key)
        context = self._context([observation], [instruction], space, timer)
        if self.config.head.decoding == "parallel":
            chunk = self._finish(*self._act(context, request, timer), request, timer)[0]
            values = np.asarray(chunk.actions.cpu() if return_tensors == "pt" else chunk.actions)
            for step, row in enumerate(values):
                for i, dim in enumerate(request.spec.dims):
                    yield PartialAction(step, i, dim, float(row[i]))
            return chunk
        tokens: list[torch.Tensor] = []
        hidden: list[torch.Tensor] = []
        for i, (token, state) in enumerate(_inferring(self.engine.generate(context))):
            if int(token) < 0:
                raise VlaError(*NOT_FINITE)
            timer.mark("decode" if i else "prefill")
            tokens.append(token)
            hidden.append(state)
            row = np.zeros(len(request.spec))
            row[i] = self.tokens.decode(token.cpu().numpy())[0]
            value = float(request.normalisation.denormalise(row, self._epsilon)[i])
            yield PartialAction(0, i, request.spec.dims[i], float(np.float32(value)))
        result = self._decoded(torch.stack(tokens, 1)[:, None], hidden, request)
        return self._finish(*result, request, timer)[0]

    def warm_up(self, unnorm_key: str | Mapping | None = None) -> float:
        """Predict once on a grey picture, so that the first real one is not slow; milliseconds."""
        size = self.config.towers[0].image_size
        grey = np.full((size, size, 3), 128, np.uint8)
        images = {f"camera_{i}": grey for i in range(self.config.head.num_images)}
        state = np.zeros(self.config.head.proprio_dim, np.float32)
        observation = Observation(images, "warm up", state)
        key = unnorm_key or next(iter(self.config.norm_stats), "normalized")
        return self.predict_action(observation, action_space=key).timing["total"]

    # -- its steps ----------------------------------------------------------------------------

    @property
    def _epsilon(self) -> float:
        return OFT_EPSILON if self.config.head.decoding == "parallel" else 0.0

    def _request(
        self, action_space: str | Mapping | None, return_tensors: str, count_unrestricted: bool
    ) -> _Request:
        key = (action_space, return_tensors, count_unrestricted)
        if not isinstance(action_space, Mapping) and key in self._requests:
            return self._requests[key]
        if return_tensors not in ("np", "pt"):
            raise VlaError(f"unknown return_tensors {return_tensors!r}", "use 'np' or 'pt'")
        _, statistics = find_statistics(self.action_spaces, action_space)
        bounds = self.config.head.bounds
        normalisation = Normalisation.from_statistics(statistics, bounds=bounds)
        if len(normalisation) != self.config.head.action_dim:
            raise VlaError(
                f"the statistics have {len(normalisation)} dimensions, the model's actions "
                f"{self.config.head.action_dim}",
                "choose those it was trained with",
            )
        spec = self.action_spec(action_space)
        request = _Request(normalisation, spec, return_tensors, count_unrestricted)
        if not isinstance(action_space, Mapping):
            self._requests[key] = request
        return request

    def _predict(
        self,
        observations: Sequence[Observation],
        instructions: Sequence[str | None],
        action_space: str | Mapping | None = None,
        return_tensors: str = "np",
        count_unrestricted: bool = False,
    ) -> list[ActionChunk]:
        request = self._request(action_space, return_tensors, count_unrestricted)
        texts = [
            o.instruction if text is None else text
            for o, text in zip(observations, instructions, strict=True)
        ]
        groups: dict[int, list[int]] = {}
        for i, text in enumerate(texts):
            groups.setdefault(self._ids(text).shape[1], []).append(i)
        chunks: dict[int, ActionChunk] = {}
        for group in groups.values():
            timer = StageTimer(self.device)
            context = self._context(
                [observations[i] for i in group], [texts[i] for i in group], action_space, timer
            )
            answers = self._finish(*self._act(context, request, timer), request, timer)
            chunks.update(zip(group, answers, strict=True))
        return [chunks[i] for i in range(len(observations))]

    @torch.inference_mode()
    def _context(
        self,
        observations: Sequence[Observation],
        instructions: Sequence[str | None],
        action_space: str | Mapping | None,
        timer: StageTimer,
    ) -> torch.Tensor:
        """The embeddings that the language model begins with: [B, n, H]"""
        wanted = self.config.head.num_images
        pictures, ids, proprio = [], [], []
        for observation, text in zip(observations, instructions, strict=True):
            images = list(observation.images.values())
            if len(images) < wanted:
                raise ObservationError(
                    f"the model needs {wanted} pictures, got {len(images)}",
                    "give one per camera it was trained with",
                )
            pictures.append(torch.from_numpy(self.preprocess.sized(images[:wanted])))
            ids.append(self._ids(observation.instruction if text is None else text))
            if self.config.head.proprio_dim:
                proprio.append(self._proprio(observation, action_space))
        states = torch.cat(proprio) if proprio else None
        timer.mark("preprocess")
        context = self.engine.observe(torch.cat(ids), torch.stack(pictures), states)
        timer.mark("vision")
        return context

    @torch.inference_mode()
    def _act(
        self, context: torch.Tensor, request: _Request, timer: StageTimer
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Normalised actions float64 [B, T, D]; tokens alike and counts [B], or None."""
        head = self.config.head
        if head.decoding == "autoregressive":
            tokens, hidden = [], []
            for token, state in self.engine.generate(context):
                tokens.append(token)
                hidden.append(state)
                if len(tokens) == 1:
                    timer.mark("prefill")
            result = self._decoded(torch.stack(tokens, 1)[:, None], hidden, request)
            timer.mark("decode")
            return result
        slots = self.engine.action_hidden(context)
        if head.type == "l1":
            result = self.engine.read_chunk(slots).double().cpu().numpy(), None, None
        else:
            states = list(slots.unbind(1))
            result = self._decoded(self.engine.chunk_tokens(slots), states, request)
        timer.mark("language")
        return result

    @torch.inference_mode()
    def _decoded(
        self, tokens: torch.Tensor, hidden: list[torch.Tensor], request: _Request
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """tokens: [B, T, D]; hidden: the states they were read from, T * D times [B, H]."""
        ids = tokens.cpu().numpy()
        if (ids < 0).any():
            raise VlaError(*NOT_FINITE)
        counts = None
        if request.count_unrestricted:
            states = torch.stack(hidden, 1)
            counts = self.engine.differs(tokens.flatten(1), states).sum(1).cpu().numpy()
        return self.tokens.decode(ids), ids, counts

    def _finish(
        self,
        normalised: np.ndarray,
        tokens: np.ndarray | None,
        counts: np.ndarray | None,
        request: _Request,
        timer: StageTimer,
    ) -> list[ActionChunk]:
        actions = request.normalisation.denormalise(normalised, self._epsilon)
        if not np.isfinite(actions).all():
            raise VlaError(*NOT_FINITE)
        timing, chunks = timer.finish(), []
        for i, values in enumerate(actions.astype(np.float32)):
            chunk = ActionChunk(
                torch.from_numpy(values).to(self.device)
                if request.return_tensors == "pt"
                else values,
                request.spec,
                None if tokens is None else tokens[i],
                dict(timing),
                None if counts is None else int(counts[i]),
            )
            chunks.append(chunk)
        return chunks

    def _ids(self, instruction: str) -> torch.Tensor:
        if instruction not in self._prompts:
            if len(self._prompts) > 256:
                self._prompts.clear()
            ids = self.prompt(instruction)
            self._prompts[instruction] = torch.tensor([ids], device=self.device)
        return self._prompts[instruction]

    def _proprio(
        self, observation: Observation, action_space: str | Mapping | None
    ) -> torch.Tensor:
        wanted = self.config.head.proprio_dim
        state = observation.state
        if state is None or len(state) != wanted:
            have = "none" if state is None else len(state)
            raise ObservationError(
                f"the model needs a state of {wanted} numbers, got {have}",
                "give the robot's state",
            )
        if not np.isfinite(state).all():
            raise ObservationError("the state holds numbers that are not finite", "mend it")
        name, space = self._space(action_space)
        statistics = space.get("proprio")
        if statistics is None:
            raise VlaError(f"statistics {name!r} have no 'proprio'", "add them to the checkpoint")
        normalisation = Normalisation.from_statistics(
            statistics, f"the proprio statistics {name!r}", self.config.head.bounds
        )
        if len(normalisation) != wanted:
            raise VlaError(
                f"the proprio statistics {name!r} have {len(normalisation)} dimensions, the "
                f"model's state {wanted}",
                "choose those it was trained with",
            )
        values = normalisation.normalise(np.asarray(state, np.float64))
        return torch.from_numpy(values)[None]


def one_name(action_space: str | Mapping | None, unnorm_key: str | Mapping | None):
    """`action_space` and `unnorm_key` are two names of one thing."""
    if action_space is not None and unnorm_key is not None:
        raise VlaError(
            "both action_space and unnorm_key were given", "they mean the same: drop one"
        )
    return unnorm_key if action_space is None else action_space


def _observation(given: Observation | np.ndarray) -> Observation:
    if isinstance(given, np.ndarray):
        return Observation({"image": given})
    if not isinstance(given, Observation):
        raise ObservationError(
            f"the observation is a {type(given).__name__}", "give an Observation or one picture"
        )
    return given


@torch.inference_mode()
def _inferring(steps: Iterator) -> Iterator:
    """Without gradients inside the steps, and with the caller's own setting between them."""
    yield from steps
