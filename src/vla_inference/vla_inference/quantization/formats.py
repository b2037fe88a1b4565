"""The quantisation formats by name, with the aliases of NanoLLM's tutorial."""

from __future__ import annotations

from dataclasses import dataclass

from vla_inference.errors import VlaError


@dataclass(frozen=True)
class Format:
    """The storage format of a weight [N, K].

    kind: "int4" (codes 0..15), "int8" (-127..127) or "fp8" (float8_e4m3fn).
    group: weights of a row that share a scale; 0: the whole row does.
    symmetric: code 8 stands for zero in every int4 group; else each group has its own zero.
    activations: "int8" or "fp8" where the input is rounded as well in passes over many positions;
        "" where only weights are.
    """

    name: str
    kind: str
    group: int = 0
    symmetric: bool = True
    activations: str = ""

    @property
    def bits(self) -> int:
        return 4 if self.kind == "int4" else 8

    def groups(self, k: int) -> int:
        return k // self.group if self.group else 1

    def check(self, n: int, k: int, where: str = "weight") -> None:
        """Refuse a weight [n, k] that this format can't hold."""
        unit = self.group or (32 if self.kind == "int4" else 1)
        if k % unit:
            raise VlaError(
                f"{where} has {k} inputs, which {self.name} can't group by {unit}",
                "choose a smaller group, or int8",
            )


def _formats() -> dict[str, Format]:
    some = [
        Format("int8", "int8", activations="int8"),
        Format("int8wo", "int8"),
        Format("fp8", "fp8", activations="fp8"),
        Format("int4-channel", "int4"),
    ]
    for group in (32, 64, 128):
        some.append(Format(f"int4-g{group}", "int4", group, symmetric=False))
        some.append(Format(f"int4-g{group}-sym", "int4", group))
    return {f.name: f for f in some}


FORMATS = _formats()
ALIASES = {
    "int4": "int4-g128",
    # The tutorial's names. Its own have one scale a channel; here the same bits are spent better.
    "q4f16_ft": "int4-g128-sym",
    "q4f16_1": "int4-g32-sym",
    "q8f16_ft": "int8wo",
    "q8f16_1": "int8wo",
}
UNQUANTISED = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def read_quantization(name: str, dtype: str | None) -> tuple[Format | None, str | None]:
    """Combines the names of a quantisation ("": none) and of a dtype (None: open).

    "fp16", "bf16" and "fp32" are names of dtypes here, as in the tutorial.
    """
    plain = UNQUANTISED.get(name.lower())
    if plain is None:
        return (get_format(name) if name else None), dtype
    if dtype not in (None, plain):
        raise VlaError(f"quantisation {name!r} and dtype {dtype!r} contradict", "give one of them")
    return None, plain


def get_format(name: str) -> Format:
    """The format of that name or alias; an unknown name lists the known ones."""
    known = ALIASES.get(name.lower(), name.lower())
    if known not in FORMATS:
        raise VlaError(
            f"there is no quantisation {name!r}",
            f"known: {', '.join([*FORMATS, *ALIASES, *UNQUANTISED])}",
        )
    return FORMATS[known]
