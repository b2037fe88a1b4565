"""Teleoperation without ROS: what a person's device says, as chunks of the robot's parts."""
