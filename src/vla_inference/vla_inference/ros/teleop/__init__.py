"""Teleoperation in a ROS graph: `human_action`, take-over, and the node of `vla teleop`."""
