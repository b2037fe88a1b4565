"""The names that LeRobot gives to the tensors of SmolVLA."""

from __future__ import annotations

from vla_inference.policies.lerobot.names import BLOCK, SIGLIP, renamed, rules

VLM, EXPERT = r"^model\.vlm_with_expert\.vlm\.model\.", r"^model\.vlm_with_expert\.lm_expert\."
UNUSED = "model.vlm_with_expert.vlm.lm_head.weight"
RULES = (
    *rules(
        (rf"{VLM}vision_model", "vision"),
        (rf"{VLM}connector\.modality_projection\.proj", "connector"),
        (rf"{VLM}text_model\.embed_tokens", "language.embedding"),
        (rf"{VLM}text_model", "language"),
        (EXPERT, "expert."),
        (r"^model\.", ""),
    ),
    *SIGLIP,
    *BLOCK,
)


def our_name(name: str) -> str | None:
    """The name in `SmolVLA` of a published tensor; None of one that no answer depends on."""
    name = name.replace("._orig_mod", "")  # torch.compile's
    return None if name == UNUSED else renamed(name, RULES)
