#!/usr/bin/env python3
"""Films one scene of Stack_L twice, side by side, with the two opposite instructions.

    python tools/film_two_orders.py docs/images/stack_l.webp [--scenes 2] [--seed 7]

Everything but the sentence is the same at the start of both. What the model does is shown as it
comes, successes or not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_sim_bridge.cli.rollout import find_model
from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.evaluation.episode import EpisodeRun
from vla_sim_bridge.evaluation.video import SIZE, Caption, draw
from vla_sim_bridge.tasks.stack_language import TRAIN

EVERY = 3  # control steps from one image of the film to the next
SHOWN = (280, 314)  # pixels of one half
HORIZON, EXECUTE, LINGER = 200, 4, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--scenes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--model", help="checkpoint; the small model that ships, if left out")
    args = parser.parse_args()
    policy = OpenVLAPolicy.from_pretrained(find_model(args.model), device="cpu")
    sim, words = Simulation("Stack_L"), np.random.default_rng(args.seed)
    film: list[np.ndarray] = []
    for index in range(args.scenes):
        halves = [play(sim, policy, args, index, words, other) for other in (False, True)]
        length = max(map(len, halves))
        for half in halves:
            half += [half[-1]] * (length - len(half) + LINGER)
        film += [np.concatenate(pair, axis=1) for pair in zip(*halves, strict=True)]
    images = [Image.fromarray(p) for p in film]
    images[0].save(
        args.output,
        save_all=True,
        append_images=images[1:],
        duration=50 * EVERY,
        loop=0,
        quality=60,
        method=6,
    )


def play(sim, policy, args, index, words, other: bool) -> list[np.ndarray]:
    """uint8 [314, 280, 3] each: an episode with what was asked, and how it ended."""
    run = EpisodeRun(sim, args.seed, index, HORIZON)
    if other:
        record = sim.scene_record()
        moved, base = record["roles"]["moved"], record["roles"]["base"]
        sim.set_scene({**record, "roles": {"moved": base, "base": moved}})
    colour = {role: sim.scene.colours[body] for role, body in sim.scene.roles.items()}
    sim.instruction = TRAIN.draw(words, a=colour["moved"], b=colour["base"])
    shown: list[np.ndarray] = []

    def show() -> None:
        caption = Caption(sim.instruction, index + 1, args.scenes, run.step_count, run.outcome)
        image = Image.fromarray(draw(sim.render("agentview", SIZE, SIZE), caption))
        shown.append(np.asarray(image.resize(SHOWN, Image.Resampling.LANCZOS)))

    run.on_step = lambda: show() if run.step_count % EVERY == 0 else None
    while not run.done:
        for action in policy.predict_action(sim.observation()).actions[:EXECUTE]:
            if run.step(action):
                break
    show()
    print(f"{sim.instruction}: {run.outcome}, {run.step_count} steps")
    return shown


if __name__ == "__main__":
    main()
