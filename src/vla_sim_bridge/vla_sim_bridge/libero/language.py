"""LIBERO's sentences about picking up and placing: what they say, and other ways to say it.

`sentence` names a thing by its place as the benchmark does. Models are trained with `paraphrases`.
LIBERO-PRO's own sentences are never among these: they are for tests (`HELD_OUT`).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product

import numpy as np

# The second half of a name in the BDDL files -> the words of the benchmark's sentences.
PLACES = {
    "main_table_between_plate_ramekin_region": "between the plate and the ramekin",
    "main_table_next_to_ramekin_region": "next to the ramekin",
    "main_table_table_center": "from table center",
    "cookies_1": "on the cookie box",
    "wooden_cabinet_1_top_region": "in the top drawer of the wooden cabinet",
    "glazed_rim_porcelain_ramekin_1": "on the ramekin",
    "main_table_next_to_box_region": "next to the cookie box",
    "flat_stove_1_cook_region": "on the stove",
    "main_table_next_to_plate_region": "next to the plate",
    "wooden_cabinet_1_top_side": "on the wooden cabinet",
}
BOWL = "black bowl"

BESIDE = ("next to", "beside", "near", "by", "close to", "at the side of", "right next to")
UPON = ("on", "from", "on top of", "that is on", "standing on", "lying on")
BOX = ("the cookie box", "cookie box", "the cookies box", "the box of cookies", "the cookies")
CABINET = (
    "the wooden cabinet",
    "the cabinet",
    "cabinet",
    "wooden cabinet",
    "the top of the cabinet",
)
RAMEKIN, STOVE = ("the ramekin", "ramekin"), ("the stove", "stove", "the flat stove")
PLATE = ("the plate", "plate")
DRAWER = ("the top drawer", "top drawer", "the upper drawer", "the open drawer", "the drawer")
WHOLE = ("", " of the wooden cabinet", " of the cabinet", " in the cabinet")


def _all(*parts: Sequence[str], between: str = " ") -> tuple[str, ...]:
    return tuple(between.join(words) for words in product(*parts))


SAID_PLACES = {
    PLACES["main_table_between_plate_ramekin_region"]: (
        *_all(("between",), PLATE, ("and",), RAMEKIN),
        *_all(("between",), RAMEKIN, ("and",), PLATE),
        *_all(("in between",), ("the plate and the ramekin", "the ramekin and the plate")),
    ),
    PLACES["main_table_next_to_ramekin_region"]: _all(BESIDE, RAMEKIN),
    PLACES["main_table_next_to_plate_region"]: _all(BESIDE, PLATE),
    PLACES["main_table_next_to_box_region"]: _all(BESIDE, BOX),
    PLACES["main_table_table_center"]: (
        *_all(
            ("from", "at", "in"), ("table center", "the table center", "the center of the table")
        ),
        *_all(("in", "from"), ("the middle of the table", "the middle")),
    ),
    PLACES["cookies_1"]: _all(UPON, BOX),
    PLACES["glazed_rim_porcelain_ramekin_1"]: _all(UPON, RAMEKIN),
    PLACES["flat_stove_1_cook_region"]: _all(UPON, STOVE),
    PLACES["wooden_cabinet_1_top_side"]: _all(UPON, CABINET),
    PLACES["wooden_cabinet_1_top_region"]: (
        *_all(_all(("in", "from", "inside", "out of"), DRAWER), WHOLE, between=""),
        *_all(("in", "from"), ("the top layer",), ("of the wooden cabinet", "of the cabinet")),
    ),
}
TAKE = ("pick up", "pick", "take", "lift", "grab", "get", "grasp", "lift up", "fetch")
PUT = ("place", "put", "set", "drop", "lay")
BOWLS = (
    "the black bowl",
    "black bowl",
    "the bowl",
    "bowl",
    "the akita black bowl",
    "akita black bowl",
)
CANONICAL = re.compile(
    r"pick up the (?P<thing>[a-z ]+?)(?P<place> (?:not )?(?:between|next to|from|on|in) [a-z ]+)? "
    r"and place it (?P<goal>on the plate|in the basket)"
)


def sentence(goal: Sequence[str], began: Mapping[str, str], denied: bool = False) -> str:
    """The benchmark's sentence for a goal ("on" or "in", the thing, where it goes).

    began: where each thing was at first. All names as in BDDL files.
    denied: tell a bowl by where the other one is: "the black bowl not on the stove".
    """
    _, name, target = goal
    kind = name.rpartition("_")[0]
    where = "in the basket" if target.startswith("basket") else "on the plate"
    thing = kind.replace("_", " ").removeprefix("akita ")
    if thing != BOWL:
        return f"pick up the {thing} and place it {where}"
    (other,) = (n for n in began if n.rpartition("_")[0] == kind and n != name)
    place = f"not {PLACES[began[other]]}" if denied else PLACES[began[name]]
    return f"pick up the {thing} {place} and place it {where}"


def paraphrases(told: str, count: int) -> tuple[str, ...] | None:
    """`count` ways to say one of the benchmark's sentences, itself the first.

    Always the same for the same arguments. None for a sentence that is about something else.
    """
    return _paraphrases(told, count)


@cache
def _paraphrases(told: str, count: int) -> tuple[str, ...] | None:
    found = CANONICAL.fullmatch(told)
    if found is None or count < 1:
        return None
    thing, place, goal = found["thing"], (found["place"] or "").strip(), found["goal"]
    denied = place.startswith("not ")
    places = SAID_PLACES.get(place.removeprefix("not "), (place,)) if place else ("",)
    things = BOWLS if thing == BOWL else (f"the {thing}", thing)
    rng, made = np.random.default_rng(zlib.crc32(told.encode())), [told]
    for _ in range(100 * count):
        if len(made) == count:
            break
        words = [_one(rng, TAKE), _one(rng, things)]
        words += ["not"] * denied + [_one(rng, places)] * bool(place)
        said = " ".join((*words, _end(rng, goal)))
        if said not in made and said not in HELD_OUT:
            made.append(said)
    return tuple(made)


def _end(rng: np.random.Generator, goal: str) -> str:
    at, _, target = goal.split(" ")
    joined = _one(rng, ("and", "and", "and", "then", "and then"))
    article = _one(rng, ("the ", "the ", ""))
    it = _one(rng, (" it", " it", ""))
    at = _one(rng, (at, at, f"{at}to"))
    return f"{joined} {_one(rng, PUT)}{it} {at} {article}{target}"


def _one(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


# Sentences of LIBERO-PRO (MIT) that the grammar could make.
_LAN = """
lift the black bowl between the plate and ramekin and set it on the plate
take black bowl next to ramekin and place on plate
lift the black bowl from the table center and put it on the plate
lift black bowl from cookie box and put it on plate
take the black bowl from the top drawer and put it on plate
grab black bowl on ramekin and set it on plate
grab the black bowl beside the cookie box and set it on plate
lift bowl from stove and set on plate
pick the bowl beside the plate and put it on plate
lift bowl from cabinet and put on plate
grab alphabet soup and put it into basket
grab cream cheese and put into basket
grab salad dressing and put into basket
pick up bbq sauce and put it into basket
lift ketchup and put it in basket
pick tomato sauce and put it in basket
grab butter and put it into basket
grab milk and put into basket
lift chocolate pudding and put it in basket
pick orange juice and put into basket
"""
_TASK = [
    *(
        f"pick the akita black bowl {place} and place it on the plate"
        for place in (
            "not between the plate and the ramekin",
            "next to the cookie box",
            "next to the plate",
            "next to the ramekin",
            "on the top of the cabinet",
            "on the top of the wooden cabinet",
            "on the cookie box",
            "on the stove",
        )
    ),
    *(
        f"pick the {thing} and place it in the basket"
        for thing in (
            "alphabet soup",
            "bbq sauce",
            "butter",
            "chocolate pudding",
            "cream cheese",
            "ketchup",
            "milk",
            "orange juice",
            "salad dressing",
            "tomato sauce",
        )
    ),
]
HELD_OUT = frozenset([*_LAN.strip().splitlines(), *_TASK])
