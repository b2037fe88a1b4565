#!/usr/bin/env python3
"""Closed-loop success of the shipped model by command path; JSON.

    python bench/closed_loop/robot_paths.py --path direct|twist|pose|joint_trajectory
        |joint_positions|joint_velocities [--episodes 20] [--seed 7]
    python bench/closed_loop/robot_paths.py --path base [--task Rover_D0] [--real-time]
    python bench/closed_loop/robot_paths.py --path twist --delay 0.35 --stretch 2
        --catch-up 0.3 --blend 0.1
    python bench/closed_loop/robot_paths.py --path twist --real-time --delay 0.3 --stretch 2.25 ...

direct: chunks go straight into the simulation, in lock step. twist, pose: model, command node with
its safety on, and the simulation that keeps MoveIt Servo's or a target-pose controller's rules; in
lock step of simulated time, or in real time at 20 Hz (--factor 0.5: all at half the pace, for slow
or busy machines). joint_...: the same with the chunk IK node before the command node, whose output
of that name drives the joints by the rules of ros2_control's controllers. base: the rover's model,
command node with its stop by lidar, and cmd_vel by diff_drive_controller's rules. --delay: seconds
that each answer takes longer; in lock step, exactly that long by simulated time, while the robot
goes on. Under `robot`: gaps, control periods whose last command was 0.1 s old or older (of a base,
but for those after an episode's last command, as after a stop: they are silent);
unanswered_periods (lock step), those without a new one; zeros, those for which standing still was
commanded; all from an episode's first command on. command_gap: whether there were any of the first
two. A run with --delay is set beside the same without it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import yaml
from common import add_output, keep

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "test"))
JOINTS = ("joint_trajectory", "joint_positions", "joint_velocities")
PATHS = ("direct", "twist", "pose", *JOINTS, "base")
ROBOTS = {path: "simulated/panda_joints.yaml" for path in JOINTS} | {"base": "robots/rover.yaml"}
KEPT = (
    "task",
    "seed",
    "episodes",
    "successes",
    "success_rate_wilson95",
    "failed_episodes",
    "mean_frames_success",
    "mean_frames_all",
    "latency_ms",
    "round_trip_ms",
    "action_steps_per_s",
    "ended",
    "real_time",
    "robot",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", choices=PATHS, default="twist")
    parser.add_argument("--task", help="default: Stack_D0, for base Rover_D0")
    parser.add_argument("--model", type=Path, help="default: the one that ships for the task")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="index of the first episode")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--real-time", action="store_true")
    parser.add_argument("--factor", type=float, default=1.0, help="of real time")
    parser.add_argument("--frame-rate", type=float, default=10.0)
    parser.add_argument("--delay", type=float, default=0.0, help="s, of each answer")
    parser.add_argument("--stretch", type=float, default=1.0)
    parser.add_argument("--catch-up", type=float, default=0.0, help="s")
    parser.add_argument("--horizon", type=int, help="control steps; 200, times --stretch")
    parser.add_argument("--blend", type=float, help="s; default: config/robots/robosuite.yaml's")
    parser.add_argument(
        "--limits",
        choices=("robosuite", "default"),
        default="robosuite",
        help="those of config/robots/robosuite.yaml, or those that a robot's config starts from",
    )
    add_output(parser)
    args = parser.parse_args()
    if args.limits == "default" and args.path in JOINTS:
        parser.error("--limits default is for twist and pose")
    if args.path == "base" and (args.stretch != 1 or args.factor != 1):
        parser.error("--path base is without --stretch and --factor")
    args.task = args.task or ("Rover_D0" if args.path == "base" else "Stack_D0")
    if args.path != "base":
        args.horizon = args.horizon or round(200 * args.stretch)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        status = play(args, Path(folder))
        path = Path(folder, "run", "results.json")
        if not path.exists():
            return status or 1
        results = json.loads(path.read_text())
        settings = {k: v for k, v in vars(args).items() if k not in ("output", "model")}
        found = {**settings, **{k: results[k] for k in KEPT if k in results}}
        if "robot" in found:
            robot = found["robot"]
            found["command_gap"] = bool(robot["gaps"] or robot["unanswered_periods"])
        found["per_episode_frames"] = [e["frames"] for e in results["per_episode"]]
        found["seconds"] = round(time.perf_counter() - begun, 1)
        keep(found, args.output)
        return status


def without_limits(robot: Path, written: Path) -> Path:
    """The robot's parameters without its own limits of motion: config/command.yaml's hold then."""
    values = yaml.safe_load(robot.read_text())
    own = values["/**"]["ros__parameters"]
    for name in [n for n in own if n.startswith(("max_linear", "max_angular"))]:
        del own[name]
    del own["max_translation_per_step"], own["max_rotation_per_step"]
    written.write_text(yaml.safe_dump(values))
    return written


def play(args: argparse.Namespace, folder: Path) -> int:
    """The launch file as it is; only the model's node may be a slow one."""
    from domains import domain

    from vla_inference.cli.launch_standin import read_launch_file
    from vla_inference.cli.launch_standin.runner import run

    robot = ROOT / "config" / ROBOTS.get(args.path, "robots/robosuite.yaml")
    if args.limits == "default":
        robot = without_limits(robot, folder / "robot.yaml")
    arguments = {
        "task": args.task,
        "episodes": str(args.episodes),
        "seed": str(args.seed),
        "horizon": str(args.horizon or 0),
        "lock_step": str(not args.real_time).lower(),
        "output": str(folder / "run"),
        "record_episodes": "0",
        "summary": "false",
        "sim_config": str(ROOT / "config/sim.yaml"),
        "inference_config": str(ROOT / "config/inference.yaml"),
    }
    if args.model or args.path == "base":
        arguments["model"] = str((args.model or ROOT / "models/rover-small").absolute())
    launch = ROOT / "launch/sim_eval.launch.xml"
    if args.path == "base":
        launch = ROOT / "launch/rover.launch.xml"
        arguments |= {"frame_rate": str(args.frame_rate), "robot_config": str(robot)}
        arguments["config"] = str(ROOT / "config/command.yaml")
    elif args.path != "direct":
        launch = ROOT / "launch/robosuite.launch.xml"
        arguments |= {
            "path": args.path,
            "frame_rate": str(args.frame_rate),
            "stretch": str(args.stretch),
            "real_time_factor": str(args.factor),
            "robot_config": str(robot),
            "config": str(ROOT / "config/command.yaml"),
        }
    plan = read_launch_file(launch, arguments)
    for process in plan.processes:
        process.environment.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        process.environment.setdefault("ROS_DOMAIN_ID", str(domain()))
        if "inference_node" in process.label:
            process.command = [
                sys.executable,
                __file__,
                "--slow-model",
                str(args.delay / args.factor if args.real_time else 0.0),
            ]
        if "sim_node" in process.label:
            more = {"first_episode": args.first}
            if args.delay and not args.real_time:
                # Without a stretch the command node is silent often, and each time waited for.
                wait = 0.3 if args.stretch == 1 else 1.0
                more |= {"answer_delay": args.delay, "command_wait": wait}
            process.parameters.append(more)
        if "command_node" in process.label:
            process.parameters.append({"catch_up": args.catch_up})
            if args.blend is not None:
                process.parameters.append({"blend": args.blend})
            if args.delay and not args.real_time:
                heard = [r for r in process.remaps if r.startswith("action:=")]
                for remap in heard:  # what the chunk IK node says
                    at = process.remaps.index(remap)
                    process.remaps[at - 1 : at + 1] = []
                process.remaps += ["-r", "action:=delayed_action"]
    # What the nodes say goes to standard error: standard output is the JSON's.
    sys.stdout.flush()
    out = os.dup(1)
    os.dup2(2, 1)
    try:
        return run(plan)
    finally:
        sys.stdout.flush()
        os.dup2(out, 1)


def slow_model(delay: float, args: list[str]) -> int:
    """The inference node with a model that takes `delay` s longer."""
    from vla_inference.policies.openvla.policy import OpenVLAPolicy
    from vla_inference.ros.inference import node

    predict = OpenVLAPolicy.predict

    def delayed(self, *args, **more):
        time.sleep(delay)
        return predict(self, *args, **more)

    if delay:
        OpenVLAPolicy.predict = delayed
    return node.main(args)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--slow-model"]:
        raise SystemExit(slow_model(float(sys.argv[2]), [__file__, *sys.argv[3:]]))
    raise SystemExit(main())
