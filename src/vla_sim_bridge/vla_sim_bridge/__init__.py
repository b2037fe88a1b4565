"""Simulation for VLA models: tasks, demonstrations, closed-loop evaluation, a ROS node."""
