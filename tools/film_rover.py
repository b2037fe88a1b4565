#!/usr/bin/env python3
"""Films the rover in one scene once for every object that it can be sent to, side by side.

    python tools/film_rover.py docs/images/rover.webp [--seed 7] [--episode 0]

Above what its camera sees, below the arena from above. Everything but the sentence is the same at
the start; what the model does is shown as it comes, successes or not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from vla_inference.policies.registry import load_policy
from vla_inference.types import Observation
from vla_sim_bridge.envs.rover.world import RoverWorld
from vla_sim_bridge.evaluation.episode import EpisodeRun
from vla_sim_bridge.evaluation.video import SIZE, Caption, draw

ROOT = Path(__file__).resolve().parents[1]
EVERY = 4  # control steps from one image of the film to the next
WIDE = 240  # pixels of a part
EXECUTE, LINGER = 4, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--task", default="Rover_D0")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--episode", type=int, default=0)
    parser.add_argument("--model", default=str(ROOT / "models/rover-small"), help="checkpoint")
    args = parser.parse_args()
    policy, world = load_policy(args.model, device="cpu"), RoverWorld(args.task)
    world.start_episode("evaluate", args.seed, args.episode)
    parts = [play(world, policy, args, name) for name in world.scene.colours]
    length = max(map(len, parts)) + LINGER
    parts = [part + [part[-1]] * (length - len(part)) for part in parts]
    images = [Image.fromarray(np.concatenate(row, axis=1)) for row in zip(*parts, strict=True)]
    images[0].save(
        args.output,
        save_all=True,
        append_images=images[1:],
        duration=50 * EVERY,
        loop=0,
        quality=60,
        method=6,
    )


def play(world: RoverWorld, policy, args, target: str) -> list[np.ndarray]:
    """uint8 [H, WIDE, 3] each: an episode in which it is sent to this object."""
    run = EpisodeRun(world, args.seed, args.episode, world.task.horizon)
    world.set_scene({**world.scene_record(), "roles": {"target": target}})
    world.instruction = world.task.instruct(np.random.default_rng(args.seed), world.scene, "train")
    shown: list[np.ndarray] = []

    def show() -> None:
        caption = Caption(world.instruction, 1, 1, run.step_count, run.outcome)
        seen = Image.fromarray(draw(world.render("agentview", SIZE, SIZE), caption))
        above = Image.fromarray(world.render("overview", WIDE, WIDE))
        seen = seen.resize((WIDE, seen.height * WIDE // seen.width), Image.Resampling.LANCZOS)
        shown.append(np.concatenate([np.asarray(seen), np.asarray(above)]))

    run.on_step = lambda: show() if run.step_count % EVERY == 0 else None
    while not run.done:
        observation = Observation({"agentview": world.render("agentview")}, world.instruction)
        for action in world.actions(policy.act(observation))[:EXECUTE]:
            if run.step(action):
                break
    show()
    print(f"{world.instruction}: {run.outcome}, {run.step_count} steps")
    return shown


if __name__ == "__main__":
    main()
