"""`vla validate`: compare a model with recorded bags."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vla_inference.cli.output import DeviceOption, JsonOption, print_json
from vla_inference.errors import VlaError
from vla_inference.system import progress
from vla_training.cli.options import (
    CameraOption,
    DtypeOption,
    ModelOption,
    ReportOption,
    check_counts,
    check_report,
    names,
)


def validate(
    bag: Annotated[Path, typer.Argument(help="Bag, or folder of bags (MCAP or SQLite).")],
    model: ModelOption = None,
    image_topic: Annotated[
        str | None, typer.Option(help="Image topics, separated by commas.")
    ] = None,
    action_topic: Annotated[
        str | None,
        typer.Option(help="ActionChunk, EefDelta, TwistStamped, PoseStamped or JointState."),
    ] = None,
    instruction_topic: Annotated[str | None, typer.Option(help="std_msgs/String.")] = None,
    state_topic: Annotated[
        str | None, typer.Option(help="Proprioception: Float64MultiArray or JointState.")
    ] = None,
    state_joints: Annotated[
        str | None, typer.Option(help="Joints of the state in JointState, in order; commas.")
    ] = None,
    gripper_topic: Annotated[
        str | None, typer.Option(help="Gripper topic, if actions are twists, poses or joints.")
    ] = None,
    gripper_range: Annotated[
        tuple[float, float], typer.Option(help="Values of the gripper topic for closed and open.")
    ] = (0.0, 1.0),
    gripper_joint: Annotated[
        str | None, typer.Option(help="The gripper's joint in JointState.")
    ] = None,
    robot_model: Annotated[
        str | None, typer.Option(help="URDF or MJCF file, if actions are joint states.")
    ] = None,
    robot_tip: Annotated[
        str | None, typer.Option(help="The end effector's body or site in it.")
    ] = None,
    frame: Annotated[
        str, typer.Option(help="base or tool, if the bag's deltas do not say.")
    ] = "base",
    tolerance: Annotated[
        float, typer.Option(help="Maximum difference of stamps that belong together, s.")
    ] = 0.05,
    episode_gap: Annotated[
        float, typer.Option(help="Seconds without an image after which an episode ends.")
    ] = 5.0,
    instruction: Annotated[
        str | None, typer.Option(help="Replaces the recorded instructions.")
    ] = None,
    camera: CameraOption = None,
    action_space: Annotated[str | None, typer.Option(help="Statistics by name.")] = None,
    execute_steps: Annotated[
        int | None,
        typer.Option(help="Steps of a chunk until the next one; default: from the recording."),
    ] = None,
    max_episodes: Annotated[int | None, typer.Option(help="Episodes; default: all.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Total images; default: all.")] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Fail below this accuracy (clipped), 0 to 1.")
    ] = None,
    min_raw_accuracy: Annotated[
        float | None, typer.Option(help="Fail below this accuracy (raw), 0 to 1.")
    ] = None,
    min_direction: Annotated[
        float | None, typer.Option(help="Fail below this mean cosine of translations.")
    ] = None,
    max_gripper_flips: Annotated[
        float | None, typer.Option(help="Fail above this share of flipped frames, 0 to 1.")
    ] = None,
    max_clip_rate: Annotated[
        float | None, typer.Option(help="Fail above this share of steps over command limits.")
    ] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="Fail above this latency (95 %), ms.")
    ] = None,
    max_jump_mm: Annotated[
        float | None, typer.Option(help="Fail above this jump at chunk joins (95 %), mm.")
    ] = None,
    report: ReportOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Check a model on recorded bags: compare its answers with the recorded actions."""
    check_counts(max_episodes=max_episodes, max_steps=max_steps, execute_steps=execute_steps)
    check_report(report)
    from vla_training.datasets import open_dataset
    from vla_training.datasets.bag.reader import BagSet
    from vla_training.evaluation.validate import Thresholds, ValidationConfig
    from vla_training.evaluation.validate import validate as run

    bounds = Thresholds(
        min_accuracy=min_accuracy,
        min_raw_accuracy=min_raw_accuracy,
        min_direction=min_direction,
        max_gripper_flips=max_gripper_flips,
        max_clip_rate=max_clip_rate,
        max_latency_ms=max_latency_ms,
        max_jump_mm=max_jump_mm,
    )
    check_shares(bounds)
    # The bags first: a mistake in them shows before a large model is loaded.
    bags = open_dataset(
        bag,
        "bag",
        image_topic=image_topic,
        action_topic=action_topic,
        instruction_topic=instruction_topic,
        state_topic=state_topic,
        state_joints=state_joints,
        gripper_topic=gripper_topic,
        gripper_range=gripper_range,
        gripper_joint=gripper_joint,
        robot_model=robot_model,
        robot_tip=robot_tip,
        frame=frame,
        tolerance=tolerance,
        episode_gap=episode_gap,
    )
    from vla_inference.policies.base import LoadOptions
    from vla_inference.policies.registry import load_policy
    from vla_sim_bridge.cli.rollout import find_model
    from vla_training.evaluation import validation_report

    options = LoadOptions.given(device=device, dtype=dtype, engine="plain")
    policy = load_policy(model or find_model(None), options)
    config = ValidationConfig(
        max_episodes, max_steps, action_space, names(camera), instruction, execute_steps
    )

    def follow(frame) -> None:
        progress.report(frame.number, frame.total)
        if not as_json and (frame.number % 50 == 0 or frame.number == frame.total):
            print(
                f"{frame.number}/{frame.total}  accuracy "
                f"{100 * frame.mean_accuracy_clipped:.2f} % clipped, "
                f"{100 * frame.mean_accuracy:.2f} % raw  {1e3 * frame.latency:.0f} ms",
                flush=True,
            )

    assert isinstance(bags, BagSet)  # what type "bag" opens
    result = run(policy, bags, config, follow)
    statistics = result.statistics()
    failures = bounds.failures(statistics)
    statistics["failures"] = failures
    written = None
    if report is not None:
        written = validation_report.write_report(report, result, statistics)
    if as_json:
        print_json({**statistics, "thresholds": asdict(bounds), "report": written})
    else:
        print(f"\n{validation_report.text(statistics)}")
        for note in statistics["notes"]:
            print(f"note: {note}", file=sys.stderr)
        if written is not None:
            print(f"report {written}", flush=True)
    for failure in failures:
        print(f"vla validate: {failure}", file=sys.stderr)
    if not statistics["complete"]:
        print("vla validate: stopped before the end", file=sys.stderr)
        return 130
    return 1 if failures else 0


def check_shares(bounds) -> None:
    for name in ("min_accuracy", "min_raw_accuracy", "max_gripper_flips", "max_clip_rate"):
        value = getattr(bounds, name)
        if value is not None and not 0 <= value <= 1:
            raise VlaError(f"--{name.replace('_', '-')} is {value:g}", "give a share, 0 to 1")
