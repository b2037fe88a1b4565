"""The names that LeRobot and openpi give to the tensors of pi0 and pi0.5."""

from __future__ import annotations

from collections.abc import Callable, Collection

from vla_inference.policies.lerobot.names import BLOCK, SIGLIP, renamed, rules

WHOLE = "paligemma_with_expert."
PALIGEMMA, EXPERT = WHOLE + "paligemma.", WHOLE + "gemma_expert."
HEAD = PALIGEMMA + "lm_head.weight"
EMBEDDING = PALIGEMMA + "model.language_model.embed_tokens.weight"
UNUSED = EXPERT + "lm_head.weight"
RULES = (
    *rules(
        (r"^paligemma_with_expert\.paligemma\.model\.vision_tower\.vision_model", "vision"),
        (r"^paligemma_with_expert\.paligemma\.model\.multi_modal_projector\.linear", "projector"),
        (r"^paligemma_with_expert\.paligemma\.model\.language_model\.embed_tokens", "embedding"),
        (r"^paligemma_with_expert\.paligemma\.model\.language_model", "language"),
        (r"^paligemma_with_expert\.gemma_expert\.model", "expert"),
        (r"^(?:action_)?time_mlp_", "time_mlp_"),
    ),
    *SIGLIP,
    *BLOCK,
)


def naming(present: Collection[str]) -> Callable[[str], str | None]:
    """Published name -> name in `Pi`, or None where no answer depends on the tensor.

    present: the published names. LeRobot's begin with "model.", openpi's and the base models' do
    not. A file without word embeddings has them as `lm_head`.
    """
    whole = {_bare(name) for name in present}
    unused = {UNUSED, HEAD} if EMBEDDING in whole else {UNUSED}

    def our_name(name: str) -> str | None:
        name = _bare(name)
        if name in unused:
            return None
        return renamed(EMBEDDING if name == HEAD else name, RULES)

    return our_name


def _bare(name: str) -> str:
    return name.replace("._orig_mod", "").removeprefix("model.")  # torch.compile's, LeRobot's
