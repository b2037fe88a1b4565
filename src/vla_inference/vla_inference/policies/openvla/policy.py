"""`OpenVLAPolicy`: the `Policy` of OpenVLA, OpenVLA-OFT and MiniVLA."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from vla_inference.engines import Engine, make_engine
from vla_inference.errors import ObservationError, VlaError
from vla_inference.inputs.given import Seen, as_observation
from vla_inference.openvla.model import VLA
from vla_inference.openvla.preprocessing import ImagePreprocessor, PromptTokenizer
from vla_inference.policies.base import LoadOptions, Policy
from vla_inference.policies.openvla.action_spaces import ActionSpaces, AskedSpace, one_name
from vla_inference.policies.openvla.loading import LoadPlan, check_request, load_parts, needs
from vla_inference.policies.openvla.prediction import (
    ActionForm,
    PartialAction,
    Prediction,
    action_tokens,
)
from vla_inference.policies.stage_timer import StageTimer
from vla_inference.types import ActionChunk, ActionSpec, Observation


class OpenVLAPolicy(Policy):
    """A model with its tokenizer, its image preprocessing and its action statistics.

    Example::

        policy = OpenVLAPolicy.from_pretrained("models/stack-small")
        chunk = policy.predict_action(image, instruction="stack the red block on the green one")
        chunk.actions  # float32 [T, 7]: m, rad, gripper 1 open
    """

    def __init__(
        self,
        model: VLA,
        tokenizer: Any,
        device: str | torch.device,
        dtype: torch.dtype,
        name: str = "vla",
        engine: str | Engine = "plain",
    ):
        self.model, self.config, self.name = model, model.config, name
        self.engine = make_engine(engine, model) if isinstance(engine, str) else engine
        self.device, self.dtype = torch.device(device), dtype
        self.preprocess = ImagePreprocessor(self.config)
        self.prompt = PromptTokenizer(self.config, tokenizer)
        self.tokens = action_tokens(model)
        self._prompts: dict[str, torch.Tensor] = {}
        self.needs, self.chunk = needs(self.config), self.config.head.chunk
        self.placement = f"{self.device} by engine {self.engine.name}"
        self.action_space: AskedSpace = None
        self._spaces = ActionSpaces(self.config)
        self._requests: dict[tuple, ActionForm] = {}

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
    ) -> OpenVLAPolicy:
        """Load a checkpoint: a folder, or a Hugging Face Hub id like `openvla/openvla-7b`.

        device: "cpu", "cuda", ...; None takes CUDA where there is one.
        dtype: "float32", "bfloat16" or "float16"; None takes float32 on CPU, bfloat16 else.
        revision: branch, tag or commit of a Hub id.
        overrides: keys of config.json that win over the file's, such as {"center_crop": True} or
            {"action_head": {"num_images": 1}}; `vla.json` beside config.json does the same.
        engine: how the model is run, by name (`engines.ENGINES`): "plain", "torch", "tvm:FOLDER";
            "" for the fast one where it can run here.
        vision: "onnx:FOLDER" or "tensorrt:FOLDER" for the vision encoders; "" for the engine's
            own.
        quantization: format of the language model's weights (`quantization.FORMATS`, or "fp16",
            "bf16", "fp32"), rounded as they are loaded; None leaves them as they are stored. The
            plain engine on the CPU calculates with dense weights that hold the rounded values.
        draft: the last action's tokens are tried first (`engines.draft`).
        """
        options = LoadOptions.given(
            device=device,
            dtype=dtype,
            engine=engine,
            vision=vision,
            quantization=quantization,
            draft=draft,
        )
        return cls.load(check_request(path_or_id, options, revision, overrides))

    @classmethod
    def load(cls, plan: LoadPlan) -> OpenVLAPolicy:
        """Loads a request, in the requested action space; a model that reasons as one."""
        kind: type[OpenVLAPolicy] = cls
        if plan.config.reasoning_tokens:
            from vla_inference.policies.openvla.reasoning import ReasoningPolicy

            kind = ReasoningPolicy
        policy = kind(**load_parts(plan)._asdict())
        policy.configure(plan.options)
        return policy.in_space(plan.options.action_space or None)

    def configure(self, options: LoadOptions) -> None:
        """Takes the options that change how it answers; this kind has none."""

    @property
    def quantization(self) -> str:
        """Format of the language model's weights; "": they are not quantised."""
        return self.config.quantization

    # -- what the actions mean ----------------------------------------------------------------

    @property
    def action_spaces(self) -> dict[str, Mapping]:
        """Statistics by name, "normalized" (actions in [-1, 1]) among them."""
        return self._spaces.all

    def action_spec(self, action_space: AskedSpace = None) -> ActionSpec:
        """Name, unit, frame and polarity of each action dimension."""
        return self._spaces.spec(self._space(action_space))

    def in_space(self, action_space: AskedSpace) -> OpenVLAPolicy:
        """The same model with another default action space; None: the one it has."""
        if action_space is None:
            return self
        self._spaces.find(action_space)
        other = copy.copy(self)
        other.action_space = action_space
        return other

    def _space(self, action_space: AskedSpace, unnorm_key: AskedSpace = None) -> AskedSpace:
        asked = one_name(action_space, unnorm_key)
        return self.action_space if asked is None else asked

    def unknown_words(self, instruction: str) -> list[str]:
        return self.config.unknown_words(instruction)

    # -- prediction ---------------------------------------------------------------------------

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return self.predict_batch(observations)

    def predict_action(
        self,
        observation: Seen,
        instruction: str | None = None,
        *,
        action_space: AskedSpace = None,
        unnorm_key: AskedSpace = None,
        return_tensors: str = "np",
        stream: Callable[[PartialAction], None] | None = None,
        count_unrestricted: bool = False,
    ) -> ActionChunk:
        """The next action chunk for one observation.

        observation: an `Observation`, or one image uint8 [H, W, 3].
        instruction: overrides the observation's.
        action_space: "normalized" ([-1, 1]), the name of the statistics to un-normalise with, or
            statistics themselves; None where the model has only one.
        unnorm_key: the original's name for the same.
        return_tensors: "np", or "pt" for a tensor on the policy's device.
        stream: called with each dimension as soon as it is decoded.
        count_unrestricted: fill in `ActionChunk.unrestricted`, at the price of all logits.
        """
        how: dict[str, Any] = {
            "action_space": self._space(action_space, unnorm_key),
            "return_tensors": return_tensors,
            "count_unrestricted": count_unrestricted,
        }
        if stream is None:
            return self.predict_batch([observation], instruction, **how)[0]
        parts = self.stream_action(observation, instruction, **how)
        while True:
            try:
                stream(next(parts))
            except StopIteration as end:
                return end.value

    def predict_batch(
        self,
        observations: Sequence[Seen],
        instruction: str | Sequence[str] | None = None,
        *,
        action_space: AskedSpace = None,
        unnorm_key: AskedSpace = None,
        return_tensors: str = "np",
        count_unrestricted: bool = False,
    ) -> list[ActionChunk]:
        """Predicts for several observations, in one pass for all that the engine takes together.

        instruction: one for all, or one each. `timing` is that of the pass an answer came from.
        """
        if instruction is None or isinstance(instruction, str):
            texts: list[str | None] = [instruction] * len(observations)
        else:
            texts = list(instruction)
        if len(texts) != len(observations):
            raise ObservationError(
                f"{len(observations)} observations came with {len(texts)} instructions",
                "give one for all, or one each",
            )
        several = [as_observation(o, text) for o, text in zip(observations, texts, strict=True)]
        space = self._space(action_space, unnorm_key)
        request = self._request(space, return_tensors, count_unrestricted)
        chunks: dict[int, ActionChunk] = {}
        for group in self._groups(several):
            prediction = self._begin(request)
            seen = [several[i] for i in group]
            context, lengths = self._context(seen, space, prediction.timer)
            chunks.update(zip(group, prediction.chunks(context, lengths), strict=True))
        return [chunks[i] for i in range(len(several))]

    @torch.inference_mode()
    def look(self, observations: Sequence[Observation]) -> tuple[torch.Tensor, torch.Tensor]:
        """What a model that decodes in parallel has made of observations before it acts.

        The hidden states of its action slots [B, slots, H] and of the image patches [B, P, H].
        """
        if len({o.instruction for o in observations}) > 1:  # their prompts differ in length
            several = [self.look([o]) for o in observations]
            return torch.cat([s for s, _ in several]), torch.cat([p for _, p in several])
        context, _ = self._context(observations, self.action_space, StageTimer(self.device))
        return self.engine.patch_hidden(context)

    def stream_action(
        self,
        observation: Seen,
        instruction: str | None = None,
        *,
        action_space: AskedSpace = None,
        unnorm_key: AskedSpace = None,
        return_tensors: str = "np",
        count_unrestricted: bool = False,
    ) -> Generator[PartialAction, None, ActionChunk]:
        """Yields each dimension as soon as it is decoded; the generator returns the ActionChunk.

        Models that decode in parallel, or codes of whole chunks, give all of them at the end.
        """
        space = self._space(action_space, unnorm_key)
        prediction = self._begin(self._request(space, return_tensors, count_unrestricted))
        seen = as_observation(observation, instruction)
        context, _ = self._context([seen], space, prediction.timer)
        return (yield from prediction.stream(context))

    def warm_up(self) -> float:
        if self.action_space is None:  # a model of several datasets is warmed up in any of them
            name = next(iter(self.config.norm_stats), "normalized")
            return self.in_space(name).warm_up()
        return super().warm_up()

    def warm_up_batches(self, most: int) -> None:
        name = next(iter(self.config.norm_stats), "normalized")
        ready = self if self.action_space is not None else self.in_space(name)
        for size in self.engine.batches:
            if size < 2 * most:  # what it is rounded up to
                ready.predict([self.needs.grey()] * min(size, most))

    # -- its steps ----------------------------------------------------------------------------

    def _groups(self, observations: Sequence[Observation]) -> Iterator[list[int]]:
        """Which observations go through the engine together: as many as it takes, and equally
        long prompts alone where it does not pad."""
        pads, prompts = self.engine.pads, (o.instruction for o in observations)
        lengths = [0 if pads else self._ids(prompt).shape[1] for prompt in prompts]
        most = max(self.engine.batches, default=len(lengths))
        for length in dict.fromkeys(lengths):
            group = [i for i, n in enumerate(lengths) if n == length]
            for begin in range(0, len(group), most):
                yield group[begin : begin + most]

    def _request(
        self, action_space: AskedSpace, return_tensors: str, count_unrestricted: bool
    ) -> ActionForm:
        key = (action_space, return_tensors, count_unrestricted)
        if not isinstance(action_space, Mapping) and key in self._requests:
            return self._requests[key]
        if return_tensors not in ("np", "pt"):
            raise VlaError(f"unknown return_tensors {return_tensors!r}", "use 'np' or 'pt'")
        normalisation = self._spaces.normalisation(action_space)
        spec = self._spaces.spec(action_space)
        request = ActionForm(normalisation, spec, return_tensors, count_unrestricted)
        if not isinstance(action_space, Mapping):
            self._requests[key] = request
        return request

    def _begin(self, request: ActionForm) -> Prediction:
        """Starts a timed pass."""
        return Prediction(self.engine, self.config, self.tokens, request, self.device)

    @torch.inference_mode()
    def _context(
        self, observations: Sequence[Observation], action_space: AskedSpace, timer: StageTimer
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The embeddings of image and prompt [B, n, H], and where prompts differ in length that
        of each [B]; shorter ones are padded."""
        wanted = self.config.head.num_images
        arrays, ids, proprio = [], [], []
        for observation in observations:
            images = list(observation.images.values())
            if len(images) != wanted:
                raise ObservationError(
                    f"the model needs {wanted} images, got {len(images)} "
                    f"({', '.join(map(str, observation.images)) or 'none'})",
                    "give one per camera it was trained with, and no others",
                )
            arrays.append(torch.from_numpy(self.preprocess.sized(images))[None])
            ids.append(self._ids(observation.instruction))
            if self.config.head.proprio_dim:
                state = self._spaces.normalise_state(observation.state, action_space)
                proprio.append(torch.from_numpy(state)[None])
        states = _together(proprio) if proprio else None
        longest = max(i.shape[1] for i in ids)
        short = [longest - i.shape[1] for i in ids]
        missing = torch.tensor(short, device=self.device) if any(short) else None
        padded = [F.pad(i, (0, n)) if n else i for i, n in zip(ids, short, strict=True)]
        timer.mark("preprocess")
        context = self.engine.observe(_together(padded), _together(arrays), states)
        timer.mark("vision")
        return context, None if missing is None else context.shape[1] - missing

    def _ids(self, instruction: str) -> torch.Tensor:
        if instruction not in self._prompts:
            if len(self._prompts) > 256:
                self._prompts.clear()
            ids = self.prompt(instruction)
            self._prompts[instruction] = torch.tensor([ids], device=self.device)
        return self._prompts[instruction]


def _together(rows: list[torch.Tensor]) -> torch.Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(rows)
