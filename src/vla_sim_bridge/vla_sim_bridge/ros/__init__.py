"""The parts of the simulation node that speak ROS."""
