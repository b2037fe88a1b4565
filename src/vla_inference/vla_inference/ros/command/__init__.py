"""The command node."""
