"""What controllers take: the outputs of the command node and of the IK node."""
