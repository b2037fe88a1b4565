"""Converts commands and poses to and from geometry_msgs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geometry_msgs.msg import PoseStamped, TwistStamped

from vla_inference.control.commands import Pose

if TYPE_CHECKING:
    from builtin_interfaces.msg import Time

    from vla_inference.control import Command


def command_to_twist(command: Command, stamp: Time, frame_id: str) -> TwistStamped:
    msg = TwistStamped()
    msg.header.stamp, msg.header.frame_id = stamp, frame_id
    linear, angular = msg.twist.linear, msg.twist.angular
    linear.x, linear.y, linear.z = command.linear
    angular.x, angular.y, angular.z = command.angular
    return msg


def pose_to_msg(pose: Pose, stamp: Time, frame_id: str) -> PoseStamped:
    msg = PoseStamped()
    msg.header.stamp, msg.header.frame_id = stamp, frame_id
    p, q = msg.pose.position, msg.pose.orientation
    p.x, p.y, p.z = pose.position
    q.x, q.y, q.z, q.w = pose.orientation
    return msg


def msg_to_pose(msg: PoseStamped) -> Pose:
    """Converts a message to a pose; raises VlaError if it is not one."""
    p, q = msg.pose.position, msg.pose.orientation
    return Pose((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))
