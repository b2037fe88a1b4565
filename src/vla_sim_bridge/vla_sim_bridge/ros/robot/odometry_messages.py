"""Odometry as messages."""

from __future__ import annotations

import math
from typing import Any

from rclpy.time import Time

from vla_inference.errors import VlaError
from vla_sim_bridge.ros.robot.base_controller import Odometry


def odometry_message(odometry: Odometry, now: int) -> Any:
    """nav_msgs/Odometry. now: ns."""
    msg = odometry_type()(child_frame_id="base_link")
    msg.header.stamp, msg.header.frame_id = Time(nanoseconds=now).to_msg(), "odom"
    msg.pose.pose.position.x, msg.pose.pose.position.y = odometry.x, odometry.y
    msg.pose.pose.orientation.z = math.sin(odometry.heading / 2)
    msg.pose.pose.orientation.w = math.cos(odometry.heading / 2)
    msg.twist.twist.linear.x, msg.twist.twist.angular.z = odometry.linear, odometry.angular
    return msg


def odometry_type() -> Any:
    """nav_msgs/Odometry, which only a base needs."""
    try:
        from nav_msgs.msg import Odometry as Message
    except ImportError as error:
        raise VlaError(
            f"nav_msgs is missing ({error})", "run `make setup`, or install it"
        ) from None
    return Message
