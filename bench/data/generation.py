#!/usr/bin/env python3
"""Rate of generating demonstrations, cost of images, and a check that SIGKILL loses none.

    python bench/data/generation.py [--episodes 16] [--parallel 2] [--only rendering|control]

Stack_D2 (colours, positions and sentence drawn anew for each episode), one camera at 224 x 224.
The same episodes are generated twice: undisturbed, timed without the workers' start; and killed
with SIGKILL again and again, each time resumed. Both datasets must be equal, number by number.
Images: our renderer beside MuJoCo's as it comes (reflections, antialiasing), frame by frame in
turn on the same scenes, medians; the physics of a control step is there to compare with.
Control: attempts without images, expert and recording included, by robosuite's own loop and by
ours in turn; medians of control steps a second. Each attempt must come out the same to the byte.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import h5py
import numpy as np
from common import add_output, keep

from vla_sim_bridge.generation.generate import GenerateConfig, generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--only", choices=["rendering", "control"])
    add_output(parser)
    args = parser.parse_args()
    parts = {"rendering": lambda: rendering(20), "control": lambda: control(12)}
    if args.only:
        keep(parts[args.only](), args.output)
        return
    figures = parts["rendering"]() | parts["control"]()
    config = GenerateConfig(task="Stack_D2", episodes=args.episodes, seed=11)
    with tempfile.TemporaryDirectory() as folder:
        figures |= timed(config, Path(folder) / "whole", args.parallel)
        if args.kills:
            figures |= killed(config, Path(folder), args.parallel, args.kills)
    keep(figures, args.output)


def rendering(frames: int) -> dict:
    """Seconds per image of each camera, 224 x 224, in ms; and per control step of physics."""
    import mujoco

    from vla_sim_bridge.envs.robosuite_sim import Simulation, episode_rng

    cameras = ("agentview", "robot0_eye_in_hand")
    # A second world, because antialiasing belongs to the model when its renderer is made.
    ours, plain = Simulation("Stack_D2", cameras), Simulation("Stack_D2", cameras)
    rival = mujoco.Renderer(plain.model, 224, 224)
    visible = mujoco.MjvOption()  # the same world: no collision geoms, no sites
    visible.geomgroup[0], visible.sitegroup[:] = 0, 0
    times: dict[str, list[float]] = {}

    def clock(name: str, do) -> object:
        begun = time.perf_counter()
        made = do()
        times.setdefault(name, []).append(time.perf_counter() - begun)
        return made

    def draw(camera: str):
        rival.update_scene(plain.data, camera, visible)
        return rival.render()

    difference = []
    for world in (ours, plain):
        world.reset(episode_rng("generate", 0, 0))
    for _ in range(frames):
        clock("physics_ms_per_step", ours.hold)
        plain.hold()
        for camera in cameras:
            one = clock(f"{camera}_ms", lambda c=camera: ours.render(c))
            other = clock(f"{camera}_as_it_comes_ms", lambda c=camera: draw(c))
            difference.append(np.abs(one.astype(int) - other).mean())
    rival.close()
    ours.close()
    plain.close()
    medians = {k: round(1000 * float(np.median(v[2:])), 1) for k, v in times.items()}
    return {
        "mujoco_gl": os.environ.get("MUJOCO_GL", "default"),
        **medians,
        "renderer_times_faster": {
            c: round(medians[f"{c}_as_it_comes_ms"] / medians[f"{c}_ms"], 2) for c in cameras
        },
        "mean_difference_of_255": round(float(np.mean(difference)), 2),
    }


def control(attempts: int) -> dict:
    """Control steps a second of one process, by robosuite's own loop and by ours."""
    from vla_sim_bridge.envs.fast_osc import VARIABLE
    from vla_sim_bridge.envs.robosuite_sim import Simulation
    from vla_sim_bridge.generation.attempt import make_attempt
    from vla_sim_bridge.generation.shards import to_bytes

    config = GenerateConfig(task="Stack_D2", seed=11, images=False)
    sim, rates, same_bytes = Simulation(config.task), {"1": [], "0": []}, []
    before = os.environ.get(VARIABLE)
    for index in range(attempts + 1):
        made = []
        for theirs, rate in rates.items():
            os.environ[VARIABLE] = theirs
            begun = time.perf_counter()
            attempt = make_attempt(sim, config, index)
            seconds = time.perf_counter() - begun
            rate.append(sim._env.timestep / seconds)
            made.append(to_bytes(attempt.episode, None))
        same_bytes.append(made[0] == made[1])
    os.environ.pop(VARIABLE) if before is None else os.environ.update({VARIABLE: before})
    theirs, ours = (float(np.median(rate[1:])) for rate in rates.values())  # the first compiles
    return {
        "control_steps_per_s": round(ours, 1),
        "control_steps_per_s_robosuite": round(theirs, 1),
        "control_times_faster": round(ours / theirs, 2),
        "control_same_bytes": all(same_bytes),
    }


def timed(config: GenerateConfig, output: Path, parallel: int) -> dict:
    times: list[float] = []
    begun = time.perf_counter()
    generate(config, output, parallel, lambda _: times.append(time.perf_counter()))
    total = time.perf_counter() - begun
    statistics = json.loads((output / "statistics.json").read_text())
    # The first episodes wait for the workers to import robosuite; count from the first one on.
    steady = (times[-1] - times[0]) / max(1, len(times) - 1)
    return {
        "episodes": config.episodes,
        "processes": parallel,
        "images": f"{config.camera_width}x{config.camera_height}, 1 camera",
        "seconds_in_all": round(total, 1),
        "seconds_per_episode_in_all": round(total / config.episodes, 2),
        "seconds_per_episode_steady": round(steady, 2),
        "frames_per_s": round(statistics["frames"] / config.episodes / steady, 1),
        "attempts": statistics["attempts"],
        "mean_length": round(statistics["length_mean"], 1),
    }


def killed(config: GenerateConfig, folder: Path, parallel: int, kills: int) -> dict:
    """Kill a generation `kills` times at random moments; compare with the undisturbed one."""
    output, chance = folder / "killed", random.Random(0)
    command = [
        sys.executable,
        "-m",
        "vla_inference.cli.main",
        "generate",
        "--task",
        config.task,
        "--episodes",
        str(config.episodes),
        "--seed",
        str(config.seed),
        "--parallel",
        str(parallel),
        "--output",
        str(output),
    ]
    seen: set[str] = set()
    lost = 0
    for _ in range(kills):
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(chance.uniform(6, 14))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = {p.name for p in (output / "parts").glob("*.hdf5")}
        lost += len(seen - now) if not (output / "demo.hdf5").exists() else 0
        seen |= now
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    equal = same(folder / "whole" / "demo.hdf5", output / "demo.hdf5")
    return {"kills": kills, "successes_lost": lost, "equal_to_undisturbed": equal}


def same(one: Path, two: Path) -> bool:
    def read(path: Path) -> dict:
        found = {}
        with h5py.File(path, "r") as file:
            file.visititems(
                lambda name, item: (
                    found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
                )
            )
        return found

    a, b = read(one), read(two)
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


if __name__ == "__main__":
    main()
