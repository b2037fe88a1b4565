"""The simulated robot that takes the commands of a real one, and its controllers."""
