"""Policy inputs: images, their time stamps, the robot's state."""
