"""Subcommands of `vla` for data and training."""
