"""Subcommands of `vla` that need the simulation."""
