"""Untrained checkpoints for a dataset's robot, which training from scratch begins with."""
