"""`BagOptions`: how to read bags."""

from __future__ import annotations

from dataclasses import dataclass

from vla_inference.errors import DataError
from vla_inference.options import Holds, check_options, option


@dataclass(frozen=True)
class BagOptions:
    """How to read bags. None: chosen from the bag.

    image_topic: the first sets the steps. step_length: seconds a step lasts where actions are
    velocities or poses; to the next image, if left out. robot_model, robot_tip, gripper_joint: see
    `joints.py`.
    """

    image_topic: str | None = option(None, "Image topics, separated by commas.")
    action_topic: str | None = option(
        None, "ActionChunk, EefDelta, TwistStamped, PoseStamped or JointState."
    )
    instruction_topic: str | None = option(None, "std_msgs/String.")
    state_topic: str | None = option(None, "Proprioception: Float64MultiArray or JointState.")
    state_joints: str | None = option(None, "Joints of the state in JointState, in order; commas.")
    gripper_topic: str | None = option(
        None, "Gripper topic, if actions are twists, poses or joints."
    )
    gripper_range: tuple[float, float] = option(
        (0.0, 1.0), "Values of the gripper topic for closed and open."
    )
    gripper_joint: str | None = option(None, "The gripper's joint in JointState.")
    robot_model: str | None = option(
        None, "URDF or MJCF file, if actions are joint states.", holds=Holds.PATH
    )
    robot_tip: str | None = option(None, "The end effector's body or site in it.")
    frame: str = option(
        "base", "base or tool, if the bag's deltas do not say.", choices=("base", "tool")
    )
    tolerance: float = option(
        0.05, "Maximum difference of stamps that belong together, s.", low=0, unit="s"
    )
    episode_gap: float = option(
        5.0, "Seconds without an image after which an episode ends.", above=0, unit="s"
    )
    step_length: float | None = None

    def __post_init__(self) -> None:
        check_options(self, called=str, error=DataError)
        step = self.step_length
        if step is not None and not (isinstance(step, (int, float)) and step > 0):
            raise DataError(f"step_length is {step!r}", "give seconds, more than 0")
        try:
            closed, opened = map(float, self.gripper_range)
        except (TypeError, ValueError):
            raise DataError(
                f"gripper_range is {self.gripper_range!r}", "give [CLOSED, OPEN]"
            ) from None
        object.__setattr__(self, "gripper_range", (closed, opened))
        if closed == opened:
            raise DataError("the gripper is open and closed at one value", "give two")

    @property
    def joints_of_state(self) -> list[str]:
        return (self.state_joints or "").replace(",", " ").split()
