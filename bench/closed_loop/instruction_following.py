#!/usr/bin/env python3
"""Instruction following of the training recipe: a tiny model on drawn images, on a CPU.

    python bench/closed_loop/instruction_following.py
    ... --other-order 0 --reset-images 0   # demonstrations alone

An episode's frames show a dot (the hand) on its way to the block that the sentence names, so that
nearly every image gives the answer away, as in real demonstrations. Sentences are Stack_L's.
Printed are the losses and the shares of held-out frames on which scene head and actions go by the
sentence (`vla_training/small_model/instruction_following.py`): one half is a model that does not
read. At the end also before the first step of unseen episodes, for sentences as trained on and for
held-out ones.
"""

from __future__ import annotations

import argparse
import copy
import json

import numpy as np
import torch

from vla_sim_bridge.tasks import TASKS, Scene
from vla_sim_bridge.tasks.stack import PALETTE
from vla_training.small_model.auxiliary_targets import (
    colours_of,
    other_order,
    scene_numbers,
    wordings,
)
from vla_training.small_model.config import SMALL, TrainConfig
from vla_training.small_model.frames import Other, TrainingFrames
from vla_training.small_model.trainer import Trainer

SIDE, STEPS = 32, 10  # pixels; frames of an episode
HOME = np.array([0.0, -0.8])  # of the hand, in a table of [-1, 1]
TASK = TASKS["Stack_L"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--reset-images", type=int, default=8000)
    parser.add_argument(
        "--acted", type=int, choices=(0, 1), default=1, help="reset images with actions"
    )
    parser.add_argument("--other-order", type=float, default=0.5, help="see TrainConfig")
    parser.add_argument("--scene-weight", type=float, default=1.0)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--layers", type=int, default=3, help="of the language model")
    parser.add_argument("--minutes", type=float, default=4.8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    frames = draw(args.episodes, args.reset_images, bool(args.acted), args.seed)
    config = TrainConfig(
        batch_size=args.batch_size,
        minutes=args.minutes,
        learning_rate=args.learning_rate,
        scene_weight=args.scene_weight,
        other_order=args.other_order,
        ema=0.99,
        shift=0,
        brightness=0.0,
        channel=0.0,
        validation=0.1,
        seed=args.seed,
    )
    trainer = Trainer(frames, config, "cpu", shape(args.layers))
    trainer.run(lambda r: print(json.dumps(r), flush=True), every=100)
    for language in ("train", "held-out"):
        fresh = draw(0, 300, True, args.seed + 1000, language)
        trainer.batches = trainer.batches_of(fresh)
        index = torch.arange(len(fresh))
        print(
            json.dumps({"language": language, **trainer.instruction_following(index)}), flush=True
        )


def shape(layers: int) -> dict:
    model = copy.deepcopy(SMALL)
    model["prompt"] = "{instruction}"  # fewer tokens
    model["vision_towers"][0].update(
        image_size=SIDE, patch_size=8, embed_dim=64, num_heads=2, mlp_hidden=128
    )
    model["text_config"].update(
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return model


def draw(
    episodes: int, reset_images: int, acted: bool, seed: int, language: str = "train"
) -> TrainingFrames:
    """Episodes of STEPS frames, then reset images: the hand at home."""
    rng = np.random.default_rng(seed)
    rows: dict[tuple[str, ...], int] = {}
    columns: dict[str, list] = {k: [] for k in COLUMNS}
    images, actions = [], []
    for i in range(episodes + reset_images):
        scene = TASK.draw_scene(rng)
        places = _places(rng)
        reset_image = i >= episodes
        both = (scene, other_order(scene))
        texts = [rows.setdefault(_said(s, language, rng), len(rows)) for s in both]
        path = _path(HOME, places[scene.roles["moved"]])
        begin = len(actions)
        actions += list(np.diff(path, axis=0))
        if reset_image:
            actions += list(np.diff(_path(HOME, places[both[1].roles["moved"]]), axis=0))
        for step in range(1 if reset_image else STEPS):
            images.append(_image(rng, places, scene.colours, path[step]))
            start, end = begin + step, begin + STEPS
            known = not reset_image or acted
            values = {
                "text": texts[0],
                "scene": _numbers(path[step], places, both[0]),
                "start": start,
                "end": end if known else start,
                "episode": i,
                "other_text": texts[1],
                "other_scene": _numbers(path[step], places, both[1]),
                "other_start": end,
                "other_end": end + STEPS * (reset_image and acted),
            }
            for name, value in values.items():
                columns[name].append(value)
    c = {k: torch.from_numpy(np.array(v)) for k, v in columns.items()}
    sentences = {s: i for i, s in enumerate(dict.fromkeys(s for row in rows for s in row))}
    moves = np.zeros((len(actions), 7), np.float32)
    moves[:, :2] = actions
    return TrainingFrames(
        torch.from_numpy(np.stack(images)),
        torch.from_numpy(moves),
        c["text"],
        c["end"],
        c["episode"],
        list(sentences),
        c["scene"].float(),
        start=c["start"],
        wordings=torch.tensor([[sentences[s] for s in row] for row in rows]),
        other=Other(c["other_text"], c["other_scene"].float(), c["other_start"], c["other_end"]),
    )


COLUMNS = (
    "text",
    "scene",
    "start",
    "end",
    "episode",
    "other_text",
    "other_scene",
    "other_start",
    "other_end",
)


def _said(scene: Scene, language: str, rng: np.random.Generator) -> tuple[str, ...]:
    if language == "train":
        return wordings(TASK.name, scene, 64)
    return (TASK.instruct(rng, scene, "held-out"),)


def _places(rng: np.random.Generator) -> dict[str, np.ndarray]:
    while True:
        one, other = rng.uniform((-0.85, -0.5), (0.85, 0.85), (2, 2))
        if np.abs(one - other).max() > 0.35:
            return {"cubeA": one, "cubeB": other}


def _path(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The hand's places [STEPS + 1, 2]."""
    share = np.linspace(0, 1, STEPS + 1)[:, None]
    return begin + share * (end - begin)


def _numbers(hand: np.ndarray, places: dict, scene: Scene) -> np.ndarray:
    def pose(place: np.ndarray) -> np.ndarray:
        matrix = np.eye(4)[None].copy()
        matrix[0, :2, 3] = place / 10  # of a unit, as metres are of a decimetre
        return matrix

    first, second = (pose(places[scene.roles[role]]) for role in ("moved", "base"))
    colours = colours_of(TASK, scene)
    return scene_numbers(pose(hand), first, second, np.zeros(1), colours)[0]


def _image(rng: np.random.Generator, places: dict, colours: dict, hand: np.ndarray):
    image = rng.normal(150, 6, (SIDE, SIDE, 3))

    def square(place: np.ndarray, half: int, colour) -> None:
        x, y = ((place + 1) / 2 * (SIDE - 1)).round().astype(int)
        image[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1] = colour

    for name, place in places.items():
        square(place, 2, np.array(PALETTE[colours[name]]) * rng.uniform(0.7, 1.0))
    square(hand, 0, 20)
    return image.clip(0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
