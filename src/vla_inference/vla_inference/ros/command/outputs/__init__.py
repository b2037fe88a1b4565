"""Controller outputs of the command node and of the IK node."""
