#!/usr/bin/env python3
"""Success and gaps in motion by answer delay: model, commander and simulated robot in one process.

    python bench/closed_loop/delays.py --delay 0.35 [--episodes 20]
        [--stretch 2.5 --catch-up 0.3 --blend 0.1]
    python bench/closed_loop/delays.py --model FLOW --delay 0.3 --chunking rtc

Time is simulated, so that a busy machine gives the same figures as an idle one; no ROS. As in the
graph: the model takes the newest image of `--frame-rate` when it is free, its chunk arrives
`--delay` (and up to `--jitter`) later, and the robot goes on meanwhile, by the command node's
parameters for the simulated robot and MoveIt Servo's rules. gaps: control periods without a fresh
command; zeros: periods for which standing still was commanded; bridged: whether neither happened
between an episode's first motion and its end; jump: how much the commanded acceleration of the
end effector changes from one control period to the next [m/s^2], the largest of all, the mean of
the episodes' largest and the 99th percentile. JSON on standard output.
`bench/closed_loop/robot_paths.py` is the same through the nodes.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from scipy.spatial.transform import Rotation

from vla_inference.control import Commander, Settings
from vla_inference.control.commands import Pose
from vla_inference.episodes.robosuite import CONTROL_FREQ
from vla_inference.policies.base import LoadOptions, Policy, no_chunking
from vla_inference.policies.chunking import FORMS, RealTimeChunking, RunningChunk
from vla_inference.policies.registry import load_policy
from vla_inference.ros.command.parameters import command_configs, read_settings
from vla_inference.ros.parameters import defaults
from vla_inference.types import ActionChunk, Observation
from vla_sim_bridge.cli.rollout import find_model
from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.evaluation.confidence_intervals import wilson_interval
from vla_sim_bridge.evaluation.episode import EpisodeRun
from vla_sim_bridge.ros.robot.controller_emulation import TwistController

ROOT = Path(__file__).resolve().parents[2]
PERIOD = 1.0 / CONTROL_FREQ
BEGINNING = 100.0  # s, of simulated time


def robot_settings(**changes) -> Settings:
    """The command node's, by the simulated robot's parameter file."""
    values = defaults(*command_configs())
    text = (ROOT / "config/robots/robosuite.yaml").read_text()
    values |= yaml.safe_load(text)["/**"]["ros__parameters"]
    settings = read_settings(values.__getitem__)
    return replace(settings, **{k: v for k, v in changes.items() if v is not None})


class Episode:
    """One episode; `ticks` counts control periods of simulated time."""

    def __init__(
        self,
        args,
        settings: Settings,
        sim: Simulation,
        policy: Policy,
        index: int,
    ):
        self.args, self.sim, self.policy = args, sim, policy
        by = RealTimeChunking(args.rtc_horizon, form=args.chunking) if args.chunking else None
        self.running = RunningChunk(by, settings.stretch) if by else None
        self.run = EpisodeRun(sim, args.seed, index, args.horizon)
        self.commander, self.servo = Commander(settings), TwistController()
        self.jitter = random.Random(index)
        self.every = max(1, round(CONTROL_FREQ / args.frame_rate))
        self.ticks = self.gaps = self.zeros = 0
        self.moved, self.gripper = False, sim.gripper
        self.velocities: list[np.ndarray] = []  # commanded, m/s
        self.image = None  # (stamp, observation) that waits for the model
        self.answer = None  # (due, stamp, chunk)
        self.longest = 0.0  # s from an image to the arrival of the chunk of the next one
        self.last_stamp: float | None = None

    @property
    def now(self) -> float:
        return BEGINNING + self.ticks * PERIOD

    def measure(self) -> np.ndarray:
        pose = self.sim.eef_pose()
        pose[:3, 3] -= self.sim.base_position()
        turn = Rotation.from_matrix(pose[:3, :3]).as_quat().tolist()
        measured = Pose(tuple(pose[:3, 3].tolist()), tuple(turn))
        self.commander.measured(measured, self.now, self.now, self.now)
        return pose

    def deliver(self) -> None:
        """Hand over the answer that is due."""
        if self.answer is not None and self.now >= self.answer[0] - 1e-9:
            _, stamp, chunk, text = self.answer
            if self.last_stamp is not None:
                self.longest = max(self.longest, self.now - self.last_stamp)
            self.last_stamp, self.answer = stamp, None
            self.commander.accept(chunk, stamp, self.now, self.now)
            if self.running is not None:
                self.running.answered(stamp, self.now)
                self.running.executed(chunk, stamp, text)

    def think(self) -> None:
        """Take the image that the model will see next, and what it answers."""
        self.deliver()
        if self.ticks % self.every == 0:
            # The newest when the model is free; one that another replaces before is not drawn.
            free = self.now if self.answer is None else self.answer[0]
            if free < self.now + self.every * PERIOD - 1e-9:
                self.image = self.now, self.sim.observation()
        if self.answer is None and self.image is not None:
            stamp, seen = self.image
            self.image = None
            chunk = self.act(stamp, seen)
            late = self.args.delay + self.args.jitter * self.jitter.random()
            self.answer = self.now + late, stamp, chunk, seen.instruction
            self.deliver()

    def act(self, stamp: float, seen: Observation) -> ActionChunk:
        running = self.running
        after = running.after(stamp, seen.instruction) if running is not None else None
        return self.policy.act(seen) if after is None else self.policy.continue_chunk(seen, after)

    def play(self) -> dict:
        for _ in range(3):  # before that it isn't believed
            self.measure()
        self.commander.tick(self.now - PERIOD, self.now - PERIOD)
        # A model that was heard: its answer is void once the robot is enabled.
        first = self.policy.act(self.sim.observation())
        self.commander.accept(first, self.now - PERIOD, self.now - PERIOD, self.now - PERIOD)
        while not self.run.done:
            pose = self.measure()
            if not self.moved and not self.commander.safety.enabled:
                reason = self.commander.enable(self.now)
                assert not reason, reason
            self.think()
            command = self.commander.tick(self.now, self.now)
            if self.commander.safety.last_stop is not None:
                return self.result(self.commander.safety.last_stop.reason)
            if command is not None:
                twist = np.array([*command.linear, *command.angular])
                self.servo.receive("base", self.now, twist, self.now)
                self.gripper = self.gripper if command.gripper is None else command.gripper
                self.moved = self.moved or command.moves
                self.zeros += self.moved and not command.moves
            if self.moved:
                self.velocities.append(np.zeros(3) if command is None else command.linear)
            delta = self.servo.delta(pose, self.now, PERIOD)
            self.gaps += self.moved and command is None
            motion = np.zeros(6) if delta is None else delta
            self.run.step(np.append(motion, self.gripper))
            self.ticks += 1
        return self.result()

    def result(self, stop: str = "") -> dict:
        found = self.run.result()
        return {
            "index": found.index,
            "success": found.success,
            "frames": found.frames,
            "gaps": self.gaps,
            "zeros": self.zeros,
            "stop": stop,
            "longest": round(self.longest, 3),
            "stale_steps": self.commander.player.stale,
            "jumps": jumps(self.velocities),
        }


def jumps(velocities: list[np.ndarray]) -> np.ndarray:
    """How much acceleration changes from period to period [n, m/s^2]."""
    if len(velocities) < 3:
        return np.zeros(0)
    return np.linalg.norm(np.diff(velocities, 2, axis=0), axis=1) / PERIOD


def open_model(name: str | None) -> Policy:
    return load_policy(find_model(name), LoadOptions(device="cpu"))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="Stack_D0")
    parser.add_argument("--model", help="checkpoint of any family")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--horizon", type=int, help="control steps; 200, times --stretch")
    parser.add_argument("--delay", type=float, default=0.0, help="s")
    parser.add_argument("--jitter", type=float, default=0.0, help="s")
    parser.add_argument("--frame-rate", type=float, default=10.0)
    parser.add_argument("--stretch", type=float, default=1.0)
    parser.add_argument("--catch-up", type=float, default=0.0, help="s")
    parser.add_argument("--blend", type=float, help="s")
    parser.add_argument("--ensemble", type=float)
    parser.add_argument("--execute-steps", type=int, default=0)
    parser.add_argument("--align", default="stamp", choices=("stamp", "arrival"))
    parser.add_argument("--chunking", default="", choices=("", *FORMS))
    parser.add_argument("--rtc-horizon", type=int, default=0, help="steps; 0: all that are left")
    return parser


def settings_of(args: argparse.Namespace) -> Settings:
    return robot_settings(
        stretch=args.stretch,
        catch_up=args.catch_up,
        blend=args.blend,
        ensemble=args.ensemble,
        execute_steps=args.execute_steps,
        align=args.align,
    )


def summary(rows: list[dict]) -> dict:
    """Of episodes' results."""
    good = [r for r in rows if r["success"]]
    low, high = wilson_interval(len(good), len(rows))
    every = np.concatenate([r["jumps"] for r in rows])
    largest = [r["jumps"].max() for r in rows]
    return {
        "longest_from_image_to_next_chunk": max(r["longest"] for r in rows),
        "successes": len(good),
        "success_rate_wilson95": [round(low, 3), round(high, 3)],
        "mean_frames_success": sum(r["frames"] for r in good) / len(good) if good else 0,
        "jump": {
            "largest": round(float(max(largest)), 2),
            "mean_of_episodes_largest": round(float(np.mean(largest)), 2),
            "p99": round(float(np.percentile(every, 99)), 2),
        },
        "gaps": sum(r["gaps"] for r in rows),
        "zeros": sum(r["zeros"] for r in rows),
        "bridged": not any(r["gaps"] or r["zeros"] for r in rows),
        "stops": [r["stop"] for r in rows if r["stop"]],
        "failed_episodes": [r["index"] for r in rows if not r["success"]],
        "per_episode_frames": [r["frames"] for r in rows],
    }


def main() -> int:
    args = make_parser().parse_args()
    args.horizon = args.horizon or round(200 * args.stretch)
    import torch

    torch.set_num_threads(1)
    settings = settings_of(args)
    policy = open_model(args.model)
    if args.chunking and args.chunking not in policy.chunking:
        raise no_chunking(policy, args.chunking)
    sim = Simulation(args.task)
    rows = [
        Episode(args, settings, sim, policy, args.first + i).play() for i in range(args.episodes)
    ]
    sim.close()
    chunk = policy.chunk * policy.action_spec().dt * args.stretch
    print(json.dumps({**vars(args), "chunk_seconds": round(chunk, 3), **summary(rows)}, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
