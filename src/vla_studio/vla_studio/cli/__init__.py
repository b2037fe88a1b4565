"""The command `vla studio`."""
